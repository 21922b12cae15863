"""Balls in millimetres: dilation, erosion, opening and closing by distance, on grids of any spacing.

Masks are bool (z, y, x), spacings (z, y, x) in mm; each is worked on in its own box alone. Outside the array
there is neither lung nor tissue.
"""

from typing import Literal

import cc3d
import edt
import numpy as np
import SimpleITK as sitk

Spacing = tuple[float, float, float]


def distance_mm(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """How far each voxel's centre lies from the nearest voxel of the mask; infinite where the mask is empty.

    float32 (z, y, x), 0 inside. Exact (Felzenszwalb and Huttenlocher, Theory of Computing 2012).
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    return edt.edt(~np.ascontiguousarray(mask), anisotropy=spacing_mm, parallel=threads)


def dilate(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """Every voxel within `radius_mm` of the mask."""
    out = np.zeros(mask.shape, bool)
    if mask.any():
        box = bounding_box(mask, radius_mm, spacing_mm)
        out[box] = distance_mm(mask[box], spacing_mm) <= radius_mm
    return out


def erode(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """The voxels of the mask that lie further than `radius_mm` from everything outside it."""
    out = np.zeros(mask.shape, bool)
    if mask.any():
        box = bounding_box(
            mask, max(spacing_mm), spacing_mm
        )  # its nearest outside is next to its box, or inside
        out[box] = distance_mm(~mask[box], spacing_mm) > radius_mm
    return out


def opening(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """What a ball covers that stays inside the mask: thin parts go."""
    return dilate(erode(mask, radius_mm, spacing_mm), radius_mm, spacing_mm) & mask


def closing(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """The mask and what no ball outside it can reach: notches go. The ball may leave the array."""
    out = np.zeros(mask.shape, bool)
    if mask.any():
        box = bounding_box(mask, 0, spacing_mm)  # which holds the closed mask too: the hull is in it
        pad = [int(np.ceil(radius_mm / s)) + 1 for s in spacing_mm]
        wide = np.pad(mask[box], [(p, p) for p in pad])
        closed = ~dilate(~dilate(wide, radius_mm, spacing_mm), radius_mm, spacing_mm) | wide
        out[box] = closed[tuple(slice(p, -p) for p in pad)]
    return out


def components(mask: np.ndarray, connectivity: Literal[6, 26] = 6) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts, numbered from 1, largest first, and their voxel counts (0 for the background)."""
    numbered = np.zeros(mask.shape, np.int32)
    if not mask.any():
        return numbered, np.zeros(1, np.int64)
    box = bounding_box(mask, 0, (1, 1, 1))
    parts, count = cc3d.connected_components(mask[box], connectivity=connectivity, return_N=True)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    order = np.concatenate([[0], 1 + np.argsort(-sizes[1:], kind="stable")])
    rank = np.empty(count + 1, np.int32)
    rank[order] = np.arange(count + 1)
    numbered[box] = rank[parts]
    return numbered, sizes[order]


def bounding_box(mask: np.ndarray, margin_mm: float, spacing_mm: Spacing) -> tuple[slice, slice, slice]:
    """The smallest box of the array that holds the mask and a margin around it."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(margin_mm / spacing_mm[axis]))
        box.append(slice(max(0, hit[0] - margin), min(mask.shape[axis], hit[-1] + 1 + margin)))
    return box[0], box[1], box[2]
