"""Segmentation on Ray gives what one process gives, skips what is done, and makes a row of every case."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from diffseglung.config import Config
from diffseglung.labels import TISSUES
from diffseglung.model import Model
from diffseglung.schemas import RESULTS
from diffseglung.segment import segment
from diffseglung.volume import read_volume
from diffseglung_ray.config import RunConfig, UserError, WrongArgument, apply_changes, load_config
from diffseglung_ray.segmentation import FILES, segment_cohort


def as_it_is(own: Config) -> RunConfig:
    return load_config(own.name)


def alone(own: Config) -> RunConfig:
    """One worker: the first cohort is segmented by two, and each worker more is seconds of imports."""
    return load_config(own.name, None, ["resources.workers=1"])


@pytest.fixture(scope="module")
def out(cohort: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("out")
    segment_cohort(str(cohort), str(model), str(place), as_it_is, probabilities=True, max_failed=0.5)
    return place


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["case_id"]: row for row in pq.read_table(out / "results.parquet").to_pylist()}


def test_cluster_and_laptop_agree(out: Path, cohort: Path, model: Path) -> None:
    loaded = Model.load(model)
    volume = read_volume(cohort.parent / "images" / "phantom-0001.nii.gz", config=loaded.config.volume)
    alone = volume.source.to_stored(segment(volume, loaded).labels).T
    written = np.asarray(nib.load(out / "cases" / "phantom-0001" / "segmentation.nii.gz").dataobj)
    np.testing.assert_array_equal(written, alone)


def test_maps_lie_on_the_grid_of_the_input(out: Path, cohort: Path) -> None:
    given = nib.load(cohort.parent / "images" / "phantom-0000.nii.gz")
    for name in ("segmentation", "anatomy"):
        made = nib.load(out / "cases" / "phantom-0000" / f"{name}.nii.gz")
        assert made.shape == given.shape
        assert made.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(made.affine, given.affine)
    posteriors = nib.load(out / "cases" / "phantom-0000" / "probabilities.nii.gz")
    assert posteriors.shape == (*given.shape, len(TISSUES))


def test_the_tables_have_a_row_a_case(out: Path, model: Path) -> None:
    rows = rows_of(out)
    assert list(rows) == ["broken", "phantom-0000", "phantom-0001"]
    assert pq.read_schema(out / "results.parquet").names == RESULTS.names
    assert pyarrow.csv.read_csv(out / "results.csv")["case_id"].to_pylist() == list(rows)
    good, bad = rows["phantom-0000"], rows["broken"]
    assert good["status"] == "ok"
    assert sum(good[f"{t.key}_pct"] for t in TISSUES) == pytest.approx(100)
    assert good["model_version"] == Model.load(model).sha256[:12]
    assert (bad["status"], bad["lung_ml"]) == ("failed", None)
    assert "broken.nii.gz" in bad["reason"]


def test_the_report_and_the_pictures_are_there(out: Path) -> None:
    assert "phantom-0001" in (out / "report.html").read_text()
    assert (out / "cases" / "phantom-0001" / "preview.png").stat().st_size > 0
    assert sorted(p.name for p in out.iterdir()) == [
        "cases",
        "colours",
        "report.html",
        "results.csv",
        "results.parquet",
    ]
    assert sorted(p.name for p in (out / "cases").iterdir()) == ["phantom-0000", "phantom-0001"]


def test_a_second_run_skips_what_is_done_and_keeps_its_numbers(out: Path, cohort: Path, model: Path) -> None:
    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (out / "cases").rglob("*")}

    before, rows = files(), rows_of(out)
    segment_cohort(str(cohort), str(model), str(out), alone, max_failed=0.5)
    again = rows_of(out)
    assert files() == before
    assert again["phantom-0000"]["status"] == "skipped"
    assert again["phantom-0000"] | {"status": "ok", "reason": ""} == rows["phantom-0000"] | {"status": "ok"}


def test_other_settings_are_segmented_again(out: Path, cohort: Path, model: Path, tmp_path: Path) -> None:
    def unrefined(own: Config) -> RunConfig:
        return apply_changes(alone(own), {"refine": {"flow_time": 0.14}})

    study = tmp_path / "study.csv"
    study.write_text(f"case_id,image\nphantom-0000,{cohort.parent}/images/phantom-0000.nii.gz\n")
    before = rows_of(out)["phantom-0000"]
    segment_cohort(str(study), str(model), str(out), unrefined)
    row = rows_of(out)["phantom-0000"]
    assert row["status"] == "ok"
    assert row["config_sha256"] != before["config_sha256"]
    stored = json.loads((out / "cases" / "phantom-0000" / "result.json").read_text())
    assert stored["config_sha256"] == row["config_sha256"]


def test_settings_that_the_model_was_trained_in_cannot_be_changed(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    def other(own: Config) -> RunConfig:
        return apply_changes(load_config(own.name), {"train": {"lr": 1.0}})

    with pytest.raises(WrongArgument, match="trained with other settings of train"):
        segment_cohort(str(cohort), str(model), str(tmp_path / "out"), other)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_a_wrong_argument(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="no model"):
        segment_cohort(str(cohort), str(tmp_path / "none"), str(tmp_path / "out"), alone)


def test_a_uri_receives_the_same_files_as_a_folder_though_too_many_failures_end_the_job(
    out: Path, cohort: Path, model: Path, tmp_path: Path
) -> None:
    study, place = tmp_path / "study.csv", tmp_path / "out"
    images = f"file://{cohort.parent}/images"
    study.write_text(f"case_id,image\nphantom-0001,{images}/phantom-0001.nii.gz\na,{images}/broken.nii.gz\n")
    with pytest.raises(UserError, match="1 of 2 cases failed"):
        segment_cohort(str(study), str(model), f"file://{place}", alone)
    assert {name: row["status"] for name, row in rows_of(place).items()} == {
        "a": "failed",
        "phantom-0001": "ok",
    }
    names = sorted(p.name for p in (place / "cases" / "phantom-0001").iterdir())
    assert names == ["anatomy.nii.gz", "pictures.json", "preview.png", "result.json", "segmentation.nii.gz"]
    assert "phantom-0001" in (place / "report.html").read_text()
    one, two = (nib.load(o / "cases/phantom-0001/segmentation.nii.gz") for o in (out, place))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own: `disk("size=1m")` mounts it, or mounts it otherwise."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        remount = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small disk")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.mark.timeout(600)
def test_a_full_disk_ends_the_job_in_words_and_room_lets_it_go_on(
    disk: Callable[[str], Path], out: Path, cohort: Path, model: Path, tmp_path: Path
) -> None:
    image = f"{cohort.parent}/images/phantom-0000.nii.gz"
    study = tmp_path / "study.csv"
    study.write_text("\n".join(["case_id,image", *(f"case-{n},{image}" for n in range(5))]))
    case = sum((out / "cases" / "phantom-0000" / name).stat().st_size for name in (*FILES, "pictures.json"))
    place = disk(f"size={int(2.5 * case)}")  # room for two
    with pytest.raises(
        UserError, match=r"cannot be written to: No space left on device; what is done is kept"
    ):
        segment_cohort(str(study), str(model), str(place / "out"), alone)
    done = {p.parent.name: p.stat().st_mtime_ns for p in place.glob("out/cases/*/result.json")}
    assert len(done) == 2
    for name in done:
        assert {p.name for p in (place / "out" / "cases" / name).iterdir()} >= set(FILES)
    disk("size=20m")
    segment_cohort(str(study), str(model), str(place / "out"), alone)
    rows = rows_of(place / "out")
    assert {name for name, row in rows.items() if row["status"] == "skipped"} == set(done)
    assert {row["status"] for row in rows.values()} == {"ok", "skipped"}
    assert {p.name for p in (place / "out").iterdir()} == {
        "cases",
        "colours",
        "report.html",
        "results.csv",
        "results.parquet",
    }
    disk("ro")
    with pytest.raises(WrongArgument, match=r"--out .* cannot be written to: Read-only file system"):
        segment_cohort(str(study), str(model), str(place / "out"), alone)
