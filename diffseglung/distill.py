"""Diffusion radiomic distillation: learn to denoise a CT while the bottleneck learns the teacher's language.

loss = L1(noise) + weight(step) * alpha_bar(t) * InfoNCE(bottleneck, descriptors)      (paper, eq. 4 to 6)

The loop is a generator of (step, metrics): it does not know who logs, saves or schedules it.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from diffseglung.frozen import frozen
from diffseglung.schedule import Schedule, to_unit
from diffseglung.student import DistillationNetwork, Student, StudentConfig, laid_out
from diffseglung.teacher import Standardiser, flip_batch

Batch = dict[str, torch.Tensor]

COLLAPSED_RANK, COLLAPSED_SPREAD = 1.5, 0.1
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@frozen
class TrainConfig:
    """How long, how fast, and how strongly the teacher speaks."""

    steps: int = 1000
    batch: int = 8  # patches an optimiser step, over all workers
    # Splits a worker's share to save memory; each part is then contrasted within itself alone.
    accumulate: int = 1
    # Or "bfloat16": the network's convolutions; losses, weights and Adam stay float32.
    precision: str = "float32"
    compile: bool = False  # the network by torch.compile: minutes at first, and a C++ compiler
    lr: float = 5e-4
    lr_heads: float | None = None  # of the two heads; as `lr` where not given
    lr_warmup: int = 50
    clip: float = 0.3
    ema: float = 0.99
    variant: str = "local"  # "local": each bottleneck position; "global": pooled, as published; "none"
    weight: float = 0.5
    warmup: tuple[int, int] = (150, 300)  # steps between which the weight rises from 0, once it can denoise
    temperature: float = 0.07
    positions: int = 16  # bottleneck positions drawn from each patch (local)
    # Axes of (z, y, x) along which each patch is flipped or not, with its targets. Off: whether it helps has not been
    # measured, and all published and recorded figures are without.
    flip: tuple[int, ...] = ()
    small_t: float = 0.125  # half of the timesteps come from this first share of them, once the weight is up
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.variant not in ("local", "global", "none"):
            raise ValueError(f"train.variant {self.variant!r} is none of: local, global, none")
        if self.precision not in PRECISIONS:
            raise ValueError(f"train.precision {self.precision!r} is none of: {', '.join(PRECISIONS)}")
        if self.temperature <= 0:
            raise ValueError(f"train.temperature {self.temperature} must be above 0; 0.07 to 0.1 is usual")
        if self.steps < 1 or self.batch < 2:
            raise ValueError(
                f"train.steps {self.steps} must be at least 1 and train.batch {self.batch} at least 2 "
                "(a contrast needs a negative)"
            )
        if len({*self.flip}) < len(self.flip) or not {*self.flip} <= {0, 1, 2}:
            raise ValueError(f"train.flip {self.flip} must name axes once each: 0 is z, 1 is y, 2 is x")
        if not 0 <= self.warmup[0] <= self.warmup[1]:
            raise ValueError(f"train.warmup {self.warmup} must be two steps in rising order")
        if self.batch % self.accumulate:
            raise ValueError(
                f"train.batch {self.batch} must be a multiple of train.accumulate {self.accumulate}"
            )

    def weight_at(self, step: int) -> float:
        """Weight of the distillation at an optimiser step: 0 until the network can denoise, then rising."""
        if self.variant == "none":
            return 0.0
        start, end = self.warmup
        return self.weight if step >= end else self.weight * max(0.0, (step - start) / (end - start))

    def micro_batch(self, world: int) -> int:
        """Patches that one of `world` workers takes at a time."""
        if self.batch % (world * self.accumulate):
            raise ValueError(
                f"train.batch {self.batch} does not split over {world} workers x {self.accumulate} accumulation "
                "steps; choose a multiple"
            )
        return self.batch // (world * self.accumulate)


class Draw(NamedTuple):
    """All the randomness of one loss: noise (b, 1, z, y, x), timesteps (b,), position priorities (b, p)."""

    noise: torch.Tensor
    t: torch.Tensor
    priority: torch.Tensor


class Distillation:
    """The state of a training run: network, EMA of the student, optimiser, step."""

    def __init__(
        self,
        student: StudentConfig,
        train: TrainConfig,
        standardiser: Standardiser,
        device: str | torch.device = "cpu",
        init: Student | None = None,
    ) -> None:
        torch.manual_seed(train.seed)
        self.config, self.student_config, self.standardiser = train, student, standardiser
        self.device = torch.device(device)
        network = DistillationNetwork(student, len(standardiser.center))
        self.network = laid_out(network.to(self.device))
        if train.compile:
            self.network.compile()
        if init is not None:
            self.network.student.load_state_dict(init.state_dict())
        self.ema = Student(student).to(self.device).requires_grad_(False)
        self.ema.load_state_dict(self.network.student.state_dict())
        heads = [*self.network.student_head.parameters(), *self.network.teacher_head.parameters()]
        self.rates = (train.lr, train.lr if train.lr_heads is None else train.lr_heads)
        parts = zip((list(self.network.student.parameters()), heads), self.rates, strict=True)
        self.optimiser = torch.optim.Adam([{"params": part, "lr": lr} for part, lr in parts], fused=True)
        self.schedule = Schedule(student.timesteps)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything a later process needs to go on as if it had never stopped."""
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def update_ema(self) -> None:
        """One step of the exponential moving average, shorter at first so that it forgets the start."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():  # all at once: a GPU would wait longer for 250 calls than for their work
            torch._foreach_lerp_(
                list(self.ema.parameters()), list(self.network.student.parameters()), 1 - decay
            )


def distill(
    run: Distillation,
    batches: Iterator[Batch],
    *,
    forward: nn.Module | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train until `config.steps`, yielding (step, metrics) after every optimiser step.

    `batches` gives this rank's patches, `config.micro_batch(world)` at a time: `hu` int16 (b, z, y, x), `lungs`
    uint8 (b, z, y, x), `teacher` (b, 34) and `teacher_local` (b, gz, gy, gx, 34) float32, NaN where unknown.
    `forward` is the wrapped `run.network` (DDP); without it the network itself is called.
    """
    config = run.config
    network = forward or run.network
    ended = time.perf_counter()
    while run.step < config.steps:
        weight = config.weight_at(run.step)
        for group, rate in zip(run.optimiser.param_groups, run.rates, strict=True):
            group["lr"] = rate * min(1.0, (run.step + 1) / max(config.lr_warmup, 1))
        run.optimiser.zero_grad(set_to_none=True)
        parts: list[dict[str, float]] = []
        waited, seen = 0.0, 0
        for micro in range(config.accumulate):
            asked = time.perf_counter()
            batch = prepare_batch(flip_some(next(batches), run, micro, rank, world), run)
            waited += time.perf_counter() - asked
            seen += len(batch["clean"]) * world
            draw = draw_randomness(batch, run, weight > 0, micro, rank, world)
            # Ranks exchange gradients once a step, with the last part.
            parallel = isinstance(network, DistributedDataParallel)
            quiet = network.no_sync() if parallel and micro + 1 < config.accumulate else nullcontext()  # type: ignore[operator]
            with quiet, sound_kernels(run.device, config.precision):
                loss, metrics = distillation_loss(network, batch, draw, run, weight)
                (loss / config.accumulate).backward()
            parts.append(metrics)
        norm = nn.utils.clip_grad_norm_(run.network.parameters(), config.clip)
        run.optimiser.step()
        run.step += 1
        run.update_ema()
        # Since the step before: what the caller does between two steps costs throughput too.
        began, ended = ended, time.perf_counter()
        took = ended - began
        metrics = {key: float(np.mean([p[key] for p in parts])) for key in parts[0]}
        metrics |= {
            "weight": weight,
            "lr": run.optimiser.param_groups[0]["lr"],
            "lr_heads": run.optimiser.param_groups[1]["lr"],
            "grad_norm": float(norm),
            "patches_per_s": seen / took,
            "data_wait_share": waited / took,
        }
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"the loss is {metrics['loss']} at step {run.step}; lower train.lr (now {config.lr}) and start again"
            )
        yield run.step, metrics


