"""What was run and which model came of it: MLflow runs and the model registry. No other file imports mlflow.

Only the driver logs. Without `MLFLOW_TRACKING_URI` the runs stand in `mlflow.db` in the working folder and the models
in `mlartifacts` beside it. A registered model is a folder of safetensors and JSON; nothing in it is pickled, and no
code of it is run but the one line that calls `serve` here.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa

import diffseglung
from diffseglung.config import Config, digest, to_dict
from diffseglung.model import Model
from diffseglung.results import CaseResult, case_result, write_case
from diffseglung.schemas import RESULTS
from diffseglung.segment import segment
from diffseglung.volume import read_volume
from diffseglung_ray.config import TrackingConfig, UserError, WrongArgument
from diffseglung_ray.credentials import without_credentials

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")
SERVER_LOGIN = r"(https?://)([^/@]+)@"  # where a server's address brings a user and a password
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100  # MLflow's own limits
BEAT_S, SILENT_S = 20.0, 120.0  # a driver says so often that it lives; after so long a silence it does not


class ModelNotFound(WrongArgument):
    """A model that cannot be had: no such folder, name, version, alias or run, or it is not one of ours."""


class ModelRefused(UserError):
    """A registered version that does not load or does not segment; its alias was left where it was."""


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model on this machine: its folder, the address it was asked for by, and its version in the registry.

    `version` is the start of the model's digest where the model came from a folder or a run.
    """

    path: Path
    uri: str
    version: str


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """One version in the registry: `uri` is `models:/<name>/<version>`."""

    name: str
    version: str
    uri: str


