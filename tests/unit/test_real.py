"""What real scans can tell without a truth, on small lungs whose answer is known."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_scans import chest_hu, diagonal, write_nifti

from diffseglung.labels import Tissue
from diffseglung.real import (
    MEASURES,
    Known,
    find_known,
    measure,
    measures_markdown,
    named_opacity_pct,
    read_slices,
    slice_auroc,
)
from diffseglung.schemas import MEASURES as SCHEMA
from diffseglung.volume import Volume

LABELS = (0, 0, 1, 1, 1, 0)


def lung(slices: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A lung of 100 voxels a slice, all of it healthy."""
    lungs = np.zeros((slices, 14, 14), bool)
    lungs[:, 2:12, 2:12] = True
    return lungs, lungs * np.uint8(Tissue.HEALTHY)


def test_disease_in_the_infected_slices_alone_ranks_them_perfectly() -> None:
    lungs, labels = lung()
    labels[4:10, 2:5, 2:12] = Tissue.GROUND_GLASS  # two slices a label: labels 2 to 4
    assert slice_auroc(labels > 1, lungs, LABELS) == 1.0
    assert slice_auroc(labels[::-1] > 1, lungs, LABELS) < 1.0  # upside down


def test_disease_of_another_name_is_found_and_not_named() -> None:
    lungs, labels = lung()
    labels[4:10, 2:5, 2:12] = Tissue.FIBROSIS
    volume = Volume.from_array(np.full(lungs.shape, -850), (2.0, 2.0, 2.0))
    rows = measure(Known("c", Path("c.nii.gz"), slices=LABELS), "m", volume, lungs, labels)
    values = {row["measure"]: row["value"] for row in rows}
    assert values == {"slice_auroc": 0.5, "disease_auroc": 1.0, "named_opacity_pct": 0.0}


@pytest.mark.parametrize("slices", [6, 8, 12, 17])
def test_labels_are_spread_over_the_height_whatever_the_slices(slices: int) -> None:
    lungs, labels = lung(slices)
    inside = (np.arange(slices) + 0.5) / slices
    labels[(inside > 2.1 / 6) & (inside < 4.9 / 6), 2:6, 2:12] = Tissue.CONSOLIDATION
    assert slice_auroc(labels > 1, lungs, LABELS) == 1.0
    assert named_opacity_pct(labels, LABELS) == 100


def test_the_auroc_counts_pairs_that_are_ranked_right() -> None:
    lungs, labels = lung(6)
    for z, rows in enumerate((1, 3, 2, 4, 5, 0)):  # infected: 2 3 4; of 9 pairs only 3 over 2 is wrong
        labels[z, 2 : 2 + rows, 2:12] = Tissue.GROUND_GLASS
    assert slice_auroc(labels > 1, lungs, LABELS) == pytest.approx(8 / 9)


def test_slices_without_lung_prove_nothing() -> None:
    lungs, labels = lung(6)
    labels[2:5, 2:4, 2:12] = Tissue.GROUND_GLASS
    labels[5, 2:5, 2:12] = (
        Tissue.GROUND_GLASS
    )  # a false alarm above all: half of the pairs with lung are wrong
    lungs[0], labels[0] = False, 0
    assert slice_auroc(labels > 1, lungs, LABELS) == pytest.approx(0.5)
    lungs[1] = lungs[5] = False
    assert math.isnan(slice_auroc(labels > 1, lungs, LABELS))


