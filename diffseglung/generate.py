"""New CT patches from a trained student."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffseglung.schedule import Schedule, to_hu, to_unit
from diffseglung.student import Student

if TYPE_CHECKING:
    from diffseglung.model import Model

BATCH = 16
# The network's error is divided by the root of the signal's share: with less than this, sampling starts from error.
FIRST_SHARE = 1e-2
# What it starts from instead, since that little signal still holds the mean: aerated lung and soft tissue.
LUNG_HU, BODY_HU = -820, 30
# How many clean estimates a step looks at. `ddpm` alone adds noise on the way.
SAMPLERS = {"ddpm": 1, "ddim": 1, "dpm++2": 2, "dpm++3": 3}
SAMPLER = "dpm++2"
STEPS = 25  # of those that follow the flow; `ddpm` takes every timestep where nothing else is said


def generate(
    model: Model,
    count: int,
    seed: int,
    lungs: np.ndarray | None = None,
    steps: int | None = None,
    sampler: str = SAMPLER,
) -> np.ndarray:
    """Draw `count` CT patches that the model takes for lung: int16 HU (count, z, y, x).

    `lungs` (count, z, y, x) is where there shall be lung, everywhere without it. Patch i depends on (seed, i) alone.
    """
    if lungs is None:
        lungs = np.ones((count, *model.config.patches.size_vox), dtype=bool)
    if len(lungs) != count:
        raise ValueError(f"{count} patches need as many lung masks, not {len(lungs)}")
    return sample(model.student, lungs, seed, steps, sampler)


def sample(
    student: Student, lungs: np.ndarray, seed: int, steps: int | None = None, sampler: str = SAMPLER
) -> np.ndarray:
    """Denoise random voxels step by step until a CT is left: int16 HU (n, z, y, x) for lungs of that shape."""
    prior = np.where(np.asarray(lungs) > 0, LUNG_HU, BODY_HU)
    return reconstruct(student, prior, lungs, seed, steps=steps, sampler=sampler)


def reconstruct(
    student: Student,
    hu: np.ndarray,
    lungs: np.ndarray,
    seed: int,
    *,
    first: int | None = None,
    steps: int | None = None,
    sampler: str = SAMPLER,
) -> np.ndarray:
    """What is left of patches (n, z, y, x) put under the noise of timestep `first` and denoised again: int16 HU.

    Without `first` next to nothing is: the noisiest step that sampling begins with.
    """
    schedule = Schedule(student.config.timesteps)
    device = next(student.parameters()).device
    parts = []
    for start in range(0, len(hu), BATCH):
        own = slice(start, start + BATCH)
        mask = torch.from_numpy(lungs[own].astype(np.float32))[:, None].to(device)
        noises = _noises(seed, range(start, start + len(mask)), hu.shape[1:], device)
        clean = denoise(
            partial(_predict, student, mask),
            prior=to_unit(torch.from_numpy(hu[own].astype(np.float32)))[:, None].to(device),
            noise=next(noises),
            fresh=noises,
            schedule=schedule,
            steps=steps,
            first=first,
            sampler=sampler,
        )
        parts.append(to_hu(clean[:, 0]).round().to(torch.int16).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(hu.shape, np.int16)


@torch.no_grad()
def denoise(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    prior: torch.Tensor,
    noise: torch.Tensor,
    schedule: Schedule,
    steps: int | None = None,
    first: int | None = None,
    sampler: str = SAMPLER,
    fresh: Iterator[torch.Tensor] | None = None,
) -> torch.Tensor:
    """The clean sample (b, ...) in [-1, 1] that `noise` leads to; `predict(noisy, t)` is the noise in it at t (b,).

    Begins with `prior` under noise at timestep `first`, or at FIRST_SHARE of signal, and goes down quadratically
    spaced timesteps. All of `SAMPLERS` but one follow the probability flow, x' = s'/s x - a' (e^-h - 1) D with h the
    gain in log SNR: D is the clean estimate (DDIM: Song, Meng and Ermon 2021, sigma = 0) or foresees it from the last
    two or three (DPM-Solver++ 2M and 3M, Lu et al. 2022). In 25 steps DDIM loses a fifth of the noise that makes a
    CT's texture, 2M a fiftieth. `ddpm` draws from the posterior (Ho et al. 2020, eq. 7), with a noise from `fresh`
    for each step but the last.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are: {', '.join(SAMPLERS)}")
    last = int((schedule.alpha_bar >= FIRST_SHARE).sum()) - 1 if first is None else first
    times = spaced(last, steps, every=sampler == "ddpm")
    signal = schedule.alpha_bar[times].double().sqrt().tolist()
    spread = (1 - schedule.alpha_bar[times].double()).sqrt().tolist()
    log_snr = [math.log(a / s) for a, s in zip(signal, spread, strict=True)]
    gains = [after - before for before, after in pairwise(log_snr)]
    noisy = signal[0] * prior + spread[0] * noise
    cleans: list[torch.Tensor] = []
    for i, t in enumerate(times.tolist()):
        predicted = predict(noisy, torch.full((len(noise),), t, device=noise.device))
        cleans = [*cleans[-2:], ((noisy - spread[i] * predicted) / signal[i]).clamp(-1, 1)]
        if i + 1 == len(times):
            break
        if sampler == "ddpm":
            kept = 1 - (signal[i] / signal[i + 1]) ** 2  # share of the step's noise that the posterior holds
            drawn = spread[i + 1] / spread[i] * kept**0.5
            along = (spread[i + 1] ** 2 - drawn**2) ** 0.5 / spread[i]
            noisy = (
                signal[i + 1] * cleans[-1]
                + along * (noisy - signal[i] * cleans[-1])
                + drawn * next(fresh or iter(()))
            )
        else:
            ahead = foresee(cleans[-SAMPLERS[sampler] :], gains[: i + 1])
            noisy = spread[i + 1] / spread[i] * noisy - signal[i + 1] * math.expm1(-gains[i]) * ahead
    return cleans[-1]