@dataclass(frozen=True, slots=True)
class Run:
    """An open MLflow run, to be written to from the driver."""

    experiment_id: str
    id: str

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers at a global step, so that a restarted training draws one curve and not two."""
        self.log_curves([(step, metrics)])

    def log_curves(self, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Numbers at several steps, at once: each call waits for the tracking server."""
        mlflow = _mlflow()
        now = int(time.time() * 1000)
        points = [
            mlflow.entities.Metric(k, float(v), now, step) for step, row in steps for k, v in row.items()
        ]
        for first in range(0, len(points), METRICS_A_CALL):
            mlflow.MlflowClient().log_batch(self.id, metrics=points[first : first + METRICS_A_CALL])

    def log_config(self, config: Config) -> None:
        """The method's settings: searchable one by one, and whole as `config.json`."""
        mlflow = _mlflow()
        client = mlflow.MlflowClient()
        self.log_json("config.json", to_dict(config))
        params = [mlflow.entities.Param(name, str(value)) for name, value in _flat(to_dict(config)).items()]
        for first in range(0, len(params), PARAMS_A_CALL):
            client.log_batch(self.id, params=params[first : first + PARAMS_A_CALL])

    def log_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Plain values as a file of the run."""
        _mlflow().MlflowClient().log_dict(self.id, dict(values), name)

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """Image files, to be looked at under `pictures` in the run."""
        client = _mlflow().MlflowClient()
        with tempfile.TemporaryDirectory() as folder:
            for name, path in pictures.items():
                named = Path(folder) / f"{name}{path.suffix}"
                shutil.copyfile(path, named)
                client.log_artifact(self.id, str(named), "pictures")

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        _mlflow().MlflowClient().set_terminated(self.id, status)

    def tag(self, **tags: str) -> None:
        """Words to search runs by."""
        client = _mlflow().MlflowClient()
        for key, value in tags.items():
            client.set_tag(self.id, key, value)

    def beat(self) -> None:
        """Say that the driver of this run is alive, so that no other takes it over."""
        self.tag(driver=f"{socket.gethostname()} {os.getpid()} {time.time():.0f}")

    def log_text(self, name: str, text: str) -> None:
        """Text as a file of the run."""
        _mlflow().MlflowClient().log_text(self.id, text, name)

    def children(self, **tags: str) -> dict[str, str]:
        """The runs within this one that carry these tags: their id by their name."""
        asked = [
            f"tags.`{key}` = '{value}'" for key, value in {"mlflow.parentRunId": self.id, **tags}.items()
        ]
        found = _mlflow().MlflowClient().search_runs([self.experiment_id], " and ".join(asked))
        return {run.info.run_name: run.info.run_id for run in found}

    def last_step(self, metric: str) -> int:
        """The last step that a metric was logged at; 0 before the first."""
        return max((m.step for m in _mlflow().MlflowClient().get_metric_history(self.id, metric)), default=0)


def open_run(
    config: Config,
    tracking: TrackingConfig,
    *,
    name: str,
    manifest: bytes | None = None,
    parent: Run | None = None,
    init: str | None = None,
    go_on: bool = False,
    about: Mapping[str, str] | None = None,
) -> Run:
    """A new run with its settings, its commit and the digest of the data it learns from; `Run.end` closes it.

    `manifest` is the content of the workspace's `manifest.json`, `init` the model that it starts from. With `parent`
    the run is shown nested. With `go_on` it is the last one of that name, settings, data, start and parent, where
    that one did not reach its end: killed, failed, or left by a driver that is no more. `about` are more tags of the
    new run, which have to be the same to go on.
    """
    mlflow = _mlflow()
    client = mlflow.MlflowClient()
    experiment = parent.experiment_id if parent else _experiment(client, tracking.experiment)
    origin = {"config_sha256": digest(config), "mlflow.source.name": name, **(about or {})}
    if init is not None:
        origin["init"] = init
    if manifest is not None:
        origin["data_sha256"] = sha256(manifest).hexdigest()
    left = _unfinished(client, experiment, origin, parent) if go_on else None
    if left:
        client.update_run(left, status="RUNNING")
        run = Run(experiment, left)
        run.tag(went_on=time.strftime("%Y-%m-%d %H:%M:%S"))
        run.beat()
        return run
    tags = {"recipe": config.name, **origin, **_commit()}
    if parent:
        tags["mlflow.parentRunId"] = parent.id
    run = Run(experiment, client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    run.beat()
    run.log_config(config)
    if manifest is not None:
        client.log_text(run.id, manifest.decode(), "manifest.json")
    return run


def _unfinished(client: Any, experiment: str, origin: dict[str, str], parent: Run | None) -> str | None:
    """The id of the last run with these tags, where it neither finished nor is being driven."""
    asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in origin.items())
    found = client.search_runs([experiment], asked, max_results=50, order_by=["attributes.start_time DESC"])
    for one in found:
        tags = one.data.tags
        if tags.get("init") != origin.get("init"):
            continue
        if tags.get("mlflow.parentRunId") != (parent.id if parent else None):
            continue
        driven = one.info.status == "RUNNING" and _lives(tags.get("driver", ""))
        return None if driven or one.info.status == "FINISHED" else one.info.run_id
    return None


def _lives(driver: str) -> bool:
    """Whether the driver that left this mark is still at work; here its process tells, elsewhere its silence."""
    match = re.fullmatch(r"(\S+) (\d+) (\d+)", driver)
    if not match:
        return False
    host, process, beat = match.groups()
    if host == socket.gethostname() and (
        int(process) == os.getpid() or not Path(f"/proc/{process}").exists()
    ):
        return False
    return time.time() - int(beat) < SILENT_S


@contextmanager
def start_run(config: Config, tracking: TrackingConfig, **details: Any) -> Iterator[Run]:
    """`open_run` for a block: FINISHED at its end, FAILED where it raised, KILLED where it was interrupted."""
    run = open_run(config, tracking, **details)
    try:
        yield run
    except BaseException as error:
        run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.end("FINISHED")


def check_tracking(nodes: int) -> str:
    """The tracking address, with the database made ready once, here. `nodes` is how many machines the job spans.

    Errors: UserError in words where runs kept in a file would be out of the other machines' reach.
    """
    uri = tracking_uri()
    if nodes > 1 and _is_local(uri):
        raise UserError(
            f"the runs are tracked in {uri}, a file on this machine, but the cluster has {nodes} machines: start "
            "`mlflow server` where all of them reach it and set MLFLOW_TRACKING_URI to its address"
        )
    if uri.startswith("file:") or "://" not in uri:
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, and MLflow 3 no longer keeps runs in folders: use "
            "sqlite:////absolute/path/mlflow.db or the address of an MLflow server"
        )
    client = _mlflow().MlflowClient()
    try:
        client.search_registered_models(max_results=1)
    except Exception as error:
        raise UserError(f"no MLflow at {uri}: {_first_line(error)}") from error
    return uri


def tracking_uri() -> str:
    """Where runs are tracked: `MLFLOW_TRACKING_URI`, else `mlflow.db` here. Relative files are made absolute.

    The user and password of a server's address are left out: see `_log_in`.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "") or "sqlite:///mlflow.db"
    uri = re.sub(SERVER_LOGIN, r"\1", uri)
    relative = re.fullmatch(r"sqlite:///(?!/)(.+)", uri)
    return f"sqlite:///{Path(relative[1]).resolve()}" if relative else uri


