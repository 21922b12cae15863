"""What a dry run says of a cohort: the truth, from headers alone, and nothing is started or written."""

import json
from pathlib import Path

import numpy as np
import pytest
import ray
from made_scans import chest_hu, ct_series, diagonal, save_series, write_nifti

from diffseglung.config import Config
from diffseglung.results import CaseResult
from diffseglung.volume import read_grid
from diffseglung_ray.cohort import local_copy
from diffseglung_ray.config import RunConfig, UserError, load_config
from diffseglung_ray.preflight import HEADER_BYTES, dry_run, duration
from diffseglung_ray.segmentation import place_model


def as_it_is(own: Config) -> RunConfig:
    return load_config(own.name, None, ["resources.workers=2"])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of five scans, three of which cannot be right."""
    folder = tmp_path_factory.mktemp("study")
    sound = write_nifti(folder / "sound.nii.gz", chest_hu((60, 80, 80)), diagonal(4, 4, 4))
    (folder / "again.nii.gz").write_bytes(sound.read_bytes())
    write_nifti(folder / "thick.nii.gz", chest_hu((20, 80, 80)), diagonal(12, 4, 4))
    gap = ct_series(chest_hu())
    save_series(folder / "gap", gap[:10] + gap[11:])
    lines = [
        "sound,sound.nii.gz",
        "again,again.nii.gz",
        "thick,thick.nii.gz",
        "gap,gap",
        "../up,sound.nii.gz",
    ]
    (folder / "study.csv").write_text("\n".join(["case_id,image", *lines]) + "\n")
    return folder / "study.csv"


def test_it_says_what_will_run_what_not_and_why_and_starts_nothing(
    study: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was_running = ray.is_initialized()
    dry_run(str(study), str(model_folder), str(tmp_path / "out"), as_it_is, max_failed=0.6)
    said = capsys.readouterr().out
    assert "headers of 5 cases read" in said
    assert "will run: 2 cases, 1 million voxels" in said
    assert "with 2 workers of 1 CPUs and 0 GPUs" in said
    assert "will not run: 3 cases" in said
    for words in ("thick: ", "12.00 mm apart", "gap: ", "slices are missing, about 1", "../up: the case_id"):
        assert words in said
    assert list(tmp_path.iterdir()) == []
    assert ray.is_initialized() == was_running


def test_more_that_cannot_run_than_may_fail_end_it_1(study: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 of 5 cases failed, more than --max-failed 0.1"):
        dry_run(str(study), str(model_folder), str(tmp_path / "out"), as_it_is)


def test_what_was_done_before_is_told_and_sets_the_pace(
    study: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed, _ = place_model(str(model_folder), as_it_is)
    row = CaseResult(case_id="sound", seconds=600.0, **placed.origin).row()
    (tmp_path / "cases" / "sound").mkdir(parents=True)
    (tmp_path / "cases" / "sound" / "result.json").write_text(json.dumps(row))
    dry_run(str(study), str(model_folder), str(tmp_path), as_it_is, max_failed=1)
    said = capsys.readouterr().out
    assert "will run: 1 cases" in said
    assert "done before, skipped if the files are still the same: 1 cases" in said
    assert "time: about 10 min with 1 workers" in said


def test_the_beginning_of_a_remote_file_is_enough(tmp_path: Path) -> None:
    """A file longer than what is fetched of it."""
    noise = np.random.default_rng(0).normal(-500, 500, (40, 120, 120)).astype(np.int16)
    (tmp_path / "c").mkdir()
    path = write_nifti(tmp_path / "c" / "a.nii.gz", noise, diagonal(5, 3, 3))
    save_series(tmp_path / "c" / "series", ct_series(chest_hu()))
    for place in (path, tmp_path / "c" / "series"):
        with local_copy(f"file://{place}", HEADER_BYTES) as fetched:
            assert fetched != place
            grid = read_grid(fetched)
        np.testing.assert_array_equal(grid.affine, read_grid(place).affine)
        assert grid.shape == read_grid(place).shape
        assert not fetched.exists()
    assert path.stat().st_size > 2**18


def test_durations_are_told_as_people_do() -> None:
    assert [duration(s) for s in (7.4, 600, 100_000)] == ["7 s", "10 min", "27.8 hours"]
