"""Compiled filters for whole scans. Those that answer in bytes keep no second scan of floats."""

from collections.abc import Sequence

import numba
import numpy as np
from scipy import ndimage

LONGEST = 254  # what a run of voxels is counted to


def smoothed_below(
    hu: np.ndarray, sigma_vox: Sequence[float], limits: Sequence[float], where: np.ndarray
) -> np.ndarray:
    """How many of some limits density, smoothed by a Gaussian, lies below: uint8 (z, y, x), 0 where it is not asked.

    hu (z, y, x), `where` a bool mask, `sigma_vox` along (z, y, x). As scipy's `gaussian_filter`, with its reach of
    four standard deviations and its mirrored borders, but in one go and for the rows that are asked alone.
    """
    z, y, x = (gaussian(sigma) for sigma in sigma_vox)
    out = np.zeros(hu.shape, np.uint8)
    if out.size:
        _smoothed_below(hu, z, y, x, np.asarray(limits, np.float32), where, out)
    return out


def eroded_by_box(mask: np.ndarray, width: Sequence[int]) -> np.ndarray:
    """The voxels whose box of an odd `width` along (z, y, x) lies in the mask and in the array: bool (z, y, x)."""
    if any(w % 2 == 0 or w > LONGEST for w in width):
        raise ValueError(f"a box's width {tuple(width)} must be odd and at most {LONGEST} voxels")
    out = np.zeros(mask.shape, bool)
    if out.size:
        z, y, x = width
        _eroded_by_box(mask, z, y, x, out)
    return out


def correlated(
    volume: np.ndarray, along_z: np.ndarray, along_y: np.ndarray, along_x: np.ndarray
) -> np.ndarray:
    """A volume correlated with an odd number of weights along each axis, all float32; its border is a mirror."""
    return _correlated(np.ascontiguousarray(volume, np.float32), along_z, along_y, along_x)


def gaussian(sigma: float) -> np.ndarray:
    """Its weights from the centre outwards, up to four standard deviations (voxels), float32, as scipy has them."""
    reach = int(4 * sigma + 0.5)
    impulse = np.zeros(2 * reach + 1)
    impulse[reach] = 1
    return (
        ndimage.gaussian_filter1d(impulse, sigma)[reach:].astype(np.float32)
        if reach
        else np.ones(1, np.float32)
    )


@numba.njit(nogil=True, cache=True)
def _mirrored(i, count):
    """Index `i` of an axis whose ends are mirrors: (d c b a | a b c d | d c b a)."""
    i = i % (2 * count)
    return i if i < count else 2 * count - 1 - i


@numba.njit(nogil=True, cache=True)
def _smoothed_below(hu, wz, wy, wx, limits, where, out):
    depth, height, width = hu.shape
    reach_z, reach_y, reach_x = len(wz) - 1, len(wy) - 1, len(wx) - 1
    ring = np.empty((2 * reach_z + 1, height, width), np.float32)  # slices smoothed along y and x
    row, wide, total = (
        np.empty(width, np.float32),
        np.empty(width + 2 * reach_x, np.float32),
        np.empty(width, np.float32),
    )
    made = 0  # slices that were ever put into the ring
    for z in range(depth):
        while made <= min(z + reach_z, depth - 1):
            plane, given = ring[made % len(ring)], hu[made].astype(np.float32)
            for y in range(height):
                _blend(given[y], given[y], wy[0] / 2, row, True)
                for k in range(1, reach_y + 1):
                    above, below = _mirrored(y - k, height), _mirrored(y + k, height)
                    _blend(given[above], given[below], wy[k], row, False)
                for x in range(reach_x):
                    wide[x] = row[_mirrored(x - reach_x, width)]
                    wide[reach_x + width + x] = row[_mirrored(width + x, width)]
                wide[reach_x : reach_x + width] = row
                for k in range(reach_x + 1):
                    left, right = reach_x - k, reach_x + k
                    weight = wx[k] if k else wx[0] / 2
                    _blend(wide[left : left + width], wide[right : right + width], weight, plane[y], k == 0)
            made += 1
        for y in range(height):
            if not where[z, y].any():
                continue
            here = ring[z % len(ring), y]
            _blend(here, here, wz[0] / 2, total, True)
            for k in range(1, reach_z + 1):
                before, behind = _mirrored(z - k, depth) % len(ring), _mirrored(z + k, depth) % len(ring)
                _blend(ring[before, y], ring[behind, y], wz[k], total, False)
            for limit in limits:
                for x in range(width):
                    out[z, y, x] += where[z, y, x] and total[x] < limit


@numba.njit(nogil=True, cache=True)
def _blend(a, b, weight, total, anew):
    """total += weight (a + b), or = that."""
    if anew:
        for i in range(len(total)):
            total[i] = weight * (a[i] + b[i])
    else:
        for i in range(len(total)):
            total[i] += weight * (a[i] + b[i])


@numba.njit(nogil=True, cache=True)
def _eroded_by_box(mask, size_z, size_y, size_x, out):
    """Along each axis a voxel stays where the run of voxels that ends half a width behind it is long enough."""
    depth, height, width = mask.shape
    in_rows = np.zeros(width, np.uint8)
    along_y, along_z = np.zeros(width, np.uint8), np.zeros((height, width), np.uint8)
    plane = np.zeros((height, width), np.uint8)
    for z in range(depth):
        plane[:] = 0
        along_y[:] = 0
        for y in range(height):
            run = 0
            for x in range(width):
                run = run + 1 if mask[z, y, x] else 0
                if x >= size_x // 2:
                    in_rows[x - size_x // 2] = run >= size_x
            for x in range(max(0, width - size_x // 2), width):
                in_rows[x] = 0
            _count(along_y, in_rows)
            if y >= size_y // 2:
                for x in range(width):
                    plane[y - size_y // 2, x] = along_y[x] >= size_y
        for y in range(height):
            _count(along_z[y], plane[y])
        if z >= size_z // 2:
            for y in range(height):
                for x in range(width):
                    out[z - size_z // 2, y, x] = along_z[y, x] >= size_z


@numba.njit(nogil=True, cache=True)
def _count(runs, more):
    """How long the runs of voxels are with one more voxel each; beyond 254 nobody asks."""
    for i in range(len(runs)):
        runs[i] = min(runs[i], np.uint8(254)) * more[i] + more[i]


@numba.njit(nogil=True, cache=True)
def _correlated(volume, along_z, along_y, along_x):
    depth, height, width = volume.shape
    before = len(along_x) // 2
    filtered = np.zeros_like(volume)
    plane = np.empty((height, width), np.float32)
    row = np.empty(width + 2 * before, np.float32)
    for z in range(depth):
        plane[:] = 0
        for k in range(len(along_z)):
            _add(plane.ravel(), volume[_mirrored(z + k - len(along_z) // 2, depth)].ravel(), along_z[k])
        for y in range(height):
            row[:] = 0
            for k in range(len(along_y)):
                own = plane[_mirrored(y + k - len(along_y) // 2, height)]
                _add(row[before : before + width], own, along_y[k])
            for x in range(-before, 0):
                row[before + x] = row[before + _mirrored(x, width)]
                row[before + width - 1 - x] = row[before + _mirrored(width - 1 - x, width)]
            for k in range(len(along_x)):
                _add(filtered[z, y], row[k : k + width], along_x[k])
    return filtered


@numba.njit(nogil=True, cache=True)
def _add(out, volume, weight):
    for i in range(len(out)):
        out[i] += weight * volume[i]
