"""Ray Train drives `diffseglung.distill` on as many processes as there are, and hands the model to the registry.

The loop knows nothing of Ray: here it is given a stream of patches and a data-parallel wrapper. What it yields
travels through a mailbox to the driver, which alone writes to MLflow and draws the progress; Ray Train is told only
of checkpoints.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.numpy import load_file

from diffseglung.config import Config
from diffseglung.distill import TrainConfig, collapse
from diffseglung.labels import TISSUES
from diffseglung.mixture import LABELLED, CellTable, Mixture, correctable, fit_mixture
from diffseglung.model import Model
from diffseglung.phantom import PhantomConfig, make_phantom
from diffseglung.prepare import labelled_cells
from diffseglung.report.training import draw_clusters, draw_samples
from diffseglung.schemas import patches_schema
from diffseglung.student import Student, StudentConfig
from diffseglung.teacher import TEACHER, Standardiser
from diffseglung.volume import Volume, write_volume
from diffseglung_ray.cluster import (
    Workers,
    free_placements,
    placements,
    ray_cluster,
    refuse_fleeting,
    train_workers,
)
from diffseglung_ray.cohort import find_cohort, read_case, read_truth
from diffseglung_ray.config import RunConfig, UserError, WrongArgument
from diffseglung_ray.credentials import without_credentials
from diffseglung_ray.fitting import gather_cells
from diffseglung_ray.progress import progress
from diffseglung_ray.reports import Mailbox, Report
from diffseglung_ray.tracking import (
    BEAT_S,
    RegisteredModel,
    Run,
    check_tracking,
    fetch_model,
    register_model,
    start_run,
)
from diffseglung_ray.training_process import COLUMNS, MEMORY_BYTES, SAMPLES, Job, load_state, train_process
from diffseglung_ray.workspace import Workspace, cpus_beside_readers, fit_standardiser, open_workspace

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
WORKER_FAILURES = 3
CONTROLLER_FAILURES = 3  # of the process by which Ray Train directs the others
CHECK_PHANTOM = PhantomConfig(size_vox=(48, 80, 80), spacing_mm=(5.0, 4.0, 4.0))


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training left in the registry, and the last numbers of its run."""

    version: str
    uri: str
    run_id: str
    metrics: dict[str, float]


def train(
    config: RunConfig,
    place: str,
    init: str | None = None,
    alias: str | None = None,
    parent: Run | None = None,
    choose: Callable[[Student, Standardiser], Config] | None = None,
    labels: str | None = None,
) -> TrainedModel:
    """Train on a prepared workspace, fit the mixture, register the model and point `alias` at it.

    A training with the same settings on the same patches that was killed before its end goes on from its last
    checkpoint, in its own MLflow run. `init` is a model (folder or MLflow address) whose student's weights are the
    start; `choose` says, once the student is trained, with which settings of features and mixture it goes on; with
    `parent` it is the last part of a sweep. `labels` is a manifest of annotated scans, which correct the mixture and
    never the student: that model is not label-free. Starts or joins Ray once the arguments have proved sound.
    Errors: UserError, in words.
    """
    refuse_fleeting(workspace=place, init=init, labels=labels)
    workspace = open_workspace(place, config.method)
    if config.method.mixture.mode == LABELLED and not labels:
        raise WrongArgument(f"mixture.mode {LABELLED} needs annotated scans: name their manifest, --labels")
    annotated = read_annotated(labels, config.method) if labels else None
    weights = _weights(init, config.student)
    with ray_cluster(config.resources):
        check_tracking(nodes_in_cluster())
        workers = train_workers(config.resources)
        check_sizes(workspace.patches, config.train, workers.count)
        standardiser = fit_standardiser(workspace, config.method)
        name = f"train {config.name}"
        details = {"name": name, "manifest": workspace.manifest, "parent": parent, "init": init}
        asked = {"labels": labels or "none"}
        with start_run(config.method, config.tracking, **details, about=asked, go_on=True) as run:
            run.log_json("standardiser.json", {"names": list(TEACHER.names), **standardiser.to_dict()})
            student, metrics, drawn = distil(config, workspace, standardiser, workers, run, weights)
            method = choose(student, standardiser) if choose else config.method
            info = {
                "run_id": run.id,
                "patches": workspace.patches,
                "steps": config.train.steps,
                "metrics": metrics,
            }
            about = {"sweep": parent.id} if parent else {}
            model, cells = fitted(method, student, standardiser, workspace, workers, info | about)
            if annotated:
                model = corrected(model, annotated)
                about["label_free"] = f"no: {len(annotated.scans)} labelled scans"
            log_pictures(run, drawn, cells, model.mixture)
            version = publish(model, run, config, alias or config.tracking.alias, about)
    return TrainedModel(version.version, version.uri, run.id, metrics)


