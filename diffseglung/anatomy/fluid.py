"""Pleural fluid, told from consolidated lung: thinner than muscle, and no bronchus is open in it.

Muscle has 50 to 60 HU, airless lung 30 or more, fluid 0 to 20. The two may lie side by side in one dense body, and
lung that fluid squeezes is half as light as air: that says nothing about what lies deeper.
"""

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import Spacing, bounding_box, components, dilate, distance_mm

BELOW_MUSCLE_HU = 22.0
HOLLOW_HU = -150.0
SQUEEZED_MM = 6.0  # from the lung's air: blurred, or half aerated
AROUND_MM = 18.0  # an open bronchus vouches for so much of what is around it
LEAST_ML = 3.0  # beside what is denser; less, this deep, is dead tissue in a mass, or fat between ribs
GRAIN_MM = 4.0  # standard deviation of the Gaussian in which most voxels have to be light: wider than noise


def without_fluid(body: np.ndarray, hu: np.ndarray, lungs: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """What of the dense bodies beside the lungs (bool) is no fluid; a body without anything deep in it stays whole."""
    kept = body.copy()
    if body.any():
        box = bounding_box(body, 2 * SQUEEZED_MM, spacing_mm)
        light = hu[box] < muscle_hu(hu, lungs) - BELOW_MUSCLE_HU
        kept[box] &= ~_fluid(body[box], light, hu[box] < HOLLOW_HU, lungs[box], spacing_mm)
    return kept


def muscle_hu(hu: np.ndarray, lungs: np.ndarray) -> float:
    """The scan's own density of soft tissue, most of it muscle."""
    soft = hu[~lungs & (hu > 0) & (hu < 110)]
    return float(np.median(soft)) if soft.size else 50.0


def _fluid(
    body: np.ndarray, light: np.ndarray, empty: np.ndarray, lungs: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """Of the bodies, where most of what lies deep is `light`, and no bronchus, which would be `empty`, is near."""
    deep = body & (distance_mm(lungs, spacing_mm) > SQUEEZED_MM)
    hollow = deep & empty
    thin = deep & (_share_around(light, deep & ~hollow, spacing_mm) > 0.5)
    thin &= ~dilate(hollow, AROUND_MM, spacing_mm)
    thin &= _most_of(components(body)[0], thin, deep) | _at_least(LEAST_ML, thin, spacing_mm)
    return body & (distance_mm(thin, spacing_mm) < distance_mm(deep & ~thin, spacing_mm))


def _most_of(bodies: np.ndarray, part: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The bodies (numbered from 1) that have most of `of` in a part of it (bool)."""
    count = int(bodies.max()) + 1
    held, whole = (np.bincount(bodies[mask], minlength=count) for mask in (part, of))
    return (2 * held > whole)[bodies]


def _at_least(ml: float, mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The connected parts of a mask of that volume or more (bool)."""
    parts, sizes = components(mask)
    return np.isin(parts, np.flatnonzero(sizes * float(np.prod(spacing_mm)) / 1000 >= ml))


def _share_around(what: np.ndarray, of: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The share of a mask's voxels around each voxel that are `what` (float32); 0 where there are none."""
    sigma = [GRAIN_MM / mm for mm in spacing_mm]
    part, whole = (ndimage.gaussian_filter(mask.astype(np.float32), sigma) for mask in (of & what, of))
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 1e-4)
