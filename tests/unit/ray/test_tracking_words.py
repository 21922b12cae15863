"""Runs are written down where the user said, and what cannot work is refused in words."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from diffseglung.config import Config, digest, recipe
from diffseglung_ray import tracking
from diffseglung_ray.config import TrackingConfig, UserError
from diffseglung_ray.tracking import (
    ModelNotFound,
    Run,
    check_tracking,
    fetch_model,
    open_run,
    start_run,
    tracking_uri,
)

CONFIG = recipe("smoke")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield folder


def client() -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri())


def test_runs_stand_in_the_working_folder_unless_a_server_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri() == "http://mlflow:5000"


def test_a_file_is_refused_where_the_job_spans_machines(registry: Path) -> None:
    with pytest.raises(UserError, match=r"2 machines.*MLFLOW_TRACKING_URI"):
        check_tracking(nodes=2)
    assert check_tracking(nodes=1).endswith("mlflow.db")


def test_a_folder_of_runs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    with pytest.raises(UserError, match="no longer keeps runs in folders"):
        check_tracking(nodes=1)


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ModelNotFound, match=r"no MLflow answers at http://127\.0\.0\.1:9.*a model's folder does"
    ):
        fetch_model("models:/diffseglung@champion")
    with pytest.raises(UserError, match=r"no MLflow at http://127\.0\.0\.1:9"):
        check_tracking(nodes=1)


def test_a_run_carries_settings_data_and_curve(registry: Path) -> None:
    with start_run(CONFIG, TrackingConfig(), name="train", manifest=b'{"cases": 3}') as run:
        run.log_metrics(5, {"loss": 0.5})
        run.log_metrics(10, {"loss": 0.25})
    found = client().get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params["train.lr"] == str(CONFIG.train.lr)
    assert found.data.tags["config_sha256"] == digest(CONFIG)
    assert len(found.data.tags["data_sha256"]) == 64
    assert [(m.step, m.value) for m in client().get_metric_history(run.id, "loss")] == [(5, 0.5), (10, 0.25)]
    assert {f.path for f in client().list_artifacts(run.id)} == {"config.json", "manifest.json"}
    assert (registry / "mlartifacts").is_dir()


def left_behind(status: str, **details: str) -> Run:
    """A run that its driver did not bring to its end."""
    run = open_run(CONFIG, TrackingConfig(), name="train", manifest=b"{}", **details)
    if status != "RUNNING":
        run.end(status)
    return run


def again(config: Config = CONFIG, **details: str) -> str:
    """The id of the run that the same training would write to now."""
    run = open_run(config, TrackingConfig(), name="train", manifest=b"{}", go_on=True, **details)
    run.end("FINISHED")
    return run.id


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_a_training_that_did_not_end_goes_on_in_its_run(registry: Path, status: str) -> None:
    first = left_behind(status)
    first.log_metrics(7, {"loss": 0.5})
    other = replace(CONFIG, train=replace(CONFIG.train, lr=1e-5))
    assert again(other) != first.id
    assert again(init="models:/diffseglung/1") != first.id
    assert again() == first.id
    assert first.last_step("loss") == 7
    assert again() != first.id  # it has finished


def test_a_training_from_a_model_is_not_gone_on_with_by_one_from_scratch(registry: Path) -> None:
    first = left_behind("KILLED", init="models:/diffseglung/1")
    assert again() != first.id
    assert left_behind("KILLED", init="models:/diffseglung/1").id == again(init="models:/diffseglung/1")


def test_a_run_that_is_being_driven_is_left_alone(registry: Path) -> None:
    first = left_behind("RUNNING")
    first.tag(driver=f"elsewhere 1 {time.time() - 30:.0f}")
    assert again() != first.id
    silent = left_behind("RUNNING")
    silent.tag(driver=f"elsewhere 1 {time.time() - 300:.0f}")
    assert again() == silent.id
    here = left_behind("RUNNING")
    here.tag(driver=f"{socket.gethostname()} {os.getppid()} {time.time():.0f}")
    assert again() != here.id


def test_other_data_have_another_digest(registry: Path) -> None:
    digests = set()
    for manifest in (b"{}", b'{"cases": 3}'):
        with start_run(CONFIG, TrackingConfig(), name="train", manifest=manifest) as run:
            pass
        digests.add(client().get_run(run.id).data.tags["data_sha256"])
    assert len(digests) == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_says_how_it_ended(registry: Path, error: type[BaseException], status: str) -> None:
    kept: list[Run] = []

    def broken() -> None:
        with start_run(CONFIG, TrackingConfig(), name="train") as run:
            kept.append(run)
            raise error

    with pytest.raises(error):
        broken()
    assert client().get_run(kept[0].id).info.status == status


def test_trials_are_nested_in_their_sweep(registry: Path) -> None:
    other = replace(CONFIG, train=replace(CONFIG.train, temperature=0.2))
    with (
        start_run(CONFIG, TrackingConfig(), name="tune") as sweep,
        start_run(other, TrackingConfig(), name="trial 1", parent=sweep) as trial,
    ):
        pass
    found = client().get_run(trial.id)
    assert found.data.tags["mlflow.parentRunId"] == sweep.id
    assert found.data.params["train.temperature"] == "0.2"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/nobody@champion", "no model 'nobody'.*none yet"),
        ("models:/x", "models:/name@alias, models:/name/3 or runs:/<id>"),
        ("runs:/0123", "cannot be copied"),
        ("no/such/folder", "no model folder at no/such/folder"),
    ],
)
def test_a_model_that_is_not_there_is_refused_in_words(registry: Path, address: str, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words):
        fetch_model(address)


def test_requirements_are_pinned_and_hold_no_name_that_others_could_claim() -> None:
    pins = tracking._requirements()
    assert all("==" in pin for pin in pins)
    names = {pin.split("==")[0] for pin in pins}
    assert {"torch", "ray", "mlflow", "safetensors"} <= names
    assert "diffseglung" not in names
    assert "pytest" not in names