def register_model(
    folder: Path,
    run: Run,
    tracking: TrackingConfig,
    *,
    alias: str,
    check: Path | None = None,
    about: Mapping[str, str] | None = None,
) -> RegisteredModel:
    """Put a saved model into the registry as a new version, and point `alias` at it once it has proved to work.

    `check` is a small scan that the version, loaded back from the registry, must segment; `about` are more tags of
    the version. Errors: ModelRefused.
    """
    mlflow = _mlflow()
    model = Model.load(folder)
    with tempfile.TemporaryDirectory() as copy, mlflow.start_run(run_id=run.id), _without_advice():
        named = shutil.copytree(folder, Path(copy) / "model")  # MLflow keeps a folder under its own name
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("registered_model.py")),
            artifacts={"model": str(named)},
            signature=_signature(),
            pip_requirements=_requirements(),
        )
    client = mlflow.MlflowClient()
    tags = {"model_sha256": model.sha256, "config_sha256": digest(model.config), "recipe": model.config.name}
    tags |= about or {}
    _ensure_registered(client, tracking.model)
    made = client.create_model_version(
        tracking.model, logged.model_uri, run_id=run.id, tags=tags, model_id=logged.model_id
    )
    version = RegisteredModel(tracking.model, str(made.version), f"models:/{tracking.model}/{made.version}")
    try:
        check_version(version, check, run)
    except Exception as error:
        client.set_model_version_tag(version.name, version.version, "check", f"failed: {_first_line(error)}")
        raise ModelRefused(
            f"{version.uri} was registered but does not work ({_first_line(error)}); alias {alias} was not moved"
        ) from error
    client.set_model_version_tag(version.name, version.version, "check", "passed")
    client.set_registered_model_alias(version.name, alias, version.version)
    return version


def check_version(version: RegisteredModel, scan: Path | None, run: Run | None = None) -> None:
    """Load a version as any user of the registry would and segment `scan` with it. Raises what goes wrong.

    The preview of that segmentation is kept in `run`.
    """
    mlflow = _mlflow()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch_model(version.uri, folder / "fetched")
        pickled = sorted(p.name for p in folder.rglob("*") if p.suffix in PICKLES)
        if pickled:
            raise ValueError(f"it holds pickled files: {', '.join(pickled)}")
        if scan is None:
            return
        # A copy: loaded where a local registry keeps it, MLflow and Python leave files of theirs there.
        copy = folder / "served"
        copy.mkdir()
        with _without_advice():
            served = mlflow.pyfunc.load_model(version.uri, dst_path=str(copy))
        row = served.predict(pd.DataFrame([{"image": str(scan), "out": str(folder / "cases")}])).iloc[0]
        if row["status"] != "ok":
            raise ValueError(f"it does not segment a test scan: {row['reason']}")
        if run is not None:
            run.log_pictures({"check": folder / "cases" / row["case_id"] / "preview.png"})


def fetch_model(uri: str | Path, into: Path | None = None) -> FetchedModel:
    """Bring a model to this machine: a folder, `models:/name@alias`, `models:/name/3` or `runs:/<id>`.

    Files are copied into `into` (a new temporary folder by default) and nothing of them is executed.
    Errors: ModelNotFound, saying what there is instead.
    """
    address = str(uri)
    if not re.match(r"(models|runs):/", address):
        return _model_folder(Path(address), address, None)
    into = into or Path(tempfile.mkdtemp(prefix="diffseglung-model-"))
    into.mkdir(parents=True, exist_ok=True)
    exact, version = _resolve(address)
    try:
        copied = _mlflow().artifacts.download_artifacts(artifact_uri=exact, dst_path=str(into))
    except Exception as error:
        raise ModelNotFound(
            f"{address} cannot be copied from {tracking_uri()}: {_first_line(error)}"
        ) from error
    return _model_folder(Path(copied) / "artifacts" / "model", address, version)


def serve() -> None:
    """Called by the code file of every registered model: hand MLflow a model made of the installed package."""
    _mlflow().models.set_model(_segmenter())


def _segmenter() -> Any:
    with _without_advice():
        from mlflow.pyfunc import PythonModel

    class Segmenter(PythonModel):
        """Scans in, one row of results each out; files too where `out` names a folder."""

        def load_context(self, context: Any) -> None:
            self.model = Model.load(Path(context.artifacts["model"]))

        def predict(
            self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> Any:
            rows = [_predict(self.model, row) for row in model_input.to_dict("records")]
            return pa.Table.from_pylist(rows, schema=RESULTS).to_pandas()

    return Segmenter()


def _predict(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    image = Path(request["image"])
    case_id = image.name.split(".")[0]
    try:
        volume = read_volume(image, config=model.config.volume)
        segmentation = segment(volume, model)
        origin = {"model_version": model.sha256[:12], "config_sha256": digest(model.config)}
        result = case_result(case_id, volume, segmentation, **origin)
        if request.get("out"):
            write_case(Path(request["out"]) / case_id, volume, segmentation, result)
    except ValueError as error:
        return CaseResult(case_id=case_id, status="failed", reason=str(error)).row()
    return result.row()


def _log_in() -> None:
    """Hand the user and password of the server's address to MLflow where it never prints them: it does print links."""
    login = re.match(SERVER_LOGIN, os.environ.get("MLFLOW_TRACKING_URI", ""))
    if login:
        user, _, password = login[2].partition(":")
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(user))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(password))


