"""A cohort in a bucket, results into a bucket: the same files as from folder to folder, and the same second run."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from made_jobs import Ended, call_job, run_job
from made_s3 import S3, started_s3
from made_scans import ct_slice

from diffseglung.config import digest
from diffseglung.model import Model
from diffseglung.results import case_result, write_case
from diffseglung.segment import segment
from diffseglung.volume import Volume, read_volume
from diffseglung_ray.segmentation import FILES
from diffseglung_ray.storage import CannotWrite, Store

pytestmark = pytest.mark.timeout(900)

ONE = ("--set", "resources.workers=1")


@pytest.fixture(scope="module")
def s3() -> Any:
    """A bucket that this process and the programs that it starts are led to."""
    with started_s3() as found, pytest.MonkeyPatch.context() as patch:
        for key, value in found.env.items():
            patch.setenv(key, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield found


@pytest.fixture(scope="module")
def scans(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom as NIfTI and as DICOM, a file that is no scan, and a mask that is no case."""
    folder = tmp_path_factory.mktemp("scans")
    image = cohort.parent / "images" / "phantom-0000.nii.gz"
    (folder / "site a").mkdir()
    (folder / "site a" / "ct.nii.gz").write_bytes(image.read_bytes())
    (folder / "site a" / "ct_lungs.nii.gz").write_bytes(b"a mask")
    (folder / "broken.nii.gz").write_bytes(b"no scan")
    write_series(folder / "series", read_volume(image))
    return folder


def write_series(folder: Path, volume: Volume) -> None:
    folder.mkdir()
    for number, image in enumerate(volume.hu):
        one = ct_slice(
            (image.astype(int) + 1024).astype("uint16"),
            (volume.affine @ (number, 0, 0, 1))[:3],
            "1.2.9",
            number + 1,
        )
        one.PixelSpacing, one.SliceThickness = list(volume.spacing_mm[1:]), volume.spacing_mm[0]
        one.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


def words_of(s3: S3, model: Path) -> tuple[str | Path, ...]:
    places = ("--cohort", s3.uri("scans"), "--model", model, "--out", s3.uri("out"))
    return *places, "--max-failed", "0.5", *ONE


@pytest.fixture(scope="module")
def job(s3: S3, scans: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    fsspec.filesystem("s3").put(str(scans), s3.uri("scans"), recursive=True)
    words = words_of(s3, model)
    ended = run_job("segment", *words, cwd=tmp_path_factory.mktemp("home"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def files_in(s3: S3, place: str) -> set[str]:
    filesystem = fsspec.filesystem("s3")
    filesystem.invalidate_cache()
    root = s3.uri(place).removeprefix("s3://")
    return {name.removeprefix(f"{root}/") for name in filesystem.find(root)}


def rows_of(s3: S3) -> dict[str, dict[str, Any]]:
    with fsspec.open(s3.uri("out/results.parquet"), "rb") as file:
        return {row["case_id"]: row for row in pq.read_table(file).to_pylist()}


def test_the_bucket_receives_what_a_folder_would(
    s3: S3, job: Ended, scans: Path, model: Path, tmp_path: Path
) -> None:
    rows = rows_of(s3)
    assert {name: row["status"] for name, row in rows.items()} == {
        "broken": "failed", "series": "ok", "site_a-ct": "ok",
    }  # fmt: skip
    volume, loaded = read_volume(scans / "site a" / "ct.nii.gz"), Model.load(model)
    origin = {
        "model_uri": str(model),
        "model_version": loaded.sha256[:12],
        "config_sha256": digest(loaded.config),
    }
    segmentation = segment(volume, loaded)
    result = case_result("site_a-ct", volume, segmentation, **origin)
    write_case(tmp_path / "cases" / "site_a-ct", volume, segmentation, result)
    for path in (tmp_path / "cases" / "site_a-ct").iterdir():
        if path.name != "result.json":  # which tells the seconds
            with fsspec.open(s3.uri(f"out/cases/site_a-ct/{path.name}"), "rb") as file:
                assert file.read() == path.read_bytes(), path.name
    top = {name for name in files_in(s3, "out") if not name.startswith(("cases/", "colours/"))}
    assert top == {"report.html", "results.csv", "results.parquet"}  # nothing of the run's own is left
    assert {f"cases/series/{name}" for name in (*FILES, "segmentation.dcm")} <= files_in(s3, "out")


def test_a_dry_run_and_a_second_run_see_what_is_there(
    s3: S3, job: Ended, model: Path, tmp_path: Path
) -> None:
    words = words_of(s3, model)
    before = files_in(s3, "out")
    ended = call_job("segment", *words, "--dry-run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "will run: 0 cases" in ended.stdout
    assert "done before, skipped if the files are still the same: 2 cases" in ended.stdout
    assert "failed: broken: " in ended.stdout
    assert files_in(s3, "out") == before


def test_a_store_in_a_bucket_behaves_as_one_in_a_folder(s3: S3) -> None:
    store = Store.at(s3.uri("store"))
    assert store.read("a/b") is None
    assert store.names("a") == []
    store.write("a/b", "words")
    assert Store.at(s3.uri("store")).names("a") == ["b"]
    with store.folder("case", last="z.json") as folder:
        folder.mkdir()
        (folder / "z.json").write_text("{}")
        (folder / "a").write_text("a")
    assert store.names("case") == ["a", "z.json"]
    store.remove("case")
    store.remove("case")
    assert store.names("case") == []
    with pytest.raises(CannotWrite, match="s3://nobodys/x cannot be written to"):
        Store.at("s3://nobodys/x").write("a", b"")