def test_the_name_of_what_was_found_in_infected_slices_counts() -> None:
    _, labels = lung(6)
    labels[3, 2:8, 2:12], labels[3, 8:12, 2:12] = Tissue.GROUND_GLASS, Tissue.FIBROSIS
    labels[0, 2:12, 2:12] = Tissue.FIBROSIS  # outside the infected slices
    assert named_opacity_pct(labels, LABELS) == pytest.approx(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of which something is known, masks beside them, and one scan of which nothing is."""
    place = tmp_path_factory.mktemp("real")
    affine = diagonal(8.0, 9.0, 9.0)
    for name in ("normal-x", "normal-x_lungs", "emphysema-y", "covid", "lump", "unknown"):
        write_nifti(place / f"{name}.nii.gz", chest_hu(), affine)
    (place / "covid_slices.json").write_text(json.dumps({"infected": [5, *LABELS], "z0": 1}))
    tumour = np.zeros(chest_hu().shape, np.uint8)
    tumour[10:14, 10:15, 4:9] = 1
    write_nifti(place / "lump_tumour.nii.gz", tumour, affine)
    return place


def test_names_say_what_is_known_of_a_scan(folder: Path) -> None:
    known = {one.case_id: one for one in find_known(folder)}
    assert set(known) == {"covid", "emphysema-y", "lump", "normal-x"}
    assert known["covid"].slices == LABELS
    assert known["lump"].tumour == folder / "lump_tumour.nii.gz"
    assert known["normal-x"].healthy
    assert not known["emphysema-y"].healthy
    assert known["emphysema-y"].emphysema


def test_a_folder_of_which_nothing_is_known_is_refused_in_words(tmp_path: Path) -> None:
    write_nifti(tmp_path / "unknown.nii.gz", chest_hu(), diagonal(8.0, 9.0, 9.0))
    with pytest.raises(ValueError, match=r"normal-\*\.nii\.gz"):
        find_known(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", "no json", '{"infected": 3}'])
def test_slice_labels_of_another_kind_are_refused_in_words(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x_slices.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x_slices\.json holds no slice labels"):
        read_slices(path)


def test_each_scan_is_measured_by_what_is_known_of_it(folder: Path) -> None:
    hu = chest_hu()
    volume = Volume.from_array(hu, (8.0, 9.0, 9.0), diagonal(8.0, 9.0, 9.0))
    lungs = (hu < -700) & (hu > -920)
    labels = lungs * np.uint8(Tissue.HEALTHY)
    labels[lungs & (np.arange(hu.shape[2]) < 7)] = Tissue.EMPHYSEMA
    labels[10:12, 10:15, 4:9] = Tissue.CONSOLIDATION
    labels[12, 10:15, 4:9] = Tissue.FIBROSIS
    labels[13, 10:15, 4:9] = Tissue.HEALTHY
    rows = {
        (row["case_id"], row["measure"]): row
        for one in find_known(folder)
        for row in measure(one, "m", volume, lungs, labels)
    }
    assert {name for _, name in rows} == set(MEASURES)
    assert rows["lump", "tumour_pct"]["value"] == pytest.approx(75)
    assert rows["lump", "tumour_opacity_pct"]["value"] == pytest.approx(50)
    emphysema = rows["emphysema-y", "emphysema_pct"]
    assert emphysema["value"] == pytest.approx(100 * (labels[lungs] == Tissue.EMPHYSEMA).mean())
    assert emphysema["expected"] == pytest.approx(100 * (volume.hu[lungs] < -950).mean())
    assert rows["normal-x", "diseased_pct"]["value"] == pytest.approx(100 * (labels[lungs] > 1).mean())
    assert pa.Table.from_pylist(list(rows.values()), schema=SCHEMA).num_rows == len(rows)


def test_the_table_has_a_line_a_method_and_says_what_is_expected() -> None:
    lungs, labels = lung(6)
    volume = Volume.from_array(np.full(lungs.shape, -960), (2.0, 2.0, 2.0))
    known = Known("e", Path("e.nii.gz"), emphysema=True)
    emphysema = np.where(lungs, Tissue.EMPHYSEMA, 0).astype(np.uint8)
    rows = [
        row
        for method, each in (("a", labels), ("b", emphysema))
        for row in measure(known, method, volume, lungs, each)
    ]
    lines = measures_markdown(rows).splitlines()
    assert lines[0] == "| method | e emphysema % |"
    assert lines[2:5] == ["| expected | 100.0 |", "| a | 0.0 |", "| b | 100.0 |"]
