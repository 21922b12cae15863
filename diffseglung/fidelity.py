"""How close patches come to real ones: distances between two sets, each beside that of real from real.

Every score has a floor in the same table: what real patches of other scans reach against the same real ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist

from diffseglung.generate import SAMPLER, reconstruct
from diffseglung.schedule import HU_RANGE, Schedule, to_unit
from diffseglung.student import Student
from diffseglung.teacher import Standardiser, TeacherConfig, describe_patches

Embed = Callable[[np.ndarray], np.ndarray]  # HU (n, z, y, x) -> features (n, d)

BATCH = 16
# Score -> what it is, in words; `<score>_floor` is the same between real and real.
DISTANCES = {
    "frechet": "Fréchet radiomic distance: of the teacher's 34 descriptors",
    "mmd": "maximum mean discrepancy of the descriptors, squared; below 0 by chance",
    "hu_wasserstein": "distance of the lung's HU histograms, HU",
    "fid": "Fréchet distance of the given network's features",
}
RECONSTRUCTED_SHARE = 0.5  # of the signal's variance that is left where reconstruction begins


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches to compare: `hu` and their lungs, both (n, z, y, x)."""

    hu: np.ndarray
    lungs: np.ndarray


@dataclass(frozen=True, slots=True)
class _Described:
    descriptors: np.ndarray  # (n, 34)
    counts: np.ndarray  # (n, 1401), of lung voxels for each HU
    features: np.ndarray | None  # (n, d)

    def rows(self, which: np.ndarray) -> _Described:
        features = None if self.features is None else self.features[which]
        return _Described(self.descriptors[which], self.counts[which], features)


def fidelity(
    generated: Patches,
    real: Patches,
    real_b: Patches | None = None,
    *,
    config: TeacherConfig | None = None,
    embed: Embed | None = None,
) -> dict[str, float | int | None]:
    """How far generated patches are from real ones, and how far real ones are from each other: see `DISTANCES`.

    Without `real_b` the real patches are divided by chance: patches of one scan then stand on both sides, and the
    floor is a low one. Each side has the same number of patches (`compared`), because distances grow where there are
    few. All are None with fewer than two a side; `fid` also without `embed`.
    """
    sides = [_describe(side, config, embed) for side in (generated, real)]
    rng = np.random.default_rng(0)
    if real_b is None:
        whole = sides.pop()
        halves = np.array_split(rng.permutation(len(whole.descriptors)), 2)
        sides += [whole.rows(half) for half in halves]
    else:
        sides.append(_describe(real_b, config, embed))
    compared = min(len(side.descriptors) for side in sides)
    names = [name + end for name in DISTANCES for end in ("", "_floor")]
    if compared < 2:
        return {**dict.fromkeys(names), "compared": compared}
    made, first, second = (s.rows(rng.choice(len(s.descriptors), compared, replace=False)) for s in sides)
    standardiser = Standardiser.fit(np.concatenate([first.descriptors, second.descriptors]))
    found: dict[str, float | int | None] = {}
    for end, side in {"": made, "_floor": second}.items():
        one, other = (standardiser.apply(s.descriptors) for s in (side, first))
        found["frechet" + end] = frechet(one, other)
        found["mmd" + end] = mmd(one, other)
        found["hu_wasserstein" + end] = wasserstein(side.counts.sum(axis=0), first.counts.sum(axis=0))
        known = side.features is not None and first.features is not None
        found["fid" + end] = frechet(side.features, first.features) if known else None  # type: ignore[arg-type]
    return {name: found[name] for name in names} | {"compared": compared}


def _describe(side: Patches, config: TeacherConfig | None, embed: Embed | None) -> _Described:
    """All that is compared of the patches that have enough lung."""
    inside = side.lungs > 0
    rows = describe_patches(side.hu, inside, config)
    low, high = (int(edge) for edge in HU_RANGE)
    counts = [
        np.bincount(np.clip(patch[mask], low, high).astype(np.int64) - low, minlength=high - low + 1)
        for patch, mask in zip(side.hu, inside, strict=True)
    ]
    enough = np.isfinite(rows).all(axis=1)
    features = embed(side.hu[enough]) if embed and enough.any() else None
    return _Described(rows[enough], np.reshape(counts, (len(side.hu), high - low + 1))[enough], features)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of two sets of rows (n, d) (Dowson and Landau 1982)."""
    shift = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False, dtype=np.float64)) for rows in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # The square roots of A B's eigenvalues, by way of a symmetric matrix that has the same ones.
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(0.0, shift @ shift + np.trace(first) + np.trace(second) - 2 * shared))


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Maximum mean discrepancy, squared and unbiased (Gretton et al. 2012, eq. 3), of two sets of n rows.

    Gaussian kernel; its width is the median distance within `b`, the real rows, so that the floor has the same.
    """
    width = np.median(cdist(b, b)[np.triu_indices(len(b), 1)]) or 1.0
    within_a, within_b, between = (
        np.exp(-0.5 * (cdist(x, y) / width) ** 2) for x, y in ((a, a), (b, b), (a, b))
    )
    pairs = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (within_a, within_b)]
    return float(sum(pairs) - 2 * between.mean())


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Earth mover's distance in HU of two histograms with one count a HU."""
    return float(np.abs(np.cumsum(a / a.sum()) - np.cumsum(b / b.sum())).sum())


