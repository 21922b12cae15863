"""A sweep leaves a table, a page, nested runs and a model, the same ones twice, and nothing that holds the cluster."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
import ray
from bs4 import BeautifulSoup
from made_jobs import Ended, call_job
from made_workspace import made_workspace
from ray.util import placement_group_table

from diffseglung.feature_search import Setting, split_cases, timestep_sets
from diffseglung.model import Model
from diffseglung_ray.config import RunConfig, WrongArgument, load_config
from diffseglung_ray.sweep_order import NUMBER
from diffseglung_ray.tracking import Run, fetch_model, open_run, start_run
from diffseglung_ray.tuning import (
    PARAMETERS,
    Diary,
    Row,
    bounded_sample,
    in_one_line,
    mark_best,
    search,
    short,
    space_of,
    study_of,
    trial_workers,
    tune,
)
from diffseglung_ray.workspace import fit_standardiser, open_workspace

# Silhouettes, as in a training of six steps all students are called alike.
SETS = ["sweep.settings=12", "sweep.criterion=silhouette", "sweep.share=1"]
SMOKE = load_config("smoke", sets=SETS)
TRIALS, SETTINGS = 4, 12
RUNGS = SMOKE.sweep.rungs

pytestmark = pytest.mark.timeout(900)  # sweeps and a training, with processes to start


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
    sets = [word for assignment in SETS for word in ("--set", assignment)]
    words = ("--workspace", workspace, "--trials", TRIALS, "--recipe", "smoke", *sets)
    return call_job("tune", *words, cwd=tmp_path_factory.mktemp("home"), MLFLOW_TRACKING_URI=registry)


@pytest.fixture(scope="module")
def rows(swept: Ended, workspace: Path) -> list[Row]:
    """The sweep's table, read before another sweep writes its own."""
    assert swept.returncode == 0, swept.stderr
    return pq.read_table(workspace / "sweep.parquet").to_pylist()


@pytest.fixture(scope="module")
def page(rows: list[Row], workspace: Path) -> BeautifulSoup:
    return BeautifulSoup((workspace / "sweep.html").read_text(), "html.parser")


def of_stage(rows: list[Row], stage: str) -> list[Row]:
    return [row for row in rows if row["stage"] == stage]


def best_of(rows: list[Row], stage: str) -> Row:
    (best,) = [row for row in of_stage(rows, stage) if row["best"]]
    return best


def free_cpus(seconds: float = 30) -> float:
    """CPUs that nobody holds, once Ray has heard of those that were given back."""
    until = time.monotonic() + seconds
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < until:
        time.sleep(0.2)
    return ray.available_resources().get("CPU", 0)


def searched(config: RunConfig, workspace: Path, trials: int) -> list[Row]:
    """The trials of a sweep, without the full training after them."""
    there = open_workspace(str(workspace), config.method)
    teach, judge = split_cases(bounded_sample(there, config), config.train.batch)
    standardiser = fit_standardiser(there, config.method)
    method = short(config.method, config.sweep)
    study = study_of(config, method, standardiser, teach, judge, there, "both")
    with start_run(config.method, config.tracking, name="test") as run:
        return search(study, config, there, trials, run)


def test_the_job_says_what_it_found_and_a_person_can_follow(swept: Ended, rows: list[Row]) -> None:
    said = swept.stdout.splitlines()[-1]  # the tests' own Ray may have spoken before
    assert said.startswith("models:/diffseglung/1 is now models:/diffseglung@tuned, with temperature ")
    lines = [line.split() for line in swept.stderr.splitlines()]
    judged = [line for line in lines if line and "/" in line[0] and len(line) > 1 and line[1] == f"1/{RUNGS}"]
    assert {line[0] for line in judged} == {f"{number + 1}/{TRIALS}" for number in range(TRIALS)}
    assert any(line[:1] == [f"{SETTINGS}/{SETTINGS}"] for line in lines)


def test_the_job_warns_that_the_recipes_mode_does_not_look_at_features(swept: Ended) -> None:
    assert "mixture.mode anchored does not look at the student's features" in swept.stderr


