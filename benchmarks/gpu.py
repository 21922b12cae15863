"""How fast does a GPU train and look at scans: by precision, layout and batch, and how far is that from its peak?

One process on one GPU, the product's own loop on made-up patches, which it is given from the processor's memory as in
training. FLOPs are those of convolutions and matrix products, forward and backward, as PyTorch counts them; the peak
is a product of two large bfloat16 matrices on the same card. Without a GPU there is nothing to measure.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import torch
from record import record
from steps import made_up
from torch.utils.flop_counter import FlopCounterMode

from diffseglung.config import Config, recipe
from diffseglung.distill import (
    Distillation,
    TrainConfig,
    distill,
    distillation_loss,
    draw_randomness,
    prepare_batch,
)
from diffseglung.features import extract
from diffseglung.grid import Grid
from diffseglung.patches import Scan
from diffseglung.student import Student, laid_out
from diffseglung.teacher import TEACHER, Standardiser

QUESTION = "How fast does a GPU train and look at scans, and how far is that from its peak?"
WARM, STEPS = 4, 12  # of each way; the first are not counted
EXACT, HALF = "float32", "bfloat16"
LUNGS_MM = 300.0  # the edge of the box that is looked at


@dataclass(frozen=True, slots=True)
class Timed:
    """Patches a second, the most memory in GiB, the loss of each step."""

    rate: float
    gib: float
    losses: np.ndarray


def standardiser() -> Standardiser:
    """Of made-up descriptors."""
    return Standardiser.fit(np.random.default_rng(1).normal(size=(100, len(TEACHER))))


def run_of(config: Config, train: TrainConfig) -> Distillation:
    """A training run on the GPU in which the teacher is heard from the first step."""
    return Distillation(config.student, replace(train, warmup=(0, 0)), standardiser(), "cuda")


def timed(config: Config, train: TrainConfig, *, channels_last: bool = False) -> Timed:
    """The product's loop, its own measure of its speed."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run = run_of(config, replace(train, steps=WARM + STEPS))
    if channels_last:
        run.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    batch = made_up(config, run.config.micro_batch(1))
    seen = [metrics for _, metrics in distill(run, repeat(batch))]
    seconds = np.median([1 / one["patches_per_s"] for one in seen[WARM:]])
    return Timed(
        1 / float(seconds),
        torch.cuda.max_memory_allocated() / 2**30,
        np.array([one["loss"] for one in seen]),
    )


def flops_a_patch(config: Config) -> float:
    """Of a training step, forward and backward."""
    run = run_of(config, replace(config.train, steps=1, batch=2, accumulate=1))
    with FlopCounterMode(display=False) as counter:
        for _ in distill(run, repeat(made_up(config, 2))):
            pass
    return counter.get_total_flops() / 2


def ceiling(dtype: torch.dtype, n: int = 8192) -> float:
    """FLOP a second of a product of two random matrices."""
    a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b)


def median_seconds(work: Callable[[], object], rounds: int = 10, warm: int = 3) -> float:
    """Of work on the GPU, by the clock, after some times that are not counted."""
    took = []
    for _ in range(warm + rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return float(np.median(took[warm:]))


def phases(config: Config, train: TrainConfig) -> dict[str, float]:
    """Seconds of each part of a step when every part waits for the one before."""
    run = run_of(config, train)
    raw = made_up(config, run.config.micro_batch(1))
    batch = prepare_batch(raw, run)
    draw = draw_randomness(batch, run, True, 0, 0, 1)
    dtype = torch.bfloat16 if train.precision == HALF else torch.float32

    def network() -> tuple[torch.Tensor, ...]:
        noisy = run.schedule.add_noise(batch["clean"], draw.noise, draw.t)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            return run.network(noisy, batch["lungs"], draw.t, batch["descriptors"])

    def whole() -> None:
        distillation_loss(run.network, batch, draw, run, run.config.weight)[0].backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.config.clip)
        run.optimiser.step()
        run.update_ema()

    found = {
        "patches to the GPU": median_seconds(lambda: prepare_batch(raw, run)),
        "noise": median_seconds(lambda: draw_randomness(batch, run, True, 0, 0, 1)),
        "network, forward": median_seconds(network),
        "network, backward": median_seconds(lambda: sum(x.float().mean() for x in network()).backward()),
        "losses": median_seconds(whole),
        "optimiser and EMA": median_seconds(update),
    }
    found["losses"] = max(0.0, found["losses"] - found["network, backward"])
    found["network, backward"] -= found["network, forward"]
    return found