def fitted(
    method: Config,
    student: Student,
    standardiser: Standardiser,
    workspace: Workspace,
    workers: Workers,
    info: dict[str, Any],
) -> tuple[Model, pa.Table]:
    """The model that a trained student becomes with the mixture of its cells, and these cells."""
    cells = gather_cells(student, method.features, workspace, workers)
    mixture = fit_mixture(cells, method.mixture, method.tissue, standardiser)
    return Model(method, student, standardiser, mixture, info), cells


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """The cells of some scans whose tissue (n,) somebody drew."""

    scans: list[str]
    cells: CellTable
    tissue: np.ndarray


def read_annotated(labels: str, method: Config) -> Annotated:
    """The annotated cells of a manifest's scans: known before anything is trained, so that nothing is trained in vain.

    Errors: WrongArgument where it names a scan without a truth; UserError where one cannot be read, or too little of
    them all is labelled.
    """
    cases = find_cohort(labels)
    bare = [
        case.problem or f"{case.case_id} has no truth" for case in cases if case.problem or not case.truth
    ]
    if bare:
        raise WrongArgument(
            f"--labels {labels}: {'; '.join(bare[:3])}. Name an image and a label map, column truth, of each"
        )
    parts = []
    for case in progress(cases, len(cases), "labels", unit="scan"):
        try:
            loaded = read_case(case.row(), method.volume)
            truth = read_truth(case.truth, loaded.volume)
            parts.append(labelled_cells(loaded.volume, truth, method, loaded.lungs))
        except (ValueError, OSError) as error:
            raise UserError(f"--labels, {case.case_id}: {error}") from error
    cells, tissue = CellTable.together([cells for cells, _ in parts]), np.concatenate([t for _, t in parts])
    try:
        correctable(cells, tissue)
    except ValueError as error:
        raise UserError(f"--labels: {error}") from error
    return Annotated([case.case_id for case in cases], cells, tissue)


def corrected(model: Model, annotated: Annotated) -> Model:
    """The model whose mixture was shown the annotated cells; its mode is `labelled`."""
    mixture = model.mixture.taught(annotated.cells, annotated.tissue)
    config = replace(model.config, mixture=replace(model.config.mixture, mode=LABELLED))
    counts = {t.key: int((annotated.tissue == t).sum()) for t in TISSUES}
    info = model.info | {"labels": {"scans": annotated.scans, "cells": counts}}
    return replace(model, config=config, mixture=replace(mixture, config=config.mixture), info=info)


def log_pictures(run: Run, drawn: dict[str, np.ndarray], cells: pa.Table, mixture: Mixture) -> None:
    """What the student draws beside real patches, and how its cells cluster, to be looked at in the run."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = {name: Path(folder) / f"{name}.png" for name in ("samples", "clusters")}
        draw_samples(pictures["samples"], drawn["real_hu"], drawn["sampled_hu"])
        draw_clusters(pictures["clusters"], CellTable.from_arrow(cells), mixture)
        run.log_pictures(pictures)


def publish(
    model: Model, run: Run, config: RunConfig, alias: str, about: dict[str, str] | None = None
) -> RegisteredModel:
    """Save, register, prove on a digital phantom, point the alias; the proof's picture stays with the run."""
    with tempfile.TemporaryDirectory() as folder:
        scan = write_check_scan(Path(folder) / "phantom.nii.gz")
        saved = model.save(Path(folder) / "model")
        return register_model(saved, run, config.tracking, alias=alias, check=scan, about=about)


