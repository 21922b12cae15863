import json

import numpy as np
import pyarrow as pa
import pytest

from diffseglung.config import recipe
from diffseglung.patches import cut, to_scan
from diffseglung.prepare import cut_cells, prepare_case
from diffseglung.teacher import TEACHER


@pytest.fixture(scope="module")
def table(volume):
    return prepare_case("one", volume, recipe("smoke"))


def test_patches_carry_their_teacher_by_name(table):
    assert json.loads(table.schema.metadata[b"teacher.names"]) == list(TEACHER.names)
    assert table["teacher"].combine_chunks().to_numpy_ndarray().shape == (len(table), 34)


def test_a_patch_is_what_lies_at_its_corner(table, observation):
    scan = to_scan(observation.volume, observation.anatomy, recipe("smoke").patches, 8)
    hu, lungs = (table[name].combine_chunks().to_numpy_ndarray() for name in ("hu", "lungs"))
    for i, corner in enumerate(zip(*(table[c].to_pylist() for c in ("z0", "y0", "x0")), strict=True)):
        assert np.array_equal(hu[i], cut(scan.hu, corner, (16, 32, 32)))
        assert np.array_equal(lungs[i], cut(scan.lungs, corner, (16, 32, 32)))


def test_a_case_is_prepared_the_same_way_twice(table, volume):
    again = prepare_case("one", volume, recipe("smoke"))
    for column in table.column_names:  # tensors hold NaN, which equals nothing
        assert np.array_equal(flat(again[column]), flat(table[column]), equal_nan=column not in ("case_id",))
    other = prepare_case("two", volume, recipe("smoke"))
    assert other.select(["z0", "y0", "x0"]) != table.select(["z0", "y0", "x0"])


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
