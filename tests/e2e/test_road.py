"""The road as a user goes it: prepare and train as programs, segment as a job submitted to a cluster."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_cluster import started_cluster
from made_jobs import Ended, run_job

from diffseglung.config import recipe
from diffseglung.schemas import patches_schema

pytestmark = pytest.mark.timeout(900)  # each program starts a Ray of its own

SMOKE = ("--recipe", "smoke")
ONE = ("--set", "resources.workers=1")  # a worker more takes longer to start than it saves here


def foreign(stderr: str, job: str) -> list[str]:
    """What stands on the terminal beside the job's own progress: nothing that a user can do nothing about."""
    return [line for line in stderr.splitlines() if not line.startswith(f"{job}: ")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a user works in."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def prepared(home: Path, cohort: Path) -> Ended:
    return run_job(
        "prepare", "--cohort", cohort, "--workspace", "work", "--max-failed", "0.5", *SMOKE, *ONE, cwd=home
    )


@pytest.fixture(scope="module")
def trained(home: Path, prepared: Ended) -> Ended:
    return run_job("train", "--workspace", "work", *SMOKE, cwd=home)


def test_prepare_says_what_came_of_each_case(home: Path, prepared: Ended) -> None:
    assert prepared.returncode == 0, prepared.stderr
    assert "2 of 3 cases prepared" in prepared.stdout
    assert "failed: broken: " in prepared.stdout
    assert foreign(prepared.stderr, "prepare") == []
    schema = pq.read_schema(next((home / "work" / "patches").glob("part-*.parquet")))
    assert schema.names == patches_schema(recipe("smoke").patches, recipe("smoke").student).names


def test_train_leaves_its_runs_and_models_beside_the_workspace(home: Path, trained: Ended) -> None:
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.strip() == "models:/diffseglung/1 is now models:/diffseglung@candidate"
    assert foreign(trained.stderr, "train") == []
    assert (home / "mlflow.db").is_file()
    assert list((home / "mlartifacts" / "models").rglob("student.safetensors"))


def test_a_submitted_job_segments_with_the_model_of_the_registry_though_a_case_fails(
    home: Path, trained: Ended, cohort: Path
) -> None:
    words = ("--cohort", cohort, "--model", "models:/diffseglung@candidate", "--out", home / "out", *ONE)
    with started_cluster(MLFLOW_TRACKING_URI=f"sqlite:///{home}/mlflow.db") as cluster:
        ended = cluster.submit("python", "jobs/segment.py", *words)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "1 of 3 cases failed, more than --max-failed 0.1" in said
    assert "Traceback" not in said
    made = {path.name for path in (home / "out").iterdir()}
    assert made == {"cases", "colours", "report.html", "results.csv", "results.parquet"}
    rows = {row["case_id"]: row for row in pq.read_table(home / "out" / "results.parquet").to_pylist()}
    assert rows.pop("broken")["status"] == "failed"
    assert {(row["status"], row["model_version"]) for row in rows.values()} == {("ok", "1")}
    assert set(rows) == {"phantom-0000", "phantom-0001"}


def test_a_wrong_argument_is_one_line_of_a_program_too(home: Path) -> None:
    ended = run_job("segment", "--cohort", ".", "--model", "no-model", "--out", "o", cwd=home / "work")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "holds no scan" in line