def test_the_table_has_a_row_a_trial_and_starts_from_the_recipe(rows: list[Row]) -> None:
    trained, features = of_stage(rows, "train"), of_stage(rows, "features")
    assert [row["trial"] for row in trained] == list(range(TRIALS))
    assert [row["trial"] for row in features] == list(range(SETTINGS))
    own = space_of(SMOKE.method)[1]
    assert {name: trained[0][name] for name in PARAMETERS} == pytest.approx(own)
    assert features[0] | Setting.of(SMOKE.method).row() == features[0]
    for row in rows:
        assert row["criterion"] == SMOKE.sweep.criterion
        assert row["score"] == row["scores"][-1]
        assert row["scan_seconds"] > 0


def test_the_worse_trials_were_stopped_and_the_best_of_the_others_won(rows: list[Row]) -> None:
    trained = of_stage(rows, "train")
    assert sorted(row["rung"] for row in trained) == [1, 1, 2, 3]
    for row in trained:
        assert row["status"] == ("finished" if row["rung"] == RUNGS else "stopped")
        assert len(row["scores"]) == row["rung"]
        assert row["step"] == row["rung"] * short(SMOKE.method, SMOKE.sweep).train.steps // RUNGS
    best = best_of(rows, "train")
    assert best["rung"] == RUNGS
    stopped_first = [row["scores"][0] for row in trained if row["rung"] == 1]
    assert best["scores"][0] >= max(stopped_first)


def test_the_best_settings_are_trained_in_full_and_registered(rows: list[Row], tmp_path: Path) -> None:
    trained, features = best_of(rows, "train"), best_of(rows, "features")
    model = Model.load(fetch_model("models:/diffseglung@tuned", tmp_path).path)
    for name in ("temperature", "weight", "lr", "lr_heads"):
        assert getattr(model.config.train, name) == trained[name]
    assert model.config.student.embedding == trained["embedding"]
    assert model.config.train.steps == SMOKE.train.steps
    assert Setting.of(model.config).row() == {name: features[name] for name in Setting.of(model.config).row()}
    assert len(model.mixture.arrays["published.weights"]) == features["clusters"]
    assert features["score"] == max(row["score"] for row in of_stage(rows, "features"))


def test_the_version_and_its_run_know_the_sweep_they_came_from(rows: list[Row]) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("diffseglung", "tuned")
    assert version.tags["sweep"] == rows[0]["sweep"]
    assert version.tags["check"] == "passed"
    assert client.get_run(version.run_id).data.tags["mlflow.parentRunId"] == rows[0]["sweep"]


def test_each_trial_is_a_run_within_the_sweep_with_its_settings_and_its_criterion_over_time(
    rows: list[Row],
) -> None:
    client = mlflow.MlflowClient()
    sweep = client.get_run(rows[0]["sweep"])
    asked = f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'"
    children = client.search_runs([sweep.info.experiment_id], asked)
    assert {run.info.status for run in [sweep, *children]} == {"FINISHED"}
    names = sorted(run.info.run_name for run in children)
    assert names == ["features", "train smoke", *(f"trial {number + 1}" for number in range(TRIALS))]
    for row in of_stage(rows, "train"):
        run = client.get_run(row["run_id"])
        assert float(run.data.params["train.temperature"]) == row["temperature"]
        assert [m.value for m in client.get_metric_history(row["run_id"], "score")] == row["scores"]
        assert run.data.tags["sweep_status"] == row["status"]
    curve = client.get_metric_history(of_stage(rows, "features")[0]["run_id"], "score")
    assert [point.value for point in curve] == [row["score"] for row in of_stage(rows, "features")]


def test_the_page_shows_every_trial_of_both_stages(page: BeautifulSoup, rows: list[Row]) -> None:
    assert len(page.select("polyline.path")) == len(rows)
    assert [
        len(svg.select("polyline.best")) for svg in page.select("svg") if svg.select("polyline.path")
    ] == [1, 1]
    assert rows[0]["sweep"] in page.text


def test_nothing_is_left_on_the_cluster_after_trials_were_stopped(rows: list[Row]) -> None:
    assert any(row["status"] == "stopped" for row in rows)
    assert free_cpus() == ray.cluster_resources()["CPU"]
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


@pytest.fixture(scope="module")
def again(rows: list[Row], workspace: Path) -> list[Row]:
    return searched(SMOKE, workspace, TRIALS)


