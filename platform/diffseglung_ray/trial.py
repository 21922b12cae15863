"""One trial of a sweep: a student trained for a short while, judged without a label at each rung.

A module of its own, and a light one: Ray imports it in every process of a trial.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray import tune as ray_tune
from torch.nn.parallel import DistributedDataParallel

from diffseglung.config import Config
from diffseglung.distill import Batch, Distillation, distill
from diffseglung.feature_search import (
    FITTED_PATCHES,
    JUDGED_PATCHES,
    Columns,
    Judge,
    Judgement,
    best_of,
    look,
    search_features,
)
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung_ray.config import SweepConfig
from diffseglung_ray.processes import import_network, use_threads
from diffseglung_ray.training_process import COLUMNS, in_memory

Settings = dict[str, Any]
TRAINED = ("temperature", "weight", "lr", "lr_heads")  # of the training; `embedding` is of the student


@dataclass(frozen=True, slots=True)
class Study:
    """What every trial is told. `teach` and `judge` are patches in Ray's object store, one copy for all.

    `tiles` is how many tiles a usual scan has, `cpus` and `gpus` what each process of a trial gets, `inner` whether
    each trial also searches its features.
    """

    config: Config
    standardiser: Standardiser
    sweep: SweepConfig
    teach: ray.ObjectRef
    judge: ray.ObjectRef
    inner: bool
    tiles: float
    cpus: int
    gpus: float

    def config_of(self, settings: Settings) -> Config:
        """The short training with a trial's settings."""
        return put_into(self.config, settings)


def put_into(config: Any, settings: Settings) -> Any:
    """A config with the settings of a trial, whatever else stands beside them."""
    return replace(
        config,
        train=replace(config.train, **{name: settings[name] for name in TRAINED}),
        student=replace(config.student, embedding=settings["embedding"]),
    )


