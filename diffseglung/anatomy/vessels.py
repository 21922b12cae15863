"""The vessels inside the lungs: bright tubes in a darker lung, at every calibre from 2 mm to the hilum."""

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import Spacing, components, dilate, distance_mm, erode

SCALES_MM = (1.5, 2.5, 4.0)
SURE_HU, LIKELY_HU = 40.0, 20.0  # tubeness: a vessel has some of the first and ends with the second
MIN_VESSEL_ML = 0.1
EMPTIEST_HU = -880.0  # healthy lung at full inspiration
# Above the lung's mode, over 15 mm: ground glass or a honeycomb, whose walls are tubes too; where no rim is sought.
CROWDED_HU, CALM_HU = 100.0, 65.0
# Above the mode: what is denser does not count there, or a thick vessel would pass for a crowd.
WALL_HU = 350.0
SOLID_HU, BRANCHING_MM = -500.0, 6.0
RIM_HU, RIM_CONTRAST_HU = -700.0, 60.0  # the voxels beside a vessel that hold some of it
# Twice as thick (more where the scan's voxels are coarser), nowhere denser and in a crowd: ground glass. A vessel's
# middle would be blood.
LIGHT_MM, LIGHT_HU = 3.0, -400.0


def find_vessels(
    hu: np.ndarray,
    lungs: np.ndarray,
    airways: np.ndarray,
    spacing_mm: Spacing,
    *,
    hilum_mm: float,
    scan_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Vessels inside the lungs, and the walls of the bronchi, which look the same on a slice (bool).

    What is thicker than a vessel is none, however tube-like its edge: 11 mm for ground glass and denser, 18 mm
    within `hilum_mm` of the large airways, where the pulmonary arteries are. Nor is what `light_bodies` finds, for
    which `scan_mm` is the longest edge of the scan's own voxels.

    With them comes the density (float32, HU) above which a voxel that a vessel only touches holds some of it.
    """
    if not lungs.any():
        return np.zeros(lungs.shape, bool), np.zeros(lungs.shape, np.float32)
    # What is emptier is emphysema, and in a lung full of it what is left of healthy lung is no crowd.
    mode_hu = max(lung_mode_hu(hu, lungs), EMPTIEST_HU)
    # The chest wall would outshine every vessel that runs along it.
    flat = np.where(lungs, np.clip(hu, -1000, 100), mode_hu).astype(np.float32)
    bright = lungs & (hu > max(mode_hu + 130, -750))
    # The lung's outermost voxels are half chest wall, and bright for that reason alone.
    bright &= ndimage.binary_erosion(lungs)
    points = np.nonzero(bright)
    tubes = np.zeros(hu.shape, np.float32)
    tubes[points] = tubeness(flat, points, spacing_mm)
    parts, sizes = components(tubes > LIKELY_HU, connectivity=26)
    sure = np.unique(parts[tubes > SURE_HU])
    vessels = np.isin(parts, sure[sizes[sure] * float(np.prod(spacing_mm)) / 1000 >= MIN_VESSEL_ML])
    around_hu = neighbourhood_hu(hu, lungs, spacing_mm, below_hu=mode_hu + WALL_HU)
    from_airway_mm = distance_mm(airways, spacing_mm)
    hilar = from_airway_mm < hilum_mm
    calm = hilar | (around_hu <= mode_hu + CALM_HU)
    vessels |= bright & (from_airway_mm <= 4.0)
    # Where a vessel branches it looks like a ball, and where the lung's border cuts it like half of one.
    vessels |= calm & lungs & (hu > SOLID_HU) & dilate(vessels, BRANCHING_MM, spacing_mm)
    thick = dilate(erode(lungs & (hu > -650), 5.5, spacing_mm) & ~hilar, 8.0, spacing_mm)
    thick |= dilate(erode(lungs & (hu > -450), 9.0, spacing_mm), 11.0, spacing_mm)
    vessels &= hilar | (around_hu <= mode_hu + CROWDED_HU)
    rim = bright & (hu > RIM_HU) & dilate(vessels, 2.0, spacing_mm)
    light = light_bodies(flat, lungs, around_hu, mode_hu, max(LIGHT_MM, scan_mm), spacing_mm)
    rim_hu = np.where(calm & ~light, np.maximum(RIM_HU, around_hu + RIM_CONTRAST_HU), np.float32(1000))
    return (vessels | rim) & ~(thick & (hu > -650)) & ~light, rim_hu.astype(np.float32)


def light_bodies(
    hu: np.ndarray,
    lungs: np.ndarray,
    around_hu: np.ndarray,
    mode_hu: float,
    radius_mm: float,
    spacing_mm: Spacing,
) -> np.ndarray:
    """What is as thick as a vessel whose middle would show blood, and does not, with 2 mm around it (bool).

    As thick is a ball of `radius_mm`, twice the length over which the scan's voxels blur, and somewhere in the body
    it is as thick at half its height above the lung too, where calibres are measured: a thin vessel is blurred into
    a thick and light one, but at its foot alone. `hu` is that of the lungs, without what is beside them. Where
    `around_hu`, the density of the surroundings, is near the lung's mode, thin vessels and bronchi that run together
    are as light, and stay vessels.
    """
    thick = erode(lungs & (hu > RIM_HU), radius_mm, spacing_mm)
    densest = ndimage.maximum_filter(ndimage.uniform_filter(hu, 3), 3)
    light = thick & (densest < LIGHT_HU)
    broad = light & erode(lungs & (hu > (densest + mode_hu) / 2), radius_mm, spacing_mm)
    bodies, sizes = components(dilate(light, radius_mm, spacing_mm), connectivity=26)
    crowded = np.bincount(bodies.ravel(), around_hu.ravel(), len(sizes)) > (mode_hu + CROWDED_HU) * sizes
    no_vessel = crowded & (np.bincount(bodies[broad], minlength=len(sizes)) > 0)
    no_vessel[0] = False
    return dilate(no_vessel[bodies], 2.0, spacing_mm)


def lung_mode_hu(hu: np.ndarray, lungs: np.ndarray) -> float:
    """The commonest density of the lungs, which is healthy parenchyma in all but the worst of them."""
    counts = np.bincount(np.clip(hu[lungs] + 1000, 0, 500).astype(int), minlength=501)[:500]
    return float(ndimage.gaussian_filter1d(counts[1:].astype(float), 12).argmax() + 1 - 1000)


def neighbourhood_hu(
    hu: np.ndarray, lungs: np.ndarray, spacing_mm: Spacing, *, below_hu: float, scale_mm: float = 6.0
) -> np.ndarray:
    """The mean density (float32) of what is below `below_hu` around each voxel, without the lung's outermost voxels."""
    counted = (ndimage.binary_erosion(lungs) & (hu < below_hu)).astype(np.float32)
    sigma = scale_mm / np.asarray(spacing_mm)
    weight = ndimage.gaussian_filter(counted, sigma, truncate=2.5)
    return ndimage.gaussian_filter(hu * counted, sigma, truncate=2.5) / np.maximum(weight, 1e-3)


def hessian_at(smooth: np.ndarray, points: tuple[np.ndarray, ...], spacing_mm: Spacing) -> np.ndarray:
    """Second derivatives (n, 3, 3) in HU per mm2 by central differences at voxels that are off the border."""
    matrix = np.empty((len(points[0]), 3, 3), np.float32)

    def at(*offset: int) -> np.ndarray:
        return smooth[tuple(p + o for p, o in zip(points, offset, strict=True))]

    unit = np.eye(3, dtype=int)
    centre = at(0, 0, 0)
    for a in range(3):
        matrix[:, a, a] = (at(*unit[a]) + at(*-unit[a]) - 2 * centre) / spacing_mm[a] ** 2
        for b in range(a):
            corners = at(*(unit[a] + unit[b])) + at(*(-unit[a] - unit[b]))
            corners = corners - at(*(unit[a] - unit[b])) - at(*(unit[b] - unit[a]))
            matrix[:, a, b] = matrix[:, b, a] = corners / (4 * spacing_mm[a] * spacing_mm[b])
    return matrix


def tubeness(hu: np.ndarray, points: tuple[np.ndarray, ...], spacing_mm: Spacing) -> np.ndarray:
    """How much like a bright tube each point's surroundings are, in HU: the best of several calibres.

    From the curvatures: a tube curves down in two directions and not in the third, a sheet (fissure, pleura)
    in one, a ball (nodule) in three. After Sato et al., Med Image Anal 1998.
    """
    best = np.zeros(len(points[0]), np.float32)
    for scale_mm in SCALES_MM:
        smooth = ndimage.gaussian_filter(hu, scale_mm / np.asarray(spacing_mm), truncate=3)
        _, l2, l1 = np.linalg.eigvalsh(hessian_at(smooth, points, spacing_mm)).T
        down = np.maximum(-l2, 0)
        ball = np.clip(-l1 / np.maximum(down, 1e-6), 0, 1)
        best = np.maximum(best, scale_mm**2 * down * (1 - ball))
    return best
