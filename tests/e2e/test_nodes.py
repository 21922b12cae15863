"""Many machines: jobs are submitted to a head with two nodes, an S3 and an MLflow server, and nodes die under them.

The nodes are on one machine here; what they share goes through S3 and HTTP alone, never through its disk.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import fsspec
import mlflow
import pyarrow.parquet as pq
import pytest
from made_cluster import Cluster, Node, Program, ended, started_cluster
from made_jobs import Ended
from made_mlflow import started_mlflow
from made_model import BROKEN, make_cohort
from made_s3 import BUCKET, S3, started_s3

from diffseglung_ray.segmentation import FILES

# Nine programs with clusters to wait for, on a machine that may be busy.
pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1200)]

CASES = 4
PASSWORD = "correct-horse-battery"  # of the registry, in its address
STEPS = 60
# A node is dead when the head has missed it for some seconds, and not for a quarter of a minute.
SOON_DEAD = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "8",
}


@dataclass(frozen=True)
class Lab:
    """What a lab has: a bucket, a registry, and a cluster whose head has no room for work."""

    s3: S3
    folder: Path
    cluster: Cluster
    files: fsspec.AbstractFileSystem

    def names(self, folder: str) -> list[str]:
        self.files.invalidate_cache()
        path = self.s3.uri(folder).removeprefix("s3://")
        return sorted(name.removeprefix(f"{path}/") for name in self.files.find(path))

    def kill_when(self, count: int, there: str, folder: str, node: Node, job: Program) -> None:
        """Kill a node as soon as so many files of that name lie below a folder of the bucket."""
        while sum(name.endswith(there) for name in self.names(folder)) < count:
            assert job.poll() is None, job.communicate()
            time.sleep(0.2)
        node.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with ExitStack() as held, pytest.MonkeyPatch.context() as patch:
        s3 = held.enter_context(started_s3())
        for name, value in s3.env.items():
            patch.setenv(name, value)
        registry = held.enter_context(started_mlflow(folder, s3.uri("mlflow"), s3.env))
        patch.setenv("MLFLOW_TRACKING_URI", registry)
        known = registry.replace("://", f"://lab:{PASSWORD}@")
        env = {**s3.env, **SOON_DEAD, "MLFLOW_TRACKING_URI": known}
        cluster = held.enter_context(started_cluster(cpus=0, **env))
        make_cohort(folder / "cohort", CASES)
        files = fsspec.filesystem("s3")
        files.put(f"{folder}/cohort", s3.uri("cohort"), recursive=True)
        yield Lab(s3, folder, cluster, files)


@pytest.fixture(scope="module")
def prepared(lab: Lab) -> Ended:
    lab.cluster.add_node()
    lab.cluster.add_node()
    words = ("--cohort", lab.s3.uri("cohort/manifest.csv"), "--workspace", lab.s3.uri("work"))
    return ended(lab.cluster.start("prepare", *words, "--recipe", "smoke", "--max-failed", "0.5"))


@pytest.fixture(scope="module")
def trained(lab: Lab, prepared: Ended) -> Ended:
    """By two processes on two nodes, one of which goes away after the second checkpoint and does not come back.

    The second, since what was written of the first may not have been noted down yet when it can be seen.
    """
    job = lab.cluster.start(
        "train", "--workspace", lab.s3.uri("work"), "--recipe", "smoke", "--set", f"train.steps={STEPS}",
        "--set", "resources.workers=2", "--set", "resources.min_workers=1",
    )  # fmt: skip
    lab.kill_when(2, "state.pt", "work/checkpoints", lab.cluster.nodes[1], job)
    return ended(job)


@pytest.fixture(scope="module")
def tuned(lab: Lab, trained: Ended) -> Ended:
    return ended(
        lab.cluster.start("tune", "--workspace", lab.s3.uri("work"), "--recipe", "smoke", "--trials", "2")
    )


@pytest.fixture(scope="module")
def segmented(lab: Lab, trained: Ended) -> Ended:
    """By two workers on two nodes, one of which goes away after the first case."""
    node = lab.cluster.add_node()
    job = lab.cluster.start(
        "segment", "--cohort", lab.s3.uri("cohort/manifest.csv"), "--model", "models:/diffseglung@candidate",
        "--out", lab.s3.uri("out"), "--max-failed", "0.5",
    )  # fmt: skip
    lab.kill_when(1, "result.json", "out/cases", node, job)
    return ended(job)


def test_prepare_fills_a_workspace_on_s3(lab: Lab, prepared: Ended) -> None:
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    assert f"{CASES} of {CASES + 1} cases prepared" in prepared.stdout
    names = lab.names("work")
    assert len([name for name in names if name.startswith("patches/part-")]) == CASES
    assert {"cases.parquet", "manifest.json", "settings.json"} <= set(names)
    assert not [name for name in names if name.startswith(".")]


def test_training_goes_on_with_the_node_that_is_left(lab: Lab, trained: Ended) -> None:
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "models:/diffseglung/1 is now models:/diffseglung@candidate" in trained.stdout
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("diffseglung", "candidate")
    assert version.tags["check"] == "passed"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    reports = [(m.step, m.value) for m in client.get_metric_history(version.run_id, "processes")]
    assert [value for step, value in reports if step == 1] == [2]  # once: it went on from a checkpoint
    assert dict(reports)[STEPS] == 1
    assert {step for step, _ in reports} == set(range(1, STEPS + 1))


def test_the_registry_keeps_its_files_in_the_bucket(lab: Lab, trained: Ended) -> None:
    assert any(name.endswith("student.safetensors") for name in lab.names("mlflow"))


def test_segmentation_loses_no_case_with_a_node(lab: Lab, segmented: Ended) -> None:
    assert segmented.returncode == 0, segmented.stdout + segmented.stderr
    with lab.files.open(lab.s3.uri("out/results.parquet")) as file:
        rows = {row["case_id"]: row for row in pq.read_table(file).to_pylist()}
    assert rows.pop(BROKEN)["status"] == "failed"
    # A case that was written by the node that died is found to be done when another takes it up.
    assert {row["status"] for row in rows.values()} <= {"ok", "skipped"}, [
        row["reason"] for row in rows.values()
    ]
    names = lab.names("out")
    for case in rows:
        assert {f"cases/{case}/{name}" for name in FILES} <= set(names)
    assert {name for name in names if not name.startswith(("cases/", "colours/"))} == {
        "report.html",
        "results.csv",
        "results.parquet",
    }


def test_a_sweep_leaves_its_best_in_the_registry(lab: Lab, tuned: Ended) -> None:
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    assert "sweep.parquet" in lab.names("work")
    version = mlflow.MlflowClient().get_model_version_by_alias("diffseglung", "tuned")
    assert version.tags["check"] == "passed"


def test_no_secret_is_left_anywhere(
    lab: Lab, prepared: Ended, trained: Ended, tuned: Ended, segmented: Ended
) -> None:
    """Not in what was printed, nor in the bucket, the registry's database, or a log of the cluster or the registry."""
    secrets = {
        "token": lab.cluster.env["RAY_AUTH_TOKEN"],
        "key": lab.s3.env["AWS_SECRET_ACCESS_KEY"],
        "password": PASSWORD,
    }
    said = {
        job.args[-1]: f"{job.stdout}{job.stderr}".encode() for job in (prepared, trained, tuned, segmented)
    }
    kept = {name: lab.files.cat_file(f"{BUCKET}/{name}") for name in lab.names("")}
    logs = [p for p in (*lab.folder.rglob("*"), *lab.cluster.folder.rglob("*")) if p.is_file()]
    assert {"mlflow.db", "gcs_server.out", "raylet.out"} <= {p.name for p in logs}
    written = said | kept | {str(p): p.read_bytes() for p in logs}
    for one in secrets.values():
        assert [where for where, text in written.items() if one.encode() in text] == []