def reconstruction(
    student: Student, real: Patches, seed: int, *, steps: int | None = None, sampler: str = SAMPLER
) -> dict[str, float]:
    """How like themselves real patches are after half of their variance was noise and the student has denoised them.

    `ssim` (Wang et al. 2004, in 3-D) and `psnr_db` over the window of HU_RANGE; `*_noisy` of the noisy patches
    themselves, `*_floor` of each patch against another real one; `noise_share` of the variance.
    """
    schedule = Schedule(student.config.timesteps)
    first = int((schedule.alpha_bar >= RECONSTRUCTED_SHARE).sum()) - 1
    hu = real.hu.clip(*HU_RANGE)
    steps = None if steps is None else min(steps, first + 1)
    again = reconstruct(student, hu, real.lungs, seed, first=first, steps=steps, sampler=sampler)
    share = float(schedule.alpha_bar[first])
    scale = (HU_RANGE[1] - HU_RANGE[0]) / 2
    noise = np.random.default_rng(seed).standard_normal(hu.shape)
    noisy = (hu + scale * ((1 - share) / share) ** 0.5 * noise).clip(*HU_RANGE)
    found: dict[str, float] = {"noise_share": 1 - share}
    for end, other in {"": again, "_noisy": noisy, "_floor": np.roll(hu, 1, axis=0)}.items():
        pairs = [likeness(a, b) for a, b in zip(hu, other, strict=True)]
        found["ssim" + end], found["psnr_db" + end] = (float(np.mean(x)) for x in zip(*pairs, strict=True))
    return found


def likeness(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """SSIM and PSNR (dB) of two patches of HU (z, y, x)."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    span = HU_RANGE[1] - HU_RANGE[0]
    window = min(7, min(a.shape) - (min(a.shape) + 1) % 2)  # odd, and no larger than the patch
    a, b = a.astype(np.float64), b.astype(np.float64)
    if (a == b).all():
        return 1.0, float("inf")
    return (
        float(structural_similarity(a, b, data_range=span, win_size=window)),
        float(peak_signal_noise_ratio(a, b, data_range=span)),
    )


def load_network(path: Path) -> Embed:
    """A feature network of the user's own, as TorchScript: HU patches in, one row of features each out.

    It is given (n, c, z, y, x), or the middle axial slices (n, c, y, x) where its first convolution is flat, in
    [-1, 1] as everywhere here, repeated over the channels it asks for; maps are pooled. TorchScript runs the file's
    own graph in an interpreter of its own, never Python; still, a graph is a program: take it from whom you trust.
    Raises ValueError, in words, where it is no such network.
    """
    with warnings.catch_warnings():
        # torch recommends torch.export instead, whose files hold pickled parts.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            network = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is no TorchScript network: {str(error).splitlines()[0]}") from error
    kernels = [p.shape for p in network.parameters() if p.ndim in (4, 5)]
    if not kernels:
        raise ValueError(f"{path} has no convolution whose weights would tell what it is to be given")
    channels, flat = kernels[0][1], len(kernels[0]) == 4

    @torch.no_grad()
    def embed(hu: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(hu), BATCH):
            unit = to_unit(torch.from_numpy(hu[start : start + BATCH].astype(np.float32)))[:, None]
            unit = unit[:, :, unit.shape[2] // 2] if flat else unit
            try:
                found = network(unit.repeat(1, channels, *[1] * (unit.ndim - 2)))
            except RuntimeError as error:
                raise ValueError(f"{path} does not take patches of {hu.shape[1:]}: {error}") from error
            parts.append(found.flatten(2).mean(dim=2) if found.ndim > 2 else found)
        return torch.cat(parts).double().numpy()

    return embed


def fidelity_table(measured: dict[str, float | int | None]) -> str:
    """The scores as Markdown, each beside its floor."""
    lines = ["| score | generated | real against real |", "|---|---:|---:|"]
    for name, words in DISTANCES.items():
        if measured.get(name) is not None:
            lines.append(f"| {words} | {measured[name]:.3g} | {measured[name + '_floor']:.3g} |")
    lines += ["", f"{measured['compared']} patches on each side.", ""]
    if "ssim" in measured:
        lines += ["| real patches, denoised again | SSIM | PSNR, dB |", "|---|---:|---:|"]
        for end, words in {
            "": "denoised by the student",
            "_noisy": "as noisy as they were given",
            "_floor": "another real patch",
        }.items():
            lines.append(f"| {words} | {measured['ssim' + end]:.3f} | {measured['psnr_db' + end]:.1f} |")
        lines += ["", f"{100 * measured['noise_share']:.0f} % of the variance was noise.", ""]  # type: ignore[operator]
    return "\n".join(lines)