def test_the_same_seed_gives_the_same_trials_scores_and_best_configuration(
    again: list[Row], rows: list[Row]
) -> None:
    kept = (
        "trial",
        *PARAMETERS,
        "rung",
        "status",
        "scores",
        "timesteps",
        "combine",
        "clusters",
        "covariance",
    )
    first = [{name: row[name] for name in kept} for row in of_stage(rows, "train")]
    assert [{name: row[name] for name in kept} for row in again] == first
    assert mark_best(again)["trial"] == best_of(rows, "train")["trial"]


def test_a_trial_of_two_processes_is_stopped_whole(workspace: Path) -> None:
    sets = [*SETS, "sweep.workers_per_trial=2", "sweep.rungs=2", "sweep.max_concurrent_trials=2"]
    found = searched(load_config("smoke", sets=sets), workspace, 2)
    assert sorted(row["status"] for row in found) == ["finished", "stopped"]
    assert free_cpus() == ray.cluster_resources()["CPU"]
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


def test_trials_that_wait_for_nobody_are_stopped_too_and_leave_nothing(
    workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Asynchronous ASHA: who comes first may go on, so which trials are stopped depends on who is fast."""
    sets = [*SETS, "sweep.reproducible=false", "sweep.rungs=2", "sweep.reduction=2"]
    found = searched(load_config("smoke", sets=sets), workspace, 4)
    assert [row["trial"] for row in found] == list(range(4))
    for row in found:
        assert row["status"] == ("finished" if row["rung"] == 2 else "stopped")
        assert len(row["scores"]) == row["rung"]
    best = mark_best(found)
    assert best["rung"] == 2, "a trial that was stopped early cannot win"
    last = [line for line in capfd.readouterr().err.splitlines() if "(trial " in line][-1]
    assert f"{best['score']:.4f} (trial {best['trial'] + 1})" in last
    assert free_cpus() == ray.cluster_resources()["CPU"]


def test_the_features_of_a_model_that_is_there_are_searched_without_training(
    workspace: Path, model: Path, tmp_path: Path
) -> None:
    words = (SMOKE, str(workspace), SETTINGS, "features-alone", "features", str(model))
    best = tune(*words)
    rows = pq.read_table(workspace / "sweep.parquet").to_pylist()
    assert [row["stage"] for row in rows] == ["features"] * SETTINGS
    assert [row["temperature"] for row in rows] == [None] * SETTINGS
    made = Model.load(fetch_model(best.model.uri, tmp_path).path)
    assert Setting.of(made.config).row() == {name: best.row[name] for name in Setting.of(made.config).row()}
    weights, frozen = made.student.state_dict(), Model.load(model).student.state_dict()
    assert all((weights[name] == frozen[name]).all() for name in frozen)
    assert mlflow.MlflowClient().get_model_version_by_alias("diffseglung", "features-alone").tags["sweep"]
    assert Setting.of(made.config).timesteps in timestep_sets(SMOKE.method)


def test_a_trials_run_is_known_again_though_the_driver_was_killed_as_it_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(run: Run) -> None:
        raise ConnectionAbortedError

    sweep = open_run(SMOKE.method, SMOKE.tracking, name="tune smoke")
    monkeypatch.setattr(Run, "beat", killed)  # the first thing that is told of a run that is there
    trial = SimpleNamespace(config=space_of(SMOKE.method)[1] | {NUMBER: 0})
    for error in (ConnectionAbortedError, None):  # the driver that is killed, the one that goes on
        with pytest.raises(error) if error else nullcontext():
            Diary(SMOKE.method, SMOKE, sweep, TRIALS).on_trial_error(0, [], trial)
    client = mlflow.MlflowClient()
    made = client.search_runs([sweep.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.id}'")
    assert [(run.info.run_name, run.info.status) for run in made] == [("trial 1", "FAILED")]


def test_a_trial_is_the_same_training_in_little() -> None:
    demo = load_config("demo")
    brief = short(demo.method, demo.sweep).train
    full = demo.train
    assert brief.steps == full.steps / 4
    assert brief.warmup == (full.warmup[0] // 4, full.warmup[1] // 4)
    smoke = load_config("smoke")
    assert short(smoke.method, smoke.sweep).train.steps == smoke.sweep.rungs


@pytest.mark.parametrize("name", ["smoke", "demo", "paper"])
def test_what_a_recipe_asks_for_lies_within_what_is_searched(name: str) -> None:
    space, own = space_of(load_config(name).method)
    assert all(space[key]._contains(space[key].to_internal_repr(value)) for key, value in own.items())


WRONG: list[tuple[list[str], dict[str, Any], str]] = [
    (["train.variant=none"], {}, "variant is none"),
    ([], {"stage": "all"}, "--stage all is none of: train, features, both"),
    ([], {"model": "m"}, "--model is the student of --stage features"),
    (["sweep.workers_per_trial=3"], {}, "workers_per_trial 3: train.batch 4 does not split over 3"),
    (["student.channels=[8, 8, 8]"], {"stage": "features", "model": "MODEL"}, "another student than these"),
]


@pytest.mark.parametrize(("sets", "arguments", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_what_no_sweep_could_do_is_refused_before_it_starts(
    sets: list[str], arguments: dict[str, Any], words: str, workspace: Path, model: Path
) -> None:
    arguments = {key: str(model) if value == "MODEL" else value for key, value in arguments.items()}
    with pytest.raises(WrongArgument, match=words):
        tune(load_config("smoke", sets=sets), str(workspace), 2, **arguments)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("criterion=dice", "criterion 'dice' is none of: silhouette"),
        ("share=0", "sweep.share 0"),
        ("rungs=0", "counts everything from 1"),
        ("reduction=1", "sweep.reduction from 2"),
        ("gpus_per_trial=-1", "counted from 0"),
    ],
)
def test_settings_of_a_sweep_that_cannot_be_are_refused(assignment: str, words: str) -> None:
    with pytest.raises(WrongArgument, match=words):
        load_config("smoke", sets=[f"sweep.{assignment}"])


def test_several_trials_share_a_gpu_where_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Labels": {}, "Resources": {"CPU": 16.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    assert trial_workers(load_config("paper")).gpus == 0.5
    assert trial_workers(load_config("paper", sets=["sweep.gpus_per_trial=0.25"])).gpus == 0.25
    assert trial_workers(load_config("demo")).gpus == 1
    node["Resources"] = {"CPU": 16.0}
    assert trial_workers(load_config("paper")).gpus == 0


# Ray counts GPUs as it is told to: what shares them can be seen on a machine without any.
ON_ONE_GPU = """
import json, time
import ray
from ray import tune
from diffseglung_ray.cluster import Workers, keep_to_this_machine
from diffseglung_ray.trial import own_device
from diffseglung_ray.tuning import trial_resources

def trial(settings):
    began = time.time()
    time.sleep(3)
    tune.report({"span": (began, time.time()), "gpus": ray.get_gpu_ids(), "device": own_device()})

keep_to_this_machine()
ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False)
asks = tune.with_resources(trial, trial_resources(Workers(4, 1, 0.5, None)))
results = tune.Tuner(asks, tune_config=tune.TuneConfig(num_samples=4)).fit()
print(json.dumps([{key: one.metrics[key] for key in ("span", "gpus", "device")} for one in results]))
"""


def test_two_trials_of_half_a_gpu_run_on_one_at_once_and_a_third_waits(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_GPU], env=environment, capture_output=True, text=True, check=True
    )
    trials = json.loads(done.stdout.splitlines()[-1])
    assert all(len(one["gpus"]) == 1 and one["device"] == "cuda" for one in trials)
    begun = [one["span"][0] for one in trials]
    at_once = [sum(one["span"][0] <= moment < one["span"][1] for one in trials) for moment in begun]
    assert max(at_once) == 2


def test_what_tune_could_not_save_is_told_in_one_line() -> None:
    try:
        raise FileNotFoundError("work/experiment_state.json.tmp")
    except FileNotFoundError:
        said = ("Saving experiment state to '%s' failed with exception: ", ("work",), sys.exc_info())
    record = logging.LogRecord("ray.tune", logging.ERROR, __file__, 1, *said)
    assert in_one_line(record)
    assert logging.Formatter().format(record) == (
        "Saving experiment state to 'work' failed with exception: FileNotFoundError: work/experiment_state.json.tmp"
    )
