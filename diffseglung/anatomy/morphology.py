"""Balls in millimetres: dilation, erosion, opening and closing by distance, on grids of any spacing.

Masks are bool (z, y, x), spacings (z, y, x) in mm; each is worked on in its own box alone. Outside the array
there is neither lung nor tissue.
"""

from typing import Literal

import cc3d
import edt
import numba
import numpy as np
import SimpleITK as sitk

Spacing = tuple[float, float, float]

FAR_VOX = 40  # from here on the exact distance of every voxel costs less than looking at so many rows
ROUNDING = 1e-6  # a distance in single precision may be a hair more than the radius that it is


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
        out[box] = _near(mask[box], radius_mm, spacing_mm)
    return out


def erode(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """The voxels of the mask that lie further than `radius_mm` from everything outside it."""
    out = np.zeros(mask.shape, bool)
    if mask.any():
        box = bounding_box(
            mask, max(spacing_mm), spacing_mm
        )  # its nearest outside is next to its box, or inside
        out[box] = ~_near(~mask[box], radius_mm, spacing_mm)
    return out


def _near(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """Every voxel of the array within `radius_mm` of the mask: what `distance_mm` says, from the nearest rows alone."""
    reach_z, reach_y = (int(radius_mm / mm + ROUNDING) for mm in spacing_mm[:2])
    if reach_z + reach_y > FAR_VOX:
        return distance_mm(mask, spacing_mm) <= radius_mm
    out = np.empty(mask.shape, bool)
    dz, dy, dx = (np.float32(mm) for mm in spacing_mm)
    squared = np.float32(radius_mm**2 * (1 + ROUNDING))
    _reach(np.ascontiguousarray(mask), squared, (dz, dy, dx), reach_z, reach_y, out)
    return out


@numba.njit(nogil=True, cache=True)
def _reach(mask, squared, spacing, reach_z, reach_y, out):
    """Squared distances along x, then the least over y, then over z, as far as the reach goes, a slice at a time."""
    depth, height, width = mask.shape
    dz, dy, dx = spacing
    ring = np.empty((2 * reach_z + 1, height, width), np.float32)  # slices with distances along x and y
    known = np.zeros((2 * reach_z + 1, height), np.bool_)  # rows of them that anything is near to
    rows, held = np.empty((height, width), np.float32), np.empty(height, np.bool_)
    nearest = np.empty(width, np.float32)
    made = 0
    for z in range(depth):
        while made <= min(z + reach_z, depth - 1):
            slot = made % len(ring)
            for y in range(height):
                held[y] = _along_row(mask[made, y], dx, rows[y])
            for y in range(height):
                known[slot, y] = False
                for other in range(max(0, y - reach_y), min(height, y + reach_y + 1)):
                    if held[other]:
                        _nearer(rows[other], (dy * (other - y)) ** 2, ring[slot, y], not known[slot, y])
                        known[slot, y] = True
            made += 1
        for y in range(height):
            found = False
            for other in range(max(0, z - reach_z), min(depth, z + reach_z + 1)):
                slot = other % len(ring)
                if known[slot, y]:
                    _nearer(ring[slot, y], (dz * (other - z)) ** 2, nearest, not found)
                    found = True
            for x in range(width):
                out[z, y, x] = found and nearest[x] <= squared


@numba.njit(nogil=True, cache=True)
def _along_row(mask, dx, out):
    """Squared distance of each voxel of a row to its nearest in the mask; False where the row holds none."""
    last = -1
    for x in range(len(mask)):
        if mask[x]:
            last = x
        out[x] = x - last if last >= 0 else len(mask)
    if last < 0:
        return False
    for x in range(len(mask) - 1, -1, -1):
        if mask[x]:
            last = x
        steps = min(out[x], np.float32(abs(last - x)))
        out[x] = (dx * steps) ** 2
    return True


@numba.njit(nogil=True, cache=True)
def _nearer(row, further, out, anew):
    """The least of what is there (nothing yet: `anew`) and a row that lies so much further, all squared."""
    step = np.float32(further)
    if anew:
        for x in range(len(row)):
            out[x] = row[x] + step
    else:
        for x in range(len(row)):
            out[x] = min(out[x], row[x] + step)


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
    box = bounding_box(mask, 1, (1, 1, 1))  # cc3d 4.1 fails on a row of single voxels without a margin
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