def spaced(last: int, steps: int | None, *, every: bool) -> torch.Tensor:
    """Timesteps from `last` down to 0, the closer the lower; without `steps` STEPS of them, or `every` one."""
    if steps is None and every:
        return torch.arange(last, -1, -1)
    steps = min(STEPS, last + 1) if steps is None else steps
    if not 1 <= steps <= last + 1:
        raise ValueError(f"steps {steps} must be 1 to {last + 1}, the timesteps that still hold signal")
    return torch.linspace(last**0.5, 0, steps).square().round().long().unique().flip(0)


def foresee(cleans: list[torch.Tensor], gains: list[float]) -> torch.Tensor:
    """The clean estimate to use over a step of `gains[-1]`, drawn on from the last one, two or three."""
    if len(cleans) == 1:
        return cleans[-1]
    h = gains[-1]
    slope = (cleans[-1] - cleans[-2]) * (h / gains[-2])
    if len(cleans) == 2:
        return cleans[-1] + slope / 2
    bend = (slope - (cleans[-2] - cleans[-3]) * (h / gains[-3])) / ((gains[-2] + gains[-3]) / h)
    slope = slope + gains[-2] / h * bend
    e = math.expm1(-h)
    # Exact for a parabola. The authors' multistep code takes half the bend, which is of second order only.
    return cleans[-1] - (1 / h + 1 / e) * slope + (2 * (e + h) / h**2 - 1) / e * bend


def _predict(student: Student, mask: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return student(noisy, mask, t)[0]


def _noises(
    seed: int, patches: range, shape: tuple[int, ...], device: torch.device
) -> Iterator[torch.Tensor]:
    """Noise (n, 1, z, y, x) without end; that of patch i depends on (seed, i) alone."""
    sources = [np.random.default_rng((seed, i)) for i in patches]
    while True:
        drawn = np.stack([source.standard_normal(shape, dtype=np.float32) for source in sources])
        yield torch.from_numpy(drawn)[:, None].to(device)
