"""Everything that hospitals' data do, in one cohort: each case ends as one row, and the others do not notice."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_faults import SPACES, Fault, make_faults
from made_jobs import JOBS, SMALL, Ended, is_of_the_outside

from diffseglung.labels import TISSUES
from diffseglung.model import Model
from diffseglung.segment import segment
from diffseglung.volume import read_labels, read_volume

pytestmark = pytest.mark.timeout(900)

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def like_anybody() -> None:
    """In a child before it becomes a program: root may read every file, and these tests may run as root."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def segment_job(cohort: Path, model: Path, out: Path, *words: str) -> Ended:
    """`jobs/segment.py` as a program without root's right to read and write everywhere."""
    arguments = ["--cohort", cohort, "--model", model, "--out", out, "--set", "resources.workers=1"]
    command = [sys.executable, JOBS / "segment.py", *arguments, *words, *SMALL]
    env = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
    return subprocess.run(
        [str(word) for word in command],
        env=env,
        preexec_fn=like_anybody,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Fault]]:
    return make_faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def job(faults: tuple[Path, list[Fault]], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    ended = segment_job(faults[0], model, out_of(faults), "--max-failed", "0.8")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def out_of(faults: tuple[Path, list[Fault]]) -> Path:
    return faults[0].parent / "out"


@pytest.fixture(scope="module")
def rows(faults: tuple[Path, list[Fault]], job: Ended) -> list[dict[str, Any]]:
    return pq.read_table(out_of(faults) / "results.parquet").to_pylist()


def test_each_case_ends_as_one_row_with_a_reason_in_words(
    faults: tuple[Path, list[Fault]], rows: list[dict[str, Any]]
) -> None:
    assert sorted(row["case_id"] for row in rows) == sorted(fault.case_id for fault in faults[1])
    found = {row["case_id"]: row for row in rows}
    for fault in faults[1]:
        row = found[fault.case_id]
        assert row["status"] == fault.status, row
        assert fault.words in (row["reason"] or ""), row
        assert fault.note in (row["notes"] or ""), row
        assert "error in the program" not in (row["reason"] or "")
        assert "\n" not in (row["reason"] or "")


def test_only_what_was_segmented_leaves_files_and_nothing_outside_its_folder(
    faults: tuple[Path, list[Fault]], job: Ended
) -> None:
    out = out_of(faults)
    good = sorted(fault.case_id for fault in faults[1] if fault.status == "ok")
    assert sorted(path.name for path in (out / "cases").iterdir()) == good
    beside = {path.name for path in faults[0].parent.iterdir()}
    assert beside == {
        "sound", "files", "values", "grids", "done_right", "series", "names", "cohort.csv", "out",
    }  # fmt: skip


def labels_of(faults: tuple[Path, list[Fault]], case_id: str) -> np.ndarray:
    """The written labels of a case, canonical."""
    image = next(fault.image for fault in faults[1] if fault.case_id == case_id)
    volume = read_volume(faults[0].parent / image)
    return read_labels(out_of(faults) / "cases" / case_id / "segmentation.nii.gz", volume)


def test_the_sound_scan_is_as_if_it_had_been_alone(
    faults: tuple[Path, list[Fault]], job: Ended, model: Path
) -> None:
    loaded, volume = Model.load(model), read_volume(faults[0].parent / faults[1][0].image)
    np.testing.assert_array_equal(labels_of(faults, "sound"), segment(volume, loaded).labels)


@pytest.mark.parametrize("case_id", ["flipped", "left-handed", SPACES, "oblique", "dicom", "two-series"])
def test_the_same_chest_stored_otherwise_gets_the_same_labels(
    faults: tuple[Path, list[Fault]], job: Ended, case_id: str
) -> None:
    sound, other = labels_of(faults, "sound"), labels_of(faults, case_id)
    # DICOM rounds positions and spacing, an oblique grid its cosines; a voxel on the fence may then tip over.
    assert np.count_nonzero(sound != other) <= (
        0.001 if case_id in ("oblique", "dicom", "two-series") else 0
    ) * (np.count_nonzero(sound))


def test_one_lung_and_thick_slices_come_out_as_what_they_are(rows: list[dict[str, Any]]) -> None:
    found = {row["case_id"]: row for row in rows}
    sound, one, thick = found["sound"], found["one-lung"], found["anisotropic"]
    assert one["right_lung_ml"] == pytest.approx(sound["right_lung_ml"], rel=0.01)
    assert one["left_lung_ml"] < 0.02 * sound["left_lung_ml"]
    # 5 mm slices blur what 4 mm voxels had blurred already; litres stay within a few percent.
    assert thick["lung_ml"] == pytest.approx(sound["lung_ml"], rel=0.05)
    assert sum(thick[f"{t.key}_ml"] for t in TISSUES) == pytest.approx(thick["lung_ml"], rel=1e-6)


def test_the_job_says_what_failed_and_shows_no_traceback(job: Ended) -> None:
    said = job.stdout + job.stderr
    assert "Traceback" not in said
    assert "failed: ../../climbs: the case_id" in said
    assert "cases segmented" in job.stdout