def trial(settings: Settings, study: Study) -> None:
    """Train from the last rung on, in this process and as many beside it as a trial has, and report at each rung."""
    began = time.perf_counter()
    use_threads(study.cpus)
    import_network()
    config = study.config_of(settings)
    teach, judge = ray.get([study.teach, study.judge])
    state, scores = _restored()
    world = study.sweep.workers_per_trial
    last = config.train.steps
    rungs = [last * (i + 1) // study.sweep.rungs for i in range(study.sweep.rungs)]
    with beside(study, settings, state):
        run = started(config, study.standardiser, state)
        # Killed after its last rung and before its end: nothing is left but to say again what it came to.
        steps = iter([last]) if run.step >= last else process(run, teach, 0, world)
        for step in steps:
            if step not in rungs:
                continue
            judged, per_tile = judge_student(run.ema, teach, judge, config, study)
            best = best_of(judged)
            scores = [*scores[: rungs.index(step)], best.score]
            _report(run, best, scores, step, per_tile * study.tiles, time.perf_counter() - began)


def judge_student(
    student: Student, teach: Columns, judge: Columns, config: Config, study: Study
) -> tuple[list[Judgement], float]:
    """What some settings of the features come to, the recipe's own first, and seconds a tile and timestep."""
    began = time.perf_counter()
    seen = look(student.eval(), teach, judge, config, study.standardiser)
    asked = len(seen.timesteps) * (
        min(FITTED_PATCHES, len(teach["hu"])) + 2 * min(JUDGED_PATCHES, len(judge["hu"]))
    )
    per_tile = (time.perf_counter() - began) / asked
    asks = Judge(seen, config, study.standardiser)
    count = study.sweep.settings_in_trial if study.inner else 1
    return list(search(asks, study, config, count)), per_tile


def _report(
    run: Distillation, best: Judgement, scores: list[float], step: int, scan_s: float, seconds: float
) -> None:
    with tempfile.TemporaryDirectory(prefix="diffseglung-") as folder:
        torch.save(run.state_dict() | {"scores": scores}, Path(folder) / "state.pt")
        ray_tune.report(
            {
                "rung": len(scores),
                "step": step,
                "score": best.score,
                "scores": scores,
                "setting": asdict(best.setting),
                "scan_seconds": scan_s * len(best.setting.timesteps),
                "seconds": seconds,
            },
            checkpoint=ray_tune.Checkpoint.from_directory(folder),
        )


def _restored() -> tuple[dict[str, Any] | None, list[float]]:
    """The state that the last rung left, and the scores up to it."""
    checkpoint = ray_tune.get_checkpoint()
    if checkpoint is None:
        return None, []
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    return state, state.pop("scores")


def started(config: Config, standardiser: Standardiser, state: dict[str, Any] | None) -> Distillation:
    """A distillation at its start, or where it was left."""
    run = Distillation(config.student, config.train, standardiser, own_device())
    if state is not None:
        run.load_state_dict(state)
    return run


def own_device() -> str:
    """A GPU where this process was given one or a share of one."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def process(run: Distillation, teach: Columns, rank: int, world: int) -> Iterator[int]:
    """One of a trial's processes: each step of the training, from where it stands."""
    forward = DistributedDataParallel(run.network) if world > 1 else None
    for step, _ in distill(run, batches(run, teach, rank, world), forward=forward, rank=rank, world=world):
        yield step


def batches(run: Distillation, teach: Columns, rank: int, world: int) -> Iterator[Batch]:
    """Micro-batches without end of every `world`-th patch, as if the run had never stopped."""
    whole = len(teach["hu"]) - len(teach["hu"]) % world
    micro = run.config.micro_batch(world)
    # Copies: what lies in the object store may not be written to, of which torch would warn.
    epoch_of = in_memory({name: teach[name][rank:whole:world].copy() for name in COLUMNS}, micro)
    epoch, passed = divmod(run.step * run.config.accumulate, whole // world // micro)
    while True:
        yield from islice(epoch_of(run.config.seed + epoch), passed, None)
        epoch, passed = epoch + 1, 0


@contextmanager
def beside(study: Study, settings: Settings, state: dict[str, Any] | None) -> Iterator[None]:
    """The other processes of a larger trial, in the trial's own placement group, for as long as the block lasts.

    They are actors that this trial starts and drives, so that Tune gives back all that they hold when it stops the
    trial. Ray Train within Tune would reserve for itself, and its reservations outlive a trial that is killed.
    """
    world = study.sweep.workers_per_trial
    if world == 1:
        yield
        return
    address = f"tcp://{ray.util.get_node_ip_address()}:{_free_port()}"
    companion: Any = ray.remote(num_cpus=study.cpus, num_gpus=study.gpus)(Companion)
    others = [companion.remote(rank, world, address) for rank in range(1, world)]
    try:
        for other in others:
            other.work.remote(study, settings, state)
        join(0, world, address, study.gpus >= 1)
        yield
    finally:
        for other in others:
            ray.kill(other)
        if dist.is_initialized():
            dist.destroy_process_group()


class Companion:
    """Another process of a larger trial."""

    def __init__(self, rank: int, world: int, address: str) -> None:
        self.rank, self.world, self.address = rank, world, address

    def work(self, study: Study, settings: Settings, state: dict[str, Any] | None) -> None:
        """Train with the others until the trial ends."""
        use_threads(study.cpus)
        import_network()
        join(self.rank, self.world, self.address, study.gpus >= 1)
        run = started(study.config_of(settings), study.standardiser, state)
        for _ in process(run, ray.get(study.teach), self.rank, self.world):
            pass


def join(rank: int, world: int, address: str, whole_gpus: bool) -> None:
    """Meet the trial's other processes."""
    # NCCL refuses two processes on one GPU, which shares of one would be.
    backend = "nccl" if own_device() == "cuda" and whole_gpus else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def searched(study: Study, student: Student, config: Config, count: int) -> Iterator[tuple[Judgement, float]]:
    """A search of the features of a finished student: each judgement, and seconds that its features cost a scan."""
    use_threads(study.cpus)
    import_network()
    teach, judge = ray.get([study.teach, study.judge])
    began = time.perf_counter()
    seen = look(student.to(own_device()).eval(), teach, judge, config, study.standardiser)
    asked = min(FITTED_PATCHES, len(teach["hu"])) + 2 * min(JUDGED_PATCHES, len(judge["hu"]))
    per_timestep = (time.perf_counter() - began) / asked / len(seen.timesteps) * study.tiles
    asks = Judge(seen, config, study.standardiser)
    for one in search(asks, study, config, count):
        yield one, per_timestep * len(one.setting.timesteps)


def search(asks: Judge, study: Study, config: Config, count: int) -> Iterator[Judgement]:
    """So many settings of the features, judged as the study is told to."""
    criterion = study.sweep.criterion
    score = partial(asks.score, criterion=criterion)
    return search_features(score, config, count, config.train.seed, criterion)


def usual_tiles(lung_ml: np.ndarray, config: Config) -> float:
    """How many tiles the lungs of a usual scan take: their volume by what a tile adds, half as many again at edges."""
    step_ml = np.prod([
        size * (1 - config.patches.overlap) * mm
        for size, mm in zip(config.patches.size_vox, config.patches.spacing_mm, strict=True)
    ]) / 1000  # fmt: skip
    return float(1.5 * np.nanmean(lung_ml) / step_ml)