def training_table(config: Config, batches: list[int], peak: float, *, compiled: bool) -> Iterator[str]:
    """A row a way and batch."""
    flops = flops_a_patch(config)
    base = replace(config.train, accumulate=1)
    full, half = (replace(base, precision=precision, batch=batches[0]) for precision in (EXACT, HALF))
    ways = [
        (f"{EXACT}, no TF32", full),
        (EXACT, full),
        (f"{EXACT}, channels last", full),
        *((HALF, replace(half, batch=batch)) for batch in batches),
        (f"{HALF}, channels last", half),
        (f"{HALF}, cuDNN tries its ways", half),
    ]
    if compiled:
        ways.append((f"{HALF}, compiled", replace(half, compile=True)))
    exact = None
    for title, train in ways:
        torch.backends.cudnn.allow_tf32 = "no TF32" not in title
        torch.backends.cudnn.benchmark = "tries" in title
        try:
            found = timed(config, train, channels_last="last" in title)
        except torch.cuda.OutOfMemoryError:
            yield f"| {config.name} | {title} | {train.batch} | does not fit | | | | |"
            continue
        except Exception as error:  # a compiler that is not there
            yield f"| {config.name} | {title} | {train.batch} | {type(error).__name__} | | | | |"
            continue
        exact = found.losses if exact is None else exact
        apart = np.abs(found.losses / exact - 1).max() if train.batch == batches[0] else np.nan
        rate = found.rate * flops
        yield (
            f"| {config.name} | {title} | {train.batch} | {found.rate:.1f} | {rate / 1e12:.1f} | "
            f"{100 * rate / peak:.0f} % | {found.gib:.1f} | "
            f"{'' if np.isnan(apart) else f'{100 * apart:.2f} %'} |"
        )
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False  # as by default
    yield ""
    yield f"{config.name}: {flops / 1e9:.0f} GFLOP a patch of {' x '.join(map(str, config.patches.size_vox))} voxels."
    yield ""


def looking(config: Config, precision: str) -> float:
    """Seconds to look at lungs that fill a box."""
    shape = tuple(
        int(LUNGS_MM / mm) // config.student.stride_vox * config.student.stride_vox
        for mm in config.patches.spacing_mm
    )
    hu = np.random.default_rng(0).normal(-850, 60, shape).astype(np.int16)
    nothing = np.zeros(shape, bool)
    affine = np.diag((*config.patches.spacing_mm, 1.0))[[2, 1, 0, 3]]
    scan = Scan(hu, ~nothing, nothing, nothing, Grid(shape, affine))
    student = laid_out(Student(config.student).cuda().eval().requires_grad_(False))
    features = replace(config.features, precision=precision)
    return median_seconds(lambda: extract(student, scan, config.patches, features), rounds=2, warm=1)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="of recipe paper")
    parser.add_argument(
        "--no-compile", action="store_true", help="without the compiled way, which takes minutes"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this machine has no GPU: nothing is measured")
        return
    half, single = ceiling(torch.bfloat16), ceiling(torch.float32)
    lines = [
        "| recipe | way | batch | patches/s | TFLOP/s | of the peak | GiB | loss apart, at most |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for name, batches, compiled in (("paper", args.batches, True), ("demo", [8, 64], False)):
        for row in training_table(recipe(name), batches, half, compiled=compiled and not args.no_compile):
            print(row, flush=True)
            (lines if row.startswith("|") else notes).append(row)
    lines += ["", *notes, "| part of a step | recipe | batch | ms |", "|---|---|---:|---:|"]
    for name, batch in (("paper", args.batches[min(1, len(args.batches) - 1)]), ("demo", 8)):
        config = recipe(name)
        train = replace(config.train, accumulate=1, batch=batch, precision=HALF)
        for part, seconds in phases(config, train).items():
            lines.append(f"| {part} | {name} | {batch} | {1000 * seconds:.1f} |")
            print(lines[-1], flush=True)
    lines += ["", "| looking at a box of 300 mm | float32, s | bfloat16, s |", "|---|---:|---:|"]
    for name in ("paper", "demo"):
        each = [looking(recipe(name), precision) for precision in (EXACT, HALF)]
        lines.append(f"| {name} | {each[0]:.1f} | {each[1]:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; peak {half / 1e12:.0f} TFLOP/s in bfloat16 "
        f"({single / 1e12:.0f} in float32), matrices of 8192. Median of {STEPS} steps after {WARM}. float32: "
        "convolutions in TF32, as PyTorch has them by default. Loss apart: from the first way, step by step, over all "
        f"{WARM + STEPS} steps.",
    ]
    record(QUESTION, "\n".join(lines))


if __name__ == "__main__":
    main()