def _mlflow() -> Any:
    """mlflow, pointed at the right place, sending nothing home, and saying only what a user can act on."""
    _log_in()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    import mlflow

    uri = tracking_uri()
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    return mlflow


@contextmanager
def _without_advice() -> Iterator[None]:
    """MLflow's pyfunc asks for input examples and finer type hints, also of its own classes; our signature says it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\..*")
        yield


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return client.create_experiment(name)  # a server knows where its artifacts belong
    beside = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    return client.create_experiment(name, artifact_location=beside.resolve().as_uri())


def _ensure_registered(client: Any, name: str) -> None:
    if not any(m.name == name for m in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(name, description="Six-tissue segmentation of chest CT (diffseglung)")


def _signature() -> Any:
    """In: `image`, a path, and optionally `out`, a folder. Out: the columns of the results table."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs: list[Any] = [ColSpec("string", "image"), ColSpec("string", "out", required=False)]
    outputs: list[Any] = [
        ColSpec("string" if pa.types.is_string(f.type) else "double", f.name, False) for f in RESULTS
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _requirements() -> list[str]:
    """The direct requirements of the package as they are installed here; the package itself is on no index."""
    names = [
        re.split(r"[\s\[<>=!~;]", r, maxsplit=1)[0]
        for r in metadata.requires("diffseglung") or []
        if "extra ==" not in r
    ]
    return [f"{name}=={metadata.version(name)}" for name in names]


def _resolve(address: str) -> tuple[str, str | None]:
    """An address without aliases, and the version it means. Errors: ModelNotFound."""
    run = re.fullmatch(r"runs:/([^/]+)(?:/(.+))?", address)
    if run:
        return f"runs:/{run[1]}/{run[2] or 'model'}", None
    model = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    if not model:
        raise ModelNotFound(
            f"{address} is no model address: write models:/name@alias, models:/name/3 or runs:/<id>"
        )
    name, alias, version = model.groups()
    client = _mlflow().MlflowClient()
    try:
        known = {m.name: m for m in client.search_registered_models()}
    except Exception as error:
        raise ModelNotFound(
            f"{address}: no MLflow answers at {tracking_uri()} ({_first_line(error)}); a model's folder does without"
        ) from error
    if name not in known:
        there = ", ".join(sorted(known)) or "none yet; jobs/train.py makes one"
        raise ModelNotFound(f"no model {name!r} in the registry at {tracking_uri()}; there are: {there}")
    if alias:
        aliases = {key: str(value) for key, value in known[name].aliases.items()}
        if alias not in aliases:
            there = ", ".join(f"{a} (version {v})" for a, v in sorted(aliases.items())) or "none"
            raise ModelNotFound(f"{name} has no alias {alias!r}; its aliases are: {there}")
        version = aliases[alias]
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    if int(version) not in versions:
        raise ModelNotFound(
            f"{name} has no version {version}; there are: {', '.join(map(str, versions)) or 'none'}"
        )
    return f"models:/{name}/{version}", str(version)


def _model_folder(path: Path, address: str, version: str | None) -> FetchedModel:
    if not path.is_dir():
        raise ModelNotFound(
            f"no model folder at {address}" if version is None else f"{address} holds no model of ours"
        )
    try:
        digest = Model.load(path).sha256
    except (ValueError, OSError) as error:
        raise ModelNotFound(f"{address} holds no model that can be read: {_first_line(error)}") from error
    return FetchedModel(path.resolve(), address, version or digest[:12])


def _is_local(uri: str) -> bool:
    return uri.startswith(("sqlite:", "file:")) or "://" not in uri


def _commit() -> dict[str, str]:
    """The commit of the working tree that the package runs from, where it runs from one."""
    folder = Path(diffseglung.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if not (folder.parent / ".git").exists() or shutil.which("git") is None:
        return {}
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": said.stdout.strip()} if said.returncode == 0 else {}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return out


def _first_line(error: BaseException) -> str:
    return without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])
