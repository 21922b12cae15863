"""What may pass for a chest CT in Hounsfield units; everything else is refused, in words."""

import numpy as np

from diffseglung.frozen import frozen
from diffseglung.grid import AXES, Grid

AIR_HU = -1000
FILLER_HU = -1024
# Air and aerated lung; below lie only fillers (-2000, -3024), and a few registration results reach -1100.
AERATED_HU = (-1200, -800)
# Fat, blood, muscle, with room for noise.
SOFT_HU = (-200, 300)


class UnreadableScan(ValueError):
    """A scan that cannot be read as a chest CT. The message says what is wrong, where, and what to do."""


@frozen
class VolumeConfig:
    """What a scan must be before anything is measured on it."""

    max_slice_mm: float = 6.0
    min_fov_mm: float = 50.0
    max_tilt_deg: float = 1.0
    max_uneven: float = 0.1
    min_aerated: float = 0.002
    min_soft: float = 0.002

    def __post_init__(self) -> None:
        if self.max_slice_mm <= 0 or self.min_fov_mm <= 0:
            raise ValueError(
                f"max_slice_mm and min_fov_mm must be positive: {self.max_slice_mm}, {self.min_fov_mm}"
            )
        if not 0 <= self.max_tilt_deg < 45:
            raise ValueError(f"max_tilt_deg must lie in [0, 45), not {self.max_tilt_deg}")
        if not 0 < self.max_uneven < 0.5:
            raise ValueError(
                f"max_uneven, a share of the slice distance, must lie in (0, 0.5), not {self.max_uneven}"
            )
        if not (0 < self.min_aerated < 1 and 0 < self.min_soft < 1):
            raise ValueError("min_aerated and min_soft are shares of all voxels, between 0 and 1")


def check_grid(grid: Grid, config: VolumeConfig) -> None:
    """Refuse a grid that no lung can be measured on: flat, broken, sheared, too coarse or too small."""
    if not np.isfinite(grid.affine).all() or min(grid.spacing_mm) <= 1e-3 or grid.voxel_ml <= 1e-12:
        raise UnreadableScan(f"its voxel spacing or direction is broken: {grid.affine[:3].round(3).tolist()}")
    if min(grid.shape) < 2:
        raise UnreadableScan(f"it is a flat image ({grid.describe()}); a volume of slices is needed")
    tilt_deg = shear_deg(grid)
    if tilt_deg > config.max_tilt_deg:
        raise UnreadableScan(
            f"its axes are {tilt_deg:.1f} degrees from perpendicular (gantry tilt?); "
            f"resample it to upright slices first, or raise max_tilt_deg ({config.max_tilt_deg})"
        )
    if max(grid.spacing_mm) > config.max_slice_mm:
        raise UnreadableScan(
            f"its slices lie {max(grid.spacing_mm):.2f} mm apart; more than max_slice_mm, "
            f"{config.max_slice_mm}, is too coarse"
        )
    for axis, extent_mm in zip(AXES, grid.extent_mm, strict=True):
        if extent_mm < config.min_fov_mm:
            raise UnreadableScan(
                f"its field of view is {extent_mm:.0f} mm along stored axis {axis}; less than min_fov_mm, "
                f"{config.min_fov_mm}, holds no lung"
            )


def shear_deg(grid: Grid) -> float:
    """How far the axes of a grid are from perpendicular, in degrees, at worst."""
    unit = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    overlap = np.abs(unit.T @ unit - np.diag(np.diag(unit.T @ unit))).max()
    return float(np.degrees(np.arcsin(min(1.0, overlap))))


def as_hu(values: np.ndarray, config: VolumeConfig) -> np.ndarray:
    """Stored values as HU, int16 (z, y, x), after checking that they can be HU at all.

    A chest CT holds air below -800 HU and soft tissue about 0 HU, cropped or not. What lies under -1024 HU is
    filler from outside the field of view and becomes -1024. Other filler, such as the 0 around a registration
    result, cannot be told from tissue and stays.
    """
    if values.dtype.kind not in "iuf":
        raise UnreadableScan(f"its voxels are of type {values.dtype}; one number per voxel is needed")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise UnreadableScan(f"{count} of its {values.size} voxels are not numbers (NaN or infinite)")
    _check_values(values, config)
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    return np.clip(rounded, FILLER_HU, np.iinfo(np.int16).max).astype(np.int16)


def _check_values(values: np.ndarray, config: VolumeConfig) -> None:
    low, high = values.min(), values.max()
    if low == high:
        raise UnreadableScan(f"every voxel is {low:g}")
    if low >= 0 and high <= 255:
        raise UnreadableScan(
            f"its values run from {low:g} to {high:g}: an 8-bit or rescaled picture or a mask, "
            "not Hounsfield units"
        )
    aerated = (values > AERATED_HU[0]) & (values < AERATED_HU[1]) & (values != FILLER_HU)
    if aerated.mean() < config.min_aerated:
        # Without the fillers, what is left starts with the air.
        inside = values[(values > AERATED_HU[0]) & (values != FILLER_HU)]
        darkest = float(np.percentile(inside, 1)) if inside.size else float(high)
        raise UnreadableScan(
            f"it holds no air: its values run from {low:g} to {high:g} and the darkest lie near "
            f"{darkest:.0f}, where air should lie near {AIR_HU} HU{_shift_in_words(darkest - AIR_HU)}"
        )
    soft = (values > SOFT_HU[0]) & (values < SOFT_HU[1])
    if soft.mean() < config.min_soft:
        brightest = float(np.percentile(values, 99))
        raise UnreadableScan(
            f"it holds no soft tissue: 99% of its values lie under {brightest:.0f}, where muscle should lie "
            f"near 50 HU{_shift_in_words(brightest - 50)}"
        )


def _shift_in_words(shift: float) -> str:
    if abs(abs(shift) - 1024) < 150:
        sign = "+" if shift > 0 else "-"
        return (
            f"; it looks shifted by {sign}1024 (about {shift:+.0f} measured): apply the rescale intercept "
            f"{'of -1024' if shift > 0 else 'once, not twice'}"
        )
    return f"; it looks shifted by about {shift:+.0f}"