def write_check_scan(path: Path) -> Path:
    """A small digital chest that every model must be able to segment before anyone is pointed at it."""
    phantom = make_phantom(0, CHECK_PHANTOM)
    write_volume(path, Volume.from_array(phantom.hu, phantom.spacing_mm))
    return path


def nodes_in_cluster() -> int:
    """Machines that are alive; several Ray nodes on one machine count once."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


def check_sizes(patches: int, train: TrainConfig, world: int) -> None:
    """Refuse a batch that does not divide over the processes, or that they could never fill."""
    try:
        micro = train.micro_batch(world)
    except ValueError as error:
        raise WrongArgument(str(error)) from error
    if patches // world < micro:
        raise WrongArgument(
            f"{patches} patches over {world} processes do not fill a batch of {train.batch}: prepare more cases, "
            "or lower train.batch"
        )


def distil(
    config: RunConfig,
    workspace: Workspace,
    standardiser: Standardiser,
    workers: Workers,
    run: Run,
    init: dict[str, torch.Tensor] | None = None,
) -> tuple[Student, dict[str, float], dict[str, np.ndarray]]:
    """The trained student (its moving average), the last metrics, and patches drawn beside real ones."""
    fewest = min(config.resources.min_workers or workers.count, workers.count)
    patch_bytes = _patch_bytes(config)
    job = Job(
        student=config.student,
        train=config.train,
        standardiser=standardiser,
        init=init,
        workspace=workspace,
        held=workspace.patches // fewest * patch_bytes <= MEMORY_BYTES,
        patch_bytes=patch_bytes,
        threads=workers.cpus,
    )
    # Where the driver is: it lives as long as that, and no other node takes it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
    options = ray.data.ExecutionOptions(preserve_order=True)  # the same rows for each rank in every run

    def trainer() -> TorchTrainer:
        return TorchTrainer(
            train_process,
            train_loop_config={"job": job, "mailbox": mailbox},
            scaling_config=_scaling(config, workers, job.held),
            run_config=ray.train.RunConfig(
                name=run.id,
                storage_path=config.storage.checkpoints or workspace.store.path("checkpoints"),
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.storage.keep_checkpoints),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
            ),
            datasets={} if job.held else {"patches": workspace.read(COLUMNS, seed=job.train.seed)},
            dataset_config=ray.train.DataConfig(execution_options=options),
        )

    result = follow(lambda: fit(trainer), mailbox, run, job.train)
    student = Student(job.student)
    assert result.checkpoint, "the last step always leaves a checkpoint"
    assert result.metrics, "and metrics with it"
    student.load_state_dict(load_state(result.checkpoint)["ema"])
    with result.checkpoint.as_directory() as folder:
        drawn = load_file(Path(folder) / SAMPLES)
    metrics = {key: float(value) for key, value in result.metrics.items() if isinstance(value, int | float)}
    return student.eval().requires_grad_(False), metrics, drawn


def fit(trainer: Callable[[], TorchTrainer]) -> ray.train.Result:
    """Train; where the process that directs the others dies, a new one goes on from the last checkpoint."""
    for left in range(CONTROLLER_FAILURES, 0, -1):
        before = set(placements())
        try:
            return trainer().fit()
        except ray.exceptions.RayActorError as error:
            logger.warning("training goes on from storage, %d times more at most: %s", left, error)
            free_placements(set(placements()) - before)
    return trainer().fit()


def _scaling(config: RunConfig, workers: Workers, held: bool) -> ray.train.ScalingConfig:
    # Without readers to leave room for, whole CPUs: with less, Ray would put both workers of two small nodes on one.
    cpus = workers.cpus if held else cpus_beside_readers(workers)
    fewest = config.resources.min_workers
    return ray.train.ScalingConfig(
        num_workers=(fewest, workers.count) if fewest and fewest < workers.count else workers.count,  # type: ignore[arg-type]
        use_gpu=workers.gpus > 0,
        resources_per_worker={
            "CPU": cpus,
            **({"GPU": workers.gpus} if workers.gpus else {}),
        },
        label_selector=workers.label_selector,  # type: ignore[call-arg]
    )


def follow(
    fit: Callable[[], ray.train.Result], mailbox: Any, run: Run, train: TrainConfig
) -> ray.train.Result:
    """Run `fit` in the background while this process logs its reports, draws its progress and warns of a collapse."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = fit()
        except BaseException as error:
            outcome["error"] = error

    # A daemon, so that an interrupted driver ends at once instead of waiting for the cluster.
    thread = threading.Thread(target=work, name="ray-train", daemon=True)
    thread.start()
    for _ in progress(_steps(thread, mailbox, run, train), train.steps, "train", unit="step"):
        pass
    if "error" in outcome:
        raise in_words(outcome["error"]) from outcome["error"]
    return outcome["result"]


