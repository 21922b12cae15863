"""New CT patches from a trained student, and how close they come to real ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffseglung.schedule import HU_RANGE, Schedule, to_hu, to_unit
from diffseglung.student import Student
from diffseglung.teacher import Standardiser, TeacherConfig, describe_patches

if TYPE_CHECKING:
    from diffseglung.model import Model

BATCH = 16
# The network's error is divided by the root of the signal's share: with less than this, sampling starts from error.
FIRST_SHARE = 1e-2
# What it starts from instead, since that little signal still holds the mean: aerated lung and soft tissue.
LUNG_HU, BODY_HU = -820, 30


def generate(
    model: Model, count: int, seed: int, lungs: np.ndarray | None = None, steps: int = 25
) -> np.ndarray:
    """Draw `count` CT patches that the model takes for lung: int16 HU (count, z, y, x).

    `lungs` (count, z, y, x) is where there shall be lung, everywhere without it. Patch i depends on (seed, i) alone.
    """
    if lungs is None:
        lungs = np.ones((count, *model.config.patches.size_vox), dtype=bool)
    if len(lungs) != count:
        raise ValueError(f"{count} patches need as many lung masks, not {len(lungs)}")
    return sample(model.student, lungs, seed, steps)


def sample(student: Student, lungs: np.ndarray, seed: int, steps: int = 25) -> np.ndarray:
    """Denoise random voxels step by step until a CT is left: int16 HU (n, z, y, x) for lungs of that shape."""
    schedule = Schedule(student.config.timesteps)
    device = next(student.parameters()).device
    parts = []
    for first in range(0, len(lungs), BATCH):
        mask = torch.from_numpy(lungs[first : first + BATCH].astype(np.float32))[:, None].to(device)
        draws = [_noise(seed, first + i, lungs.shape[1:]) for i in range(len(mask))]
        clean = denoise(
            partial(_predict, student, mask),
            prior=to_unit(torch.where(mask > 0, LUNG_HU, BODY_HU)),
            noise=torch.from_numpy(np.stack(draws))[:, None].to(device),
            schedule=schedule,
            steps=steps,
        )
        parts.append(to_hu(clean[:, 0]).round().to(torch.int16).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(lungs.shape, np.int16)


@torch.no_grad()
def denoise(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    prior: torch.Tensor,
    noise: torch.Tensor,
    schedule: Schedule,
    steps: int,
) -> torch.Tensor:
    """The clean sample (b, ...) in [-1, 1] that `noise` leads to; `predict(noisy, t)` is the noise in it at t (b,).

    DDIM (Song, Meng and Ermon 2021, sigma = 0) in its two-step form, DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), on
    quadratically spaced timesteps: in 25 steps plain DDIM loses a fifth of the noise that makes a CT's texture, this
    one a fiftieth. Begins with `prior` under noise, at FIRST_SHARE of signal.
    """
    last = int((schedule.alpha_bar >= FIRST_SHARE).sum()) - 1
    if not 1 <= steps <= last + 1:
        raise ValueError(f"steps {steps} must be 1 to {last + 1}, the timesteps that still hold signal")
    times = torch.linspace(last**0.5, 0, steps).square().round().long().unique().flip(0)
    signal = schedule.alpha_bar[times].double().sqrt().tolist()
    spread = (1 - schedule.alpha_bar[times].double()).sqrt().tolist()
    log_snr = [math.log(a / s) for a, s in zip(signal, spread, strict=True)]
    noisy, before = signal[0] * prior + spread[0] * noise, prior
    for i, t in enumerate(times.tolist()):
        predicted = predict(noisy, torch.full((len(noise),), t, device=noise.device))
        clean = ((noisy - spread[i] * predicted) / signal[i]).clamp(-1, 1)
        if i + 1 == len(times):
            break
        gain = log_snr[i + 1] - log_snr[i]
        ahead = clean
        if i:
            ahead = clean + (clean - before) * gain / (2 * (log_snr[i] - log_snr[i - 1]))
        noisy = spread[i + 1] / spread[i] * noisy - signal[i + 1] * math.expm1(-gain) * ahead
        before = clean
    return clean


def _predict(student: Student, mask: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return student(noisy, mask, t)[0]


def _noise(seed: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng((seed, index)).standard_normal(shape, dtype=np.float32)


def fidelity(
    generated: np.ndarray,
    real: np.ndarray,
    real_b: np.ndarray | None = None,
    *,
    generated_lungs: np.ndarray | None = None,
    real_lungs: np.ndarray | None = None,
    real_b_lungs: np.ndarray | None = None,
    config: TeacherConfig | None = None,
) -> dict[str, float | int | None]:
    """How far generated patches are from real ones, and how far real ones are from each other.

    All are HU (n, z, y, x) with lung masks of the same shape; without a mask all voxels count. Without `real_b` the
    real patches are divided by chance: patches of one scan then stand on both sides, and the floor is a low one. Each
    side has the same number of patches (`compared`), because both distances grow where there are few.

    `frechet` is the Frechet distance of the standardised descriptors, `hu_wasserstein` the mean HU by which the
    histograms of lung voxels are apart; `*_floor` is the same between real and real. None with fewer than two a side.
    """
    sides = [_described(generated, generated_lungs, config), _described(real, real_lungs, config)]
    rng = np.random.default_rng(0)
    if real_b is None:
        all_rows, all_counts = sides.pop()
        for half in np.array_split(rng.permutation(len(all_rows)), 2):
            sides.append((all_rows[half], all_counts[half]))
    else:
        sides.append(_described(real_b, real_b_lungs, config))
    compared = min(len(rows) for rows, _ in sides)
    names = ("frechet", "frechet_floor", "hu_wasserstein", "hu_wasserstein_floor")
    if compared < 2:
        return {**dict.fromkeys(names), "compared": compared}
    drawn = [rng.choice(len(rows), compared, replace=False) for rows, _ in sides]
    rows = [rows[chosen] for (rows, _), chosen in zip(sides, drawn, strict=True)]
    counts = [counts[chosen].sum(axis=0) for (_, counts), chosen in zip(sides, drawn, strict=True)]
    standardiser = Standardiser.fit(np.concatenate(rows[1:]))
    made, first, second = (standardiser.apply(part) for part in rows)
    values = (
        frechet(made, first),
        frechet(second, first),
        wasserstein(*counts[:2]),
        wasserstein(*counts[1:]),
    )
    return {**dict(zip(names, values, strict=True)), "compared": compared}


def _described(
    hu: np.ndarray, lungs: np.ndarray | None, config: TeacherConfig | None
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (n, 34) and HU histograms (n, 1401) of the patches that have enough lung."""
    lungs = np.ones(hu.shape, bool) if lungs is None else lungs.astype(bool)
    rows = describe_patches(hu, lungs, config)
    low, high = (int(edge) for edge in HU_RANGE)
    counts = [
        np.bincount(np.clip(patch[inside], low, high).astype(np.int64) - low, minlength=high - low + 1)
        for patch, inside in zip(hu, lungs, strict=True)
    ]
    enough = np.isfinite(rows).all(axis=1)
    return rows[enough], np.reshape(counts, (len(hu), high - low + 1))[enough]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of two sets of rows (n, d) (Dowson and Landau 1982)."""
    shift = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    first, second = (np.cov(rows, rowvar=False, dtype=np.float64) for rows in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # The square roots of A B's eigenvalues, by way of a symmetric matrix that has the same ones.
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(0.0, shift @ shift + np.trace(first) + np.trace(second) - 2 * shared))


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Earth mover's distance in HU of two histograms with one count a HU."""
    return float(np.abs(np.cumsum(a / a.sum()) - np.cumsum(b / b.sum())).sum())
