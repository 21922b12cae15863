"""Kill the job, or a worker under it: what is done stays done, nothing is half there, and the end is the same."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_jobs import JOBS, SMALL, is_of_the_outside
from made_processes import alive_after, below, command_of, kill

from diffseglung.config import digest
from diffseglung.model import Model
from diffseglung.results import case_result, write_case
from diffseglung.segment import segment
from diffseglung.volume import WRITING, read_volume
from diffseglung_ray.segmentation import FILES

pytestmark = pytest.mark.timeout(900)

CASES = {"a": "phantom-0000", "b": "phantom-0001", "c": "phantom-0000", "d": "phantom-0001"}


@pytest.fixture(scope="module")
def study(cohort: Path) -> Path:
    """A manifest of two phantoms under four names."""
    lines = [f"{case},images/{image}.nii.gz" for case, image in CASES.items()]
    manifest = cohort.parent / "deaths.csv"
    manifest.write_text("\n".join(["case_id,image", *lines]) + "\n")
    return manifest


@pytest.fixture(scope="module")
def undisturbed(study: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every file of every case as one process makes it, case by case."""
    loaded, place = Model.load(model), tmp_path_factory.mktemp("undisturbed")
    origin = {
        "model_uri": str(model),
        "model_version": loaded.sha256[:12],
        "config_sha256": digest(loaded.config),
    }
    for image in set(CASES.values()):
        volume = read_volume(study.parent / "images" / f"{image}.nii.gz")
        segmentation = segment(volume, loaded)
        for case_id in (case for case, its in CASES.items() if its == image):
            result = case_result(case_id, volume, segmentation, **origin)
            write_case(place / "cases" / case_id, volume, segmentation, result)
    return contents(place)


def contents(out: Path) -> dict[str, Any]:
    """Every file of the cases, apart from times, and from what a killed writer left beside them."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in (out / "cases").rglob("*") if p.is_file() and WRITING not in str(p)):
        name = str(path.relative_to(out))
        found[name] = path.read_bytes()
        if path.name == "result.json":
            found[name] = json.loads(found[name]) | {"seconds": None}
    return found


class Job:
    """A job that runs while the test looks on."""

    def __init__(self, study: Path, model: Path, out: Path) -> None:
        arguments = ["--cohort", study, "--model", model, "--out", out, "--set", "resources.workers=1"]
        command = [sys.executable, JOBS / "segment.py", *arguments, *SMALL]
        env = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
        self.out, self.log = out, (out.parent / "job.log").open("a+")
        self.run = subprocess.Popen(list(map(str, command)), env=env, stdout=self.log, stderr=self.log)

    def done(self) -> set[str]:
        """The cases whose last file is there."""
        return {path.parent.name for path in self.out.glob("cases/*/result.json")}

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait. Errors: an assertion where the job ends before."""
        while not holds():
            assert self.run.poll() is None, self.said()
            time.sleep(0.05)

    def worker(self) -> int:
        """The actor that segments."""
        (found,) = [pid for pid in below(self.run.pid) if "CaseSegmenter" in command_of(pid)]
        return found

    def said(self) -> str:
        """All that was said on the terminal."""
        self.log.seek(0)
        return self.log.read()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deaths") / "out"


@pytest.fixture(scope="module")
def killed(study: Path, model: Path, out: Path) -> dict[Path, int]:
    """The driver is killed when the first case is done and the second begun; gives what was there, with its times."""
    job = Job(study, model, out)
    job.until(lambda: bool(job.done()))
    writers = [pid for pid in below(job.run.pid) if "CaseSegmenter" in command_of(pid)]
    time.sleep(0.3)
    kill(job.run.pid)
    job.run.wait()
    assert not alive_after(writers, seconds=120)  # Ray goes with its driver: nobody writes any more
    return {path: path.stat().st_mtime_ns for path in (out / "cases").rglob("*") if WRITING not in str(path)}


def test_a_killed_job_leaves_whole_cases_only(
    killed: dict[Path, int], out: Path, undisturbed: dict[str, Any]
) -> None:
    left = contents(out)
    assert left.items() <= undisturbed.items()
    for case in {name.split("/")[1] for name in left}:
        assert {f"cases/{case}/{name}" for name in FILES} <= set(left)
    assert not (out / "results.parquet").exists()


@pytest.fixture(scope="module")
def resumed(study: Path, model: Path, out: Path, killed: dict[Path, int]) -> Job:
    """The same command again; its only worker is killed after one more case, with the next begun."""
    job, before = Job(study, model, out), len({path.parent for path in killed if path.is_file()})
    job.until(lambda: len(job.done()) > before)
    time.sleep(0.3)
    kill(job.worker())
    job.run.wait(timeout=300)
    return job


def test_the_same_command_ends_as_if_nobody_had_died(
    resumed: Job, killed: dict[Path, int], out: Path, undisturbed: dict[str, Any]
) -> None:
    assert resumed.run.returncode == 0, resumed.said()
    assert contents(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in killed} == killed  # what was done was not done again
    rows = {row["case_id"]: row for row in pq.read_table(out / "results.parquet").to_pylist()}
    assert {name: row["status"] == "skipped" for name, row in rows.items()} == {
        name: out / "cases" / name in killed for name in CASES
    }
    for name, row in rows.items():
        numbers = undisturbed[f"cases/{name}/result.json"]
        assert row | {"seconds": None, "status": "ok", "reason": ""} == numbers


def test_nothing_is_left_of_the_dead(resumed: Job, out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        "cases",
        "colours",
        "report.html",
        "results.csv",
        "results.parquet",
    }
    assert {path.name for path in (out / "cases").iterdir()} == set(CASES)
    assert "Traceback" not in resumed.said()
