"""From the working grid back to the scan's own: shares of a voxel interpolated, and cut at one half."""

import numba
import numpy as np

from diffseglung.anatomy.morphology import bounding_box
from diffseglung.grid import Grid, coarser_of, crop_grid, linear_reading, read_row, respace
from diffseglung.labels import Structure

TOUCHED = np.float32(0.02)  # share of a vessel in a voxel
HALF = np.float32(0.5)
RIGHT, LEFT = np.uint8(Structure.RIGHT_LUNG), np.uint8(Structure.LEFT_LUNG)
AIRWAY, VESSEL = np.uint8(Structure.AIRWAY), np.uint8(Structure.VESSEL)


def to_full_grid(
    side: np.ndarray,
    airways: np.ndarray,
    vessels: np.ndarray,
    rim_hu: np.ndarray,
    source: Grid,
    hu: np.ndarray,
    target: Grid,
    lungs: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Structure labels and sides (1 right, 2 left), uint8 (z, y, x) on `target`, whose density is `hu`.

    `side`, `airways`, `vessels` and `rim_hu` lie on `source`: a voxel that a vessel only touches is the vessel's too
    where it is denser than `rim_hu`. Given `lungs` (nonzero is lung, on `target`) are kept to the voxel.
    """
    labels, fine_side = np.zeros(target.shape, np.uint8), np.zeros(target.shape, np.uint8)
    between = coarser_of(source, target)
    found = np.asarray(respace((side > 0) | airways, source, between) > 0)
    if found.any():
        box = bounding_box(found, max(between.spacing_mm), between.spacing_mm)
        maps = (side == 1, side == 2, airways, vessels, rim_hu)
        coarse = np.stack([respace(each, source, between, box) for each in maps], axis=-1)
        given = np.zeros((1, 1, 1), bool) if lungs is None else lungs > 0
        at = linear_reading(crop_grid(between, box), target)
        _decide(coarse, _reach(coarse[..., :3]), at, hu, given, lungs is not None, labels, fine_side)
    return labels, fine_side


def _reach(maps: np.ndarray) -> np.ndarray:
    """From where to where along x any map of a row is above 0: int (z, y, 2), the end excluded."""
    held = np.any(maps, axis=-1)
    first = held.argmax(axis=-1)
    end = held.shape[-1] - held[..., ::-1].argmax(axis=-1)
    return np.stack([first, np.where(held.any(axis=-1), end, first)], axis=-1)


@numba.njit(nogil=True, cache=True)
def _decide(maps, reach, at, hu, given, is_given, labels, side):
    (low_z, high_z, share_z), (low_y, high_y, share_y), (low_x, high_x, share_x) = at
    row = np.empty(maps.shape[2:], np.float32)
    for z in range(len(low_z)):
        z0, z1 = low_z[z], high_z[z]
        for y in range(len(low_y)):
            y0, y1 = low_y[y], high_y[y]
            first, end = maps.shape[2], 0
            for a, b in ((z0, y0), (z0, y1), (z1, y0), (z1, y1)):
                if reach[a, b, 1] > reach[a, b, 0]:
                    first, end = min(first, reach[a, b, 0]), max(end, reach[a, b, 1])
            if is_given:
                first, end = 0, maps.shape[2]
            # A voxel between the reach and its neighbour holds a share of both.
            over_z, over_y = (z0, z1, share_z[z]), (y0, y1, share_y[y])
            read_row(maps, over_z, over_y, max(0, first - 1), min(end + 1, maps.shape[2]), row)
            for x in range(len(low_x)):
                x0, x1, dx = low_x[x], high_x[x], share_x[x]
                if x1 < first or x0 >= end:
                    continue
                right = row[x0, 0] + dx * (row[x1, 0] - row[x0, 0])
                left = row[x0, 1] + dx * (row[x1, 1] - row[x0, 1])
                airway = row[x0, 2] + dx * (row[x1, 2] - row[x0, 2])
                if given[z, y, x] if is_given else (right + left > HALF and airway <= HALF):
                    which = RIGHT if right >= left else LEFT
                    side[z, y, x] = labels[z, y, x] = which
                    vessel = row[x0, 3] + dx * (row[x1, 3] - row[x0, 3])
                    rim = row[x0, 4] + dx * (row[x1, 4] - row[x0, 4])
                    if vessel > HALF or (vessel > TOUCHED and hu[z, y, x] > rim):
                        labels[z, y, x] = VESSEL
                elif airway > HALF:
                    labels[z, y, x] = AIRWAY
