import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from diffseglung.config import recipe
from diffseglung.labels import Tissue
from diffseglung.patches import cut, to_scan
from diffseglung.prepare import cut_cells, labelled_cells, prepare_case
from diffseglung.teacher import TEACHER
from diffseglung.volume import read_labels


@pytest.fixture(scope="module")
def table(volume):
    return prepare_case("one", volume, recipe("smoke"))


def test_patches_carry_their_teacher_by_name(table):
    assert json.loads(table.schema.metadata[b"teacher.names"]) == list(TEACHER.names)
    assert table["teacher"].combine_chunks().to_numpy_ndarray().shape == (len(table), 34)


def test_the_table_of_descriptors_travels_with_the_patches_and_the_model(table, model_folder):
    assert json.loads(table.schema.metadata[b"teacher.table"]) == TEACHER.table
    assert json.loads((model_folder / "model.json").read_text())["teacher"]["table"] == TEACHER.table


@pytest.fixture(scope="module")
def lungs(observation):
    return np.isin(observation.anatomy.labels, (1, 2, 4))


@pytest.fixture(scope="module")
def given(volume, lungs):
    """With the lungs given, which is quick."""
    return prepare_case("one", volume, recipe("smoke"), lungs)


def test_a_patch_with_too_little_lung_is_masked_and_not_zero(volume, lungs, given):
    config, share = recipe("smoke"), flat(given["lungs"]).sum(axis=(1, 2, 3))
    teacher = replace(config.teacher, min_lung_vox=int(np.median(share)) + 1)
    strict = prepare_case("one", volume, replace(config, teacher=teacher), lungs)
    rows, described = flat(strict["teacher"]), share >= teacher.min_lung_vox
    assert 0 < described.sum() < len(described)
    assert np.isfinite(flat(given["teacher"])).all()
    np.testing.assert_array_equal(rows[described], flat(given["teacher"])[described])
    assert np.isnan(rows[~described]).all()


def test_a_case_of_weight_2_gives_twice_the_patches_the_usual_among_them(volume, lungs, given):
    twice = prepare_case("one", volume, recipe("smoke"), lungs, weight=2.0)
    assert len(twice) == 2 * len(given)
    usual, more = (
        set(zip(*(t[c].to_pylist() for c in ("z0", "y0", "x0")), strict=True)) for t in (given, twice)
    )
    assert usual < more


def test_a_patch_is_what_lies_at_its_corner(table, observation):
    scan = to_scan(observation.volume, observation.anatomy, recipe("smoke").patches, 8)
    hu, lungs = (table[name].combine_chunks().to_numpy_ndarray() for name in ("hu", "lungs"))
    for i, corner in enumerate(zip(*(table[c].to_pylist() for c in ("z0", "y0", "x0")), strict=True)):
        assert np.array_equal(hu[i], cut(scan.hu, corner, (16, 32, 32)))
        assert np.array_equal(lungs[i], cut(scan.lungs, corner, (16, 32, 32)))


def test_a_case_is_prepared_the_same_way_twice(volume, lungs, given):
    again = prepare_case("one", volume, recipe("smoke"), lungs)
    for column in given.column_names:  # tensors hold NaN, which equals nothing
        kind = column not in ("case_id",)
        assert np.array_equal(flat(again[column]), flat(given[column]), equal_nan=kind)
    other = prepare_case("two", volume, recipe("smoke"), lungs)
    assert other.select(["z0", "y0", "x0"]) != given.select(["z0", "y0", "x0"])


def test_cells_under_a_patch_start_at_its_corner():
    grid = np.arange(8 * 8 * 8).reshape(8, 8, 8, 1)
    assert np.array_equal(cut_cells(grid, (8, 0, 16), (16, 8, 8), (4, 4, 4)), grid[2:6, 0:2, 4:6])


def flat(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return (
        array.to_numpy_ndarray()
        if isinstance(array, pa.FixedShapeTensorArray)
        else array.to_numpy(zero_copy_only=False)
    )


def test_cells_are_labelled_where_somebody_drew(volume, cohort, lungs):
    config = recipe("smoke")
    truth = read_labels(cohort.parent / "truth" / "phantom-0000.nii.gz", volume)
    cells, tissue = labelled_cells(volume, truth, config, lungs)
    assert len(cells.evidence) == len(cells.descriptors) == len(tissue)
    assert {Tissue.HEALTHY, Tissue.FIBROSIS} <= set(tissue) <= set(truth[lungs])
    rough, healthy = (np.median(cells.evidence[tissue == t, 3]) for t in (Tissue.FIBROSIS, Tissue.HEALTHY))
    assert rough > healthy + 50
    some = truth.copy()
    some[len(some) // 2 :] = 0
    fewer, _ = labelled_cells(volume, some, config, lungs)
    assert 0 < len(fewer.evidence) < len(cells.evidence)
    assert fewer.reference == cells.reference
    nothing, _ = labelled_cells(volume, np.zeros_like(truth), config, lungs)
    assert len(nothing.evidence) == 0
