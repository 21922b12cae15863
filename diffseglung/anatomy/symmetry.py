"""Dense lung out to the pleura, where the other lung, mirrored, shows how far out that lies.

A ball rolled over the lung's air draws a chord where consolidation lies under a curved wall, and no rib is near enough
to say what is behind it, at the apex least of all. The other lung's surface is curved the same way.
"""

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import Spacing, bounding_box, components, dilate, distance_mm, opening
from diffseglung.anatomy.wall import BONE_HU

DENSE_HU, SOFT_HU = -200, -300  # smoothed, and of a voxel
THINNEST_MM, BODY_ML = 2.0, 2.0  # a body's radius: a vessel at the pleura is none
REACH_MM = 14.0  # from a body; a chord lies no deeper
RIM_MM = 4.0  # of a body, where the lung's surface may be the chord
ALIKE_MM = 20.0  # standard deviation of the Gaussian over which the lungs differ by the same
OPPOSITE_MM = 25.0  # surfaces that differ by more are not each other's


def dense_as_mirrored(
    lungs: np.ndarray,
    number: int,
    hu: np.ndarray,
    keep_out: np.ndarray,
    spacing_mm: Spacing,
) -> np.ndarray:
    """What joins the dense bodies at the surface of the lung `number` and has the other lung in its mirror (bool).

    By how much the lungs differ is measured where air reaches the surface, and carried over. Only what has this lung's
    air below it counts: diaphragm, liver and stomach have none. `lungs` (uint8, 1 right, 2 left) holds both as far as
    they are known, `keep_out` what is surely something else, the hila too.
    """
    found = np.zeros(lungs.shape, bool)
    lung, other = lungs == number, lungs == 3 - number
    solid = opening(
        lung & ~keep_out & (ndimage.gaussian_filter(hu, 0.75) > DENSE_HU), THINNEST_MM, spacing_mm
    )
    bodies, sizes = components(solid)
    solid = np.isin(bodies, np.flatnonzero(sizes * float(np.prod(spacing_mm)) / 1000 >= BODY_ML))
    if not solid.any() or not other.any():
        return found
    box = bounding_box(solid, REACH_MM + 3 * ALIKE_MM, spacing_mm)
    inside_mm = _depth_mm(mirrored(other, middle(lungs)), spacing_mm)[box]
    air = lung & ~dilate(solid, RIM_MM, spacing_mm)
    below = np.logical_or.accumulate(air, axis=0)[box]
    surface = (air & ~ndimage.binary_erosion(lung))[box] & (np.abs(inside_mm) < OPPOSITE_MM)
    beyond = (lungs == 0)[box] & ~keep_out[box] & (hu[box] > SOFT_HU) & (hu[box] < BONE_HU)
    cap = beyond & below & dilate(solid[box], REACH_MM, spacing_mm)
    cap &= inside_mm >= _around(inside_mm, surface, spacing_mm)
    cap &= opening(cap | solid[box], THINNEST_MM, spacing_mm)
    joined, _ = components(cap | solid[box])
    found[box] = cap & np.isin(joined, np.unique(joined[solid[box]]))
    return found


def middle(lungs: np.ndarray) -> int:
    """Twice the column at which the right lung, mirrored, lies on the left one best; of the upper half, off the heart.

    `lungs` uint8 (z, y, x): 1 right, 2 left.
    """
    heights = np.flatnonzero((lungs > 0).any((1, 2)))
    upper = lungs[(heights[0] + heights[-1]) // 2 :]
    right, left = ((upper == number).sum(1) for number in (1, 2))
    overlap = [np.minimum(mirrored(right, c), left).sum() for c in range(2 * lungs.shape[2] - 1)]
    return int(np.argmax(overlap))


def mirrored(a: np.ndarray, twice: int) -> np.ndarray:
    """The array with column x where `twice` - x was; 0 where there was none."""
    out = np.zeros_like(a)
    x = np.arange(a.shape[-1])
    there = (twice - x >= 0) & (twice - x < len(x))
    out[..., x[there]] = a[..., twice - x[there]]
    return out


def _depth_mm(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """How deep in the mask each voxel lies; outside it, how far off, below 0 (float32)."""
    return np.where(mask, distance_mm(~mask, spacing_mm), -distance_mm(mask, spacing_mm))


def _around(values: np.ndarray, where: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The mean of the values of a mask around each voxel (float32); infinite where there are none."""
    sigma = [ALIKE_MM / mm for mm in spacing_mm]
    weight, total = (
        ndimage.gaussian_filter(np.where(where, v, 0).astype(np.float32), sigma) for v in (1, values)
    )
    return np.divide(total, weight, out=np.full_like(total, np.inf), where=weight > 1e-4)
