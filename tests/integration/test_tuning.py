"""A sweep leaves a table, nested runs and a model, and nothing that still holds the cluster."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from made_jobs import Ended, call_job
from made_workspace import made_workspace
from ray.util import placement_group_table

from diffseglung.model import Model
from diffseglung_ray.config import UserError, WrongArgument, load_config
from diffseglung_ray.tracking import fetch_model
from diffseglung_ray.tuning import RUNGS, short, split_cases, tune

SMOKE = load_config("smoke")
TRIALS = 2

pytestmark = pytest.mark.timeout(900)  # a sweep and a training, with processes to start


@pytest.fixture(scope="module")
def workspace(cohort: Path) -> Path:
    return made_workspace(cohort)


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def swept(workspace: Path, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    words = ("--workspace", workspace, "--trials", TRIALS, "--recipe", "smoke")
    return call_job("tune", *words, cwd=tmp_path_factory.mktemp("home"), MLFLOW_TRACKING_URI=registry)


def test_the_job_says_what_it_found(swept: Ended) -> None:
    assert swept.returncode == 0, swept.stderr
    said = swept.stdout.splitlines()[-1]  # the tests' own Ray may have spoken before
    assert said.startswith("models:/diffseglung/1 is now models:/diffseglung@tuned, with temperature ")


def test_the_table_has_every_trial_and_starts_from_the_recipe(swept: Ended, workspace: Path) -> None:
    rows = pq.read_table(workspace / "sweep.parquet").to_pylist()
    assert len({row["trial"] for row in rows}) == TRIALS
    assert len(rows) <= TRIALS * RUNGS
    assert (SMOKE.train.temperature, SMOKE.train.weight) in {(r["temperature"], r["weight"]) for r in rows}
    for row in rows:
        assert 0 <= row["retrieval"] <= 1
        assert -1 <= row["silhouette"] <= 1
        assert row["score"] == pytest.approx((row["retrieval"] + (row["silhouette"] + 1) / 2) / 2)


def test_the_best_of_the_trials_that_went_furthest_is_registered(
    swept: Ended, workspace: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(workspace / "sweep.parquet").to_pylist()
    furthest = [row for row in rows if row["step"] == max(r["step"] for r in rows)]
    best = max(furthest, key=lambda row: row["score"])
    model = Model.load(fetch_model("models:/diffseglung@tuned", tmp_path).path)
    assert model.config.train.temperature == best["temperature"]
    assert model.config.features.timesteps == tuple(best["timesteps"])
    assert model.config.train.steps == SMOKE.train.steps


def test_trials_are_runs_within_the_sweep(swept: Ended) -> None:
    client = mlflow.MlflowClient()
    trained = client.get_model_version_by_alias("diffseglung", "tuned").run_id
    parent = client.get_run(trained).data.tags["mlflow.parentRunId"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.status for run in children} == {"FINISHED"}
    assert sum(run.info.run_name.startswith("trial") for run in children) == TRIALS


def test_nothing_is_left_on_the_cluster(swept: Ended) -> None:
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def test_a_trial_is_the_same_training_in_little() -> None:
    brief = short(load_config("demo").method).train
    full = load_config("demo").train
    assert brief.steps == full.steps / 4
    assert brief.warmup == (full.warmup[0] // 4, full.warmup[1] // 4)
    assert short(SMOKE.method).train.steps == RUNGS


def test_no_case_both_teaches_and_judges() -> None:
    cases = np.repeat([f"case-{i}" for i in range(8)], 6)
    patches = {"case_id": cases, "hu": np.arange(len(cases))}
    teach, judge = split_cases(patches, batch=4)
    assert not set(teach["case_id"]) & set(judge["case_id"])
    assert sorted({*teach["hu"], *judge["hu"]}) == list(range(len(cases)))
    assert len(judge["hu"]) == 12


def test_one_case_is_too_few_for_a_sweep() -> None:
    with pytest.raises(UserError, match="at least two cases"):
        split_cases({"case_id": np.array(["a"] * 9), "hu": np.arange(9)}, batch=4)


def test_a_sweep_without_distillation_is_refused(workspace: Path) -> None:
    config = load_config("smoke", sets=["train.variant=none"])
    with pytest.raises(WrongArgument, match="variant is none"):
        tune(config, str(workspace), 2)