def sound_kernels(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Where convolutions may be learned through: without oneDNN in half precision on a processor.

    There (torch 2.13.0, AMD EPYC with avx512_bf16) its gradients of bfloat16 3-D convolutions differ from run to run,
    some of them infinite; torch's own agree with those of full precision.
    """
    trusted = device.type != "cpu" or precision == "float32"
    return nullcontext() if trusted else torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)


def prepare_batch(batch: Batch, run: Distillation) -> Batch:
    """What the network eats: CT in [-1, 1], lungs, standardised descriptors with their mask."""
    local = run.config.variant != "global"
    raw = batch["teacher_local" if local else "teacher"]
    descriptors = torch.from_numpy(run.standardiser.apply(raw.numpy())).to(run.device)
    # As int16 and uint8 they take a third of the way to a GPU, and it makes floats of them in no time.
    hu, lungs = (batch[name].to(run.device)[:, None] for name in ("hu", "lungs"))
    return {
        "clean": to_unit(hu),
        "lungs": lungs.float(),
        "descriptors": torch.nan_to_num(descriptors.float()),
        "known": torch.isfinite(descriptors).all(dim=-1),
    }


def flip_some(batch: Batch, run: Distillation, micro: int, rank: int, world: int) -> Batch:
    """Half of the patches flipped along each axis of `train.flip`, and their targets with them."""
    axes = run.config.flip
    if not axes:
        return batch
    generator, b, own = dice(len(batch["hu"]), run, micro, rank, world, purpose=1)
    drawn = (torch.rand(b, len(axes), generator=generator) < 0.5)[own]
    out = {name: column.clone() for name, column in batch.items()}
    for choice in drawn.unique(dim=0):
        rows = (drawn == choice).all(dim=1).nonzero()[:, 0]
        turned = [axis for axis, flipped in zip(axes, choice.tolist(), strict=True) if flipped]
        some = flip_batch({name: column[rows] for name, column in batch.items()}, turned)
        for name, column in some.items():
            out[name][rows] = column
    return out


def dice(
    patches: int,
    run: Distillation,
    micro: int,
    rank: int,
    world: int,
    *,
    purpose: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[torch.Generator, int, slice]:
    """A generator from (seed, step), how many patches the whole batch has, and which are this rank's `patches`.

    What is drawn for the whole batch and cut knows neither how many workers there are nor how a batch is split.
    """
    parts, part = world * run.config.accumulate, rank * run.config.accumulate + micro
    generator = torch.Generator(device).manual_seed((run.config.seed << 40) + (run.step << 8) + purpose)
    return generator, patches * parts, slice(part * patches, (part + 1) * patches)


def draw_randomness(
    batch: Batch, run: Distillation, contrast: bool, micro: int, rank: int, world: int
) -> Draw:
    """Noise, timesteps and priorities, the same whoever draws them (`dice`) on this kind of device."""
    clean, known = batch["clean"], batch["known"]
    generator, b, own = dice(len(clean), run, micro, rank, world, device=run.device)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=run.device)

    t = uniform(b)
    if contrast:
        half = uniform(b) < 0.5
        t = torch.where(half, t * run.config.small_t, t)
    priority = uniform(b, int(known[0].numel()))
    noise = torch.randn(b, *clean.shape[1:], generator=generator, device=run.device)
    return Draw(noise[own], (t * run.schedule.timesteps).long()[own], priority[own])


def distillation_loss(
    network: nn.Module, batch: Batch, draw: Draw, run: Distillation, weight: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The whole loss of one micro-batch and its terms apart."""
    noisy = run.schedule.add_noise(batch["clean"], draw.noise, draw.t)
    dtype = PRECISIONS[run.config.precision]
    with torch.autocast(noisy.device.type, dtype, enabled=dtype != torch.float32):
        answers = network(noisy, batch["lungs"], draw.t, batch["descriptors"])
    noise, student, teacher = (answer.float() for answer in answers)
    noise_loss = F.l1_loss(noise, draw.noise)
    student, teacher, share, keep = pair_up(student, teacher, batch, draw, run)
    info, metrics = info_nce(student, teacher, share, keep, run.config.temperature)
    loss = noise_loss + weight * info
    return loss, metrics | {"loss": float(loss.detach()), "noise_loss": float(noise_loss.detach())}


def pair_up(
    student: torch.Tensor, teacher: torch.Tensor, batch: Batch, draw: Draw, run: Distillation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pairs to contrast: student (n, e), teacher (n, e), their alpha_bar (n,) and which of them count (n,)."""
    share = run.schedule.alpha_bar.to(student.device)[draw.t]
    if run.config.variant == "global":
        pooled = F.normalize(student.mean(dim=(2, 3, 4)), dim=1)
        return pooled, teacher, share, batch["known"]
    b, e = student.shape[:2]
    student = student.flatten(2).transpose(1, 2)  # (b, p, e)
    teacher, known = teacher.reshape(b, -1, e), batch["known"].reshape(b, -1)
    flat = batch["descriptors"].reshape(known.numel(), -1)
    rarity = rare_first(gather(flat), gather(known.reshape(-1)))[mine(known.numel())].view(b, -1)
    # Gumbel top-k: a draw without replacement in proportion to rarity.
    gumbel = -torch.log(-torch.log(draw.priority.clamp(1e-6, 1 - 1e-6)))
    score = torch.where(known, rarity.log() + gumbel, -torch.inf)
    chosen = score.topk(min(run.config.positions, score.shape[1]), dim=1).indices
    pick = chosen[..., None].expand(-1, -1, e)
    return (
        student.gather(1, pick).reshape(-1, e),
        teacher.gather(1, pick).reshape(-1, e),
        share[:, None].expand_as(chosen).reshape(-1),
        known.gather(1, chosen).reshape(-1),
    )


@torch.no_grad()
def rare_first(descriptors: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Weight (n,) of each position: the inverse root of how crowded its place in descriptor space is.

    Healthy lung is three quarters of all positions; drawn evenly it would be most of the contrast too.
    """
    weight = torch.ones(len(descriptors), device=descriptors.device)
    where = known.nonzero()[:, 0]
    if len(where) > 2:
        distance = torch.cdist(descriptors[where], descriptors[where])
        width = distance.median().clamp(min=1e-6) / 2
        crowd = torch.exp(-0.5 * (distance / width) ** 2).mean(dim=1)
        weight[where] = crowd.rsqrt()
    return weight


def info_nce(
    student: torch.Tensor, teacher: torch.Tensor, share: torch.Tensor, keep: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Symmetric InfoNCE (van den Oord et al. 2018) over the pairs of all ranks, each weighted by its alpha_bar.

    Returns the loss and: itself, the share of students that find their own teacher first, and of the student's
    embeddings the effective rank (exp of the entropy of their covariance's spectrum; Roy and Vetterli 2007) and the
    spread (root of the mean variance per dimension, 1 where they lie evenly on the sphere); see `collapse`.
    """
    student, teacher, share, keep = (gather(x) for x in (student, teacher, share, keep))
    kept = keep.nonzero()[:, 0]
    student, teacher, share = student[kept], teacher[kept], share[kept]
    if len(kept) < 2:
        zero = (student.sum() + teacher.sum()) * 0
        return zero, dict.fromkeys(("distill_loss", "retrieval", "effective_rank", "spread"), 0.0)
    logits = student @ teacher.T / temperature
    target = torch.arange(len(kept), device=logits.device)
    both = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(
        logits.T, target, reduction="none"
    )
    loss = (share * both / 2).sum() / len(kept)
    with torch.no_grad():
        found = (logits.argmax(dim=1) == target).float().mean()
        spectrum = torch.linalg.svdvals(student.float() - student.float().mean(0)).square()
        spread = (spectrum.sum() / len(kept)).sqrt()
        spectrum = spectrum / spectrum.sum().clamp(min=1e-12)
        rank = torch.exp(-(spectrum * spectrum.clamp(min=1e-12).log()).sum())
    return loss, {
        "distill_loss": float(loss.detach()),
        "retrieval": float(found),
        "effective_rank": float(rank),
        "spread": float(spread),
    }


def collapse(metrics: dict[str, float], config: TrainConfig) -> str:
    """In words, that the student's embeddings say next to nothing although the teacher has full weight; or nothing."""
    if not 0 < config.weight <= metrics["weight"]:
        return ""
    rank, spread = metrics["effective_rank"], metrics["spread"]
    if rank >= COLLAPSED_RANK and spread >= COLLAPSED_SPREAD:
        return ""
    return (
        f"the student's embeddings have collapsed at step {metrics['step']:.0f} (effective rank {rank:.1f}, spread "
        f"{spread:.2f} of 1): try a higher train.temperature, a lower train.weight or a later train.warmup"
    )


def mine(rows: int) -> slice:
    """This rank's rows of what `gather` returned."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return slice(rank * rows, (rank + 1) * rows)


def gather(x: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, with gradients, in rank order; x itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    if x.dtype == torch.bool:
        return gather(x.to(torch.uint8)).bool()
    if not x.requires_grad:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    # DDP averages gradients over ranks, and every rank computes the whole contrast: the two cancel out.
    # Named, for the group that is its default is that of its first import: gone, in a process that has had two.
    return torch.cat(all_gather(x.contiguous(), group=dist.group.WORLD))
