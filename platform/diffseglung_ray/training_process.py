"""One process of a training: its share of the patches through `diffseglung.distill`, with reports and checkpoints.

A module of its own, since Ray Train's controller imports it too and should not wait for what the driver needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.data import DataIterator
from ray.train.torch import get_device, prepare_model
from safetensors.numpy import save_file

from diffseglung.distill import Batch, Distillation, TrainConfig, distill
from diffseglung.generate import sample
from diffseglung.student import Student, StudentConfig
from diffseglung.teacher import Standardiser
from diffseglung_ray.metrics import patches_seen
from diffseglung_ray.processes import import_network, use_threads
from diffseglung_ray.reports import Report
from diffseglung_ray.workspace import Workspace

COLUMNS = ("hu", "lungs", "teacher", "teacher_local")
MEMORY_BYTES = 512 * 2**20  # of patches that each process holds to draw from, so that a batch mixes patients
REPORTS_A_RUN = 200
UPLOADS = ray.train.CheckpointUploadMode
SAMPLES, SAMPLES_DRAWN = "samples.safetensors", 6  # beside the last state: what the student draws


@dataclass(frozen=True, slots=True)
class Job:
    """What every training process is told.

    `held`: each process holds its share of the patches, and none needs to be fed by Ray Data, which takes a quarter
    of a minute to start, and starts anew for each epoch.
    """

    student: StudentConfig
    train: TrainConfig
    standardiser: Standardiser
    init: dict[str, torch.Tensor] | None
    workspace: Workspace
    held: bool
    patch_bytes: int
    threads: int


def train_process(config: dict[str, Any]) -> None:
    """One training process: its shard of the patches through `distill`, with reports and checkpoints."""
    job: Job = config["job"]
    use_threads(job.threads)
    import_network()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings = fit_to(job.train, world)
    init = Student(job.student)
    if job.init:
        init.load_state_dict(job.init)
    run = Distillation(job.student, settings, job.standardiser, get_device(), init if job.init else None)
    checkpoint = ray.train.get_checkpoint()
    reports: list[Report] = []  # all since the first step: a driver may die before it has written one down
    if checkpoint is not None:
        state = load_state(checkpoint, run.device)
        run.load_state_dict(state)
        reports = state.get("reports", reports)
        for report in reports if rank == 0 else ():
            config["mailbox"].put.remote(report)
    network = prepare_model(run.network, move_to_device=False)
    batches = stream(job, settings, rank, world, run.step)
    first = next(batches)
    every = max(1, settings.steps // REPORTS_A_RUN)
    seen: list[Report] = []
    for step, metrics in distill(run, chain([first], batches), forward=network, rank=rank, world=world):
        seen.append(metrics)
        last = step == settings.steps
        due = last or step % settings.checkpoint_every == 0
        if not (due or step % every == 0):
            continue
        mean = {key: float(np.mean([m[key] for m in seen])) for key in seen[0]}
        mean |= {"step": step, "processes": world}
        patches_seen("train", len(seen) * settings.batch // world)
        seen = []
        reports.append(mean)
        if rank == 0:
            sent = config["mailbox"].put.remote(mean)
            if due:
                ray.get(sent)  # no checkpoint without the report that belongs to it
        leaves = someone_leaves(run.device, world)
        if due or leaves:
            save(run, reports, rank, at_once=last or leaves, real=first if last else None)


def someone_leaves(device: torch.device, world: int) -> bool:
    """Whether the machine of any process has been told that it goes away."""
    leaves = torch.tensor(float(ray.train.get_preemption_info() is not None), device=device)
    if world > 1:
        dist.all_reduce(leaves, dist.ReduceOp.MAX)
    return bool(leaves)


def fit_to(train: TrainConfig, world: int) -> TrainConfig:
    """The settings for as many processes as there are now: an elastic run drops what does not divide evenly."""
    share = world * train.accumulate
    return replace(train, batch=max(1, train.batch // share) * share)


def save(
    run: Distillation, reports: list[Report], rank: int, *, at_once: bool, real: Batch | None = None
) -> None:
    """Leave the state as a checkpoint, with all reports; every process calls this equally often, and rank 0 writes.

    Storage takes it while training goes on, unless `at_once`. With some patches `real`, what the student draws for
    their lungs lies beside the state.
    """
    if rank != 0:
        ray.train.report(reports[-1])
        return
    folder = tempfile.mkdtemp(prefix="diffseglung-")
    torch.save(run.state_dict() | {"reports": reports}, Path(folder) / "state.pt")
    if real is not None:
        some = {name: real[name][:SAMPLES_DRAWN].numpy() for name in ("hu", "lungs")}
        sampled = sample(run.ema.eval(), some["lungs"] > 0, run.config.seed)
        save_file({"real_hu": some["hu"], "sampled_hu": sampled}, Path(folder) / SAMPLES)
    ray.train.report(
        reports[-1],
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_upload_mode=UPLOADS.SYNC if at_once else UPLOADS.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def stream(job: Job, train: TrainConfig, rank: int, world: int, step: int) -> Iterator[Batch]:
    """Micro-batches without end, epoch after epoch, each shuffled by its own seed.

    A run that goes on at `step` first lets pass what its epoch had already given, and so sees what it would have
    seen had it never stopped.
    """
    micro = train.micro_batch(world)
    if job.held:
        epoch_of = in_memory(job.workspace.share(COLUMNS, rank, world), micro)
    else:
        shard = ray.train.get_dataset_shard("patches")
        epoch_of = streamed(shard, micro, MEMORY_BYTES // job.patch_bytes)
    epoch, passed = divmod(step * train.accumulate, job.workspace.patches // world // micro)
    while True:
        yield from islice(epoch_of(train.seed + epoch), passed, None)
        epoch, passed = epoch + 1, 0


def in_memory(rows: dict[str, np.ndarray], micro: int) -> Callable[[int], Iterator[Batch]]:
    """Epochs of the patches that this process holds."""
    patches = {name: torch.from_numpy(column) for name, column in rows.items()}
    count = len(patches["hu"])

    def epoch(seed: int) -> Iterator[Batch]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        for start in range(0, count - micro + 1, micro):
            yield {name: column[order[start : start + micro]] for name, column in patches.items()}

    return epoch


def streamed(shard: DataIterator, micro: int, buffer: int) -> Callable[[int], Iterator[Batch]]:
    """Epochs of a shard that is larger than memory should be, mixed in a buffer of so many patches."""

    def epoch(seed: int) -> Iterator[Batch]:
        yield from shard.iter_torch_batches(
            batch_size=micro,
            drop_last=True,
            local_shuffle_buffer_size=max(4 * micro, buffer),
            local_shuffle_seed=seed,
            device="cpu",
        )

    return epoch


def load_state(checkpoint: ray.train.Checkpoint, device: str | torch.device = "cpu") -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / "state.pt", map_location=device, weights_only=True)
