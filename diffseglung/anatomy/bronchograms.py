"""Dense lung known by the open bronchi in it: consolidation that fills an angle or lies broad on wall or mediastinum.

Its outline and density are those of the spleen, the liver and the muscle that it lies on; but its bronchi stay open
(air bronchograms), and those hold none. Beyond its bronchi it reaches no further than lung and bronchi together span.
"""

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import Spacing, closing, components, dilate, distance_mm, opening
from diffseglung.anatomy.wall import BONE_HU

SOFT_HU, OPEN_HU = -50, -200  # a bronchus is this open on a grid of 2 mm, in tissue this dense
BRONCHUS_MM = 4.0  # the widest radius
RIM_MM = 4.0  # half lung, half wall: as light as a bronchus
GAS_HU, GAS_ML, GAS_WALL_MM = -300, 1.5, 6.0  # of stomach and bowel; folds of their wall hold smaller bubbles
DEEPEST_MM = 35.0  # from the lung's air
AROUND_MM = 25.0  # dense lung has a bronchus within this
SPAN_MM, BEYOND_MM = 30.0, 4.0
MIN_BODY_ML, MIN_BRONCHI_ML = 3.0, 0.05
# At the ribs, where spleen and stomach lie too, it has two bronchi or more, one of them emptier than a blurred fold of
# fat and gas; it lies on the lung broadly, its bronchi near it, but deeper than a fold of lung that the mask lost.
MIN_BRONCHI, EMPTY_HU = 2, -320
MIN_ON_LUNG, USUAL_DEPTH_MM, FOLD_MM, RIBS_MM, MIN_AT_RIBS = 0.25, 13.0, 8.0, 12.0, 0.1
# At the mediastinum lung holds it on most sides, from below too: the belly has no lung below it. One bronchus will do.
MIN_EMBRACED, MIN_UNDER, LIGHT_HU = 0.5, 0.2, -240


def open_bronchi(
    lung: np.ndarray, hu: np.ndarray, airways: np.ndarray, hilar: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """Thin air with soft tissue all around it, off the lung's rim and off the gas of stomach and bowel (bool).

    None in `hilar` counts: there bronchi are open in health.
    """
    outside = ~dilate(lung, RIM_MM, spacing_mm) & ~airways & ~hilar
    thin = outside & (hu < OPEN_HU)
    thin &= closing(hu > SOFT_HU, BRONCHUS_MM, spacing_mm)
    gas, sizes = components((hu < GAS_HU) & ~lung & ~airways)
    large = np.isin(gas, np.flatnonzero(sizes * float(np.prod(spacing_mm)) / 1000 > GAS_ML))
    return thin & ~dilate(large, GAS_WALL_MM, spacing_mm)


def dense_around_bronchi(
    lungs: np.ndarray,
    number: int,
    bronchi: np.ndarray,
    hu: np.ndarray,
    airways: np.ndarray,
    spacing_mm: Spacing,
) -> np.ndarray:
    """Bodies of consolidated lung around the `open_bronchi` that lie by the lung `number` (1 right, 2 left; bool).

    `lungs` (uint8) holds both as far as they are known.
    """
    bodies = np.zeros(lungs.shape, bool)
    if not bronchi.any():
        return bodies
    lung = lungs == number
    depth_mm = distance_mm(lung, spacing_mm)
    bronchi = bronchi & (depth_mm < DEEPEST_MM)
    if not _are_bronchi(bronchi, hu, spacing_mm, 1, LIGHT_HU):
        return bodies
    spanned = dilate(closing(lung | bronchi, SPAN_MM, spacing_mm), BEYOND_MM, spacing_mm)
    dense = (lungs == 0) & ~dilate(airways, 3.0, spacing_mm) & (hu < BONE_HU)
    parts, sizes = components(
        opening(dense & spanned & dilate(bronchi, AROUND_MM, spacing_mm), 4.0, spacing_mm)
    )
    on_lung = depth_mm <= 5.0
    at_ribs = dilate(hu > BONE_HU, RIBS_MM, spacing_mm)
    for part in np.flatnonzero(sizes * float(np.prod(spacing_mm)) / 1000 >= MIN_BODY_ML):
        body = parts == part
        inside = bronchi & body
        around = ndimage.binary_dilation(body) & ~body
        share = on_lung[around].mean()
        if (
            _are_bronchi(inside, hu, spacing_mm, MIN_BRONCHI, EMPTY_HU)
            and depth_mm[inside].max() > FOLD_MM
            and np.median(depth_mm[inside]) <= USUAL_DEPTH_MM
            and share >= MIN_ON_LUNG
            and at_ribs[around & (lungs == 0)].mean() >= MIN_AT_RIBS
        ) or (
            _are_bronchi(inside, hu, spacing_mm, 1, LIGHT_HU)
            and share >= MIN_EMBRACED
            and _lung_under(body, lung) >= MIN_UNDER
        ):
            bodies |= body
    return bodies


def _are_bronchi(
    inside: np.ndarray, hu: np.ndarray, spacing_mm: Spacing, least: int, empty_hu: float
) -> bool:
    """Whether the thin air in a body is more than a bubble, a blurred fold and noise of single voxels."""
    _, sizes = components(inside, connectivity=26)
    ml = sizes.sum() * float(np.prod(spacing_mm)) / 1000
    several = int(np.count_nonzero(sizes > 1)) >= least
    return bool(several and ml >= MIN_BRONCHI_ML and hu[inside].min() <= empty_hu)


def _lung_under(body: np.ndarray, lung: np.ndarray) -> float:
    """Of the columns of a body, seen from above, the share with lung further down."""
    columns = body.any(0)
    lowest = body.argmax(0)
    first = np.where(lung.any(0), lung.argmax(0), len(lung))
    return float((first < lowest)[columns].mean())