def _steps(thread: threading.Thread, mailbox: Any, run: Run, train: TrainConfig) -> Iterator[int]:
    """Each optimiser step as it becomes known; its report is logged on the way, and once."""
    done, waiting, warned, beaten = 0, [], "", 0.0
    logged = run.last_step("loss")  # by an earlier driver of this run
    while True:
        alive = thread.is_alive()
        new = ray.get(mailbox.take.remote())
        if not warned and (warned := next(filter(None, (collapse(one, train) for one in new)), "")):
            logger.warning(warned)
            run.tag(collapse=warned)
        waiting += new
        for one in list(waiting):
            while done < one["step"]:
                done += 1
                yield done
        # What a process that went on from a checkpoint reports again is known.
        fresh = {int(one["step"]): one for one in reversed(waiting) if one["step"] > logged}
        waiting = _log([fresh[step] for step in sorted(fresh)], run)
        logged = max([logged, *(step for step in fresh if not waiting or step < waiting[0]["step"])])
        if time.monotonic() - beaten > BEAT_S:
            beaten = time.monotonic()
            _beat(run)
        if not alive:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _beat(run: Run) -> None:
    try:
        run.beat()
    except Exception as error:
        logger.warning("MLflow did not take the driver's sign of life: %s", error)


def _log(reports: list[Report], run: Run) -> list[Report]:
    """Write reports to MLflow; those that it would not take now are given back, to be tried again."""
    for index, one in enumerate(reports):
        try:
            run.log_metrics(int(one["step"]), {k: v for k, v in one.items() if k != "step"})
        except Exception as error:
            # A tracking server that is away for a while must not end days of training.
            logger.warning(
                "MLflow did not take the metrics of step %d: %s", one["step"], without_credentials(str(error))
            )
            return reports[index:]
    return []


def in_words(error: BaseException) -> BaseException:
    """What a worker refused in words, without the layers around it; anything else as it is, traceback and all."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, ValueError | FloatingPointError):
            return UserError(str(cause))
    return error


def _weights(init: str | None, student: StudentConfig) -> dict[str, torch.Tensor] | None:
    """The weights of the model to start from. Errors: WrongArgument where its network is another one."""
    if init is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(fetch_model(init, Path(folder)).path)
    if model.config.student != student:
        raise WrongArgument(f"--init {init} has another network than these settings: {model.config.student}")
    return model.student.state_dict()


def _patch_bytes(config: RunConfig) -> int:
    schema = patches_schema(config.patches, config.student)
    types = [schema.field(name).type for name in COLUMNS]
    return sum(int(np.prod(t.shape)) * t.value_type.bit_width // 8 for t in types)
