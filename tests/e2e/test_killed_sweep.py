"""Kill the driver of a sweep: the same command goes on with what was judged, in the same run, not from the start."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from made_jobs import JOBS, SMALL, is_of_the_outside
from made_processes import alive_after, below, kill
from made_workspace import made_workspace

pytestmark = pytest.mark.timeout(900)

TRIALS = 8
STEPS = 160  # trials that are long enough for one to be killed among them, however fast the machine


class Job:
    """`jobs/tune.py` while the test looks on."""

    def __init__(self, workspace: Path, home: Path) -> None:
        words = ["--workspace", workspace, "--trials", TRIALS, "--stage", "train", "--recipe", "smoke"]
        sets = ["--set", "sweep.max_concurrent_trials=2", "--set", f"train.steps={STEPS}"]
        command = [sys.executable, JOBS / "tune.py", *words, *sets, *SMALL]
        env = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
        # Tune notes where a sweep stands every ten seconds; here that would be most of the sweep.
        env |= {"TUNE_GLOBAL_CHECKPOINT_S": "0.5", "MLFLOW_TRACKING_URI": registry(home)}
        self.path = home / f"log-{time.monotonic_ns()}"
        self.noted: set[str] = set()  # the trials that had ended long enough before it was killed
        with self.path.open("w") as log:
            self.run = subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log, cwd=home)

    def said(self) -> list[list[str]]:
        """Its lines, in words."""
        return [line.split() for line in self.path.read_text().splitlines()]

    def ended(self) -> set[str]:
        """The trials that came to an end: `3/6`."""
        judged = [line for line in self.said() if len(line) > 6 and "/" in line[0]]
        return {line[0] for line in judged if line[1] == "3/3" or "stopped" in line}

    def judged(self) -> set[str]:
        """The trials that were judged."""
        return {line[0] for line in self.said() if len(line) > 6 and "/" in line[0] and "/" in line[1]}


def registry(home: Path) -> str:
    return f"sqlite:///{home}/mlflow.db"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def workspace(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of its own: another test's sweep may have left its table in the one that tests share."""
    place = tmp_path_factory.mktemp("killed") / "work"
    shutil.copytree(made_workspace(cohort), place, ignore=shutil.ignore_patterns("sweep.*", "checkpoints"))
    return place


@pytest.fixture(scope="module")
def killed(workspace: Path, home: Path) -> Job:
    """The driver is killed once the first generation has ended and the second is on its way."""
    job = Job(workspace, home)
    until = time.monotonic() + 400
    while not (len(job.ended()) >= 2 and len(job.judged()) > 2):
        assert job.run.poll() is None, job.path.read_text()
        assert time.monotonic() < until, job.path.read_text()
        time.sleep(0.1)
    job.noted = job.ended()
    time.sleep(1.5)  # Tune notes them down; a trial that ends within this time may be lost
    started = below(job.run.pid)
    kill(job.run.pid)
    job.run.wait()
    assert not alive_after(started, seconds=120)  # Ray goes with its driver
    assert not (workspace / "sweep.parquet").exists()
    return job


@pytest.fixture(scope="module")
def resumed(killed: Job, workspace: Path, home: Path) -> Job:
    job = Job(workspace, home)
    job.run.wait(timeout=500)
    return job


def test_the_same_command_comes_to_its_end(resumed: Job) -> None:
    assert resumed.run.returncode == 0, resumed.path.read_text()
    assert "Traceback" not in resumed.path.read_text()


def test_what_had_ended_is_not_tried_again(resumed: Job, killed: Job) -> None:
    assert len(killed.noted) >= 2
    assert not resumed.judged() & killed.noted
    assert resumed.judged() | killed.judged() == {f"{number + 1}/{TRIALS}" for number in range(TRIALS)}


def test_it_is_one_sweep_with_one_run_a_trial(
    resumed: Job, workspace: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry(home))
    client = mlflow.MlflowClient(registry(home))
    rows = pq.read_table(workspace / "sweep.parquet").to_pylist()
    assert [row["trial"] for row in rows] == list(range(TRIALS))
    (sweep,) = {row["sweep"] for row in rows}
    experiment = client.get_run(sweep).info.experiment_id
    parents = [run for run in client.search_runs([experiment]) if run.info.run_name == "tune smoke"]
    assert [run.info.run_id for run in parents] == [sweep]
    assert "went_on" in parents[0].data.tags
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{sweep}'")
    names = sorted(run.info.run_name for run in children)
    assert names == ["train smoke", *(f"trial {number + 1}" for number in range(TRIALS))]
    assert {run.info.status for run in [*parents, *children]} == {"FINISHED"}
    rungs = [STEPS // 4 * number // 3 for number in (1, 2, 3)]
    for row in rows:
        history = client.get_metric_history(row["run_id"], "score")
        assert {point.step: point.value for point in history} == dict(zip(rungs, row["scores"], strict=False))
