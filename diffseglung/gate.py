"""What may pass for a chest CT in Hounsfield units; everything else is refused, in words."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from diffseglung.frozen import frozen
from diffseglung.grid import AXES, Grid

FILLER_HU = -1024
# Air and aerated lung; below lie only fillers (-2000, -3024), and a few registration results reach -1100.
AERATED_HU = (-1200, -600)
# Fat, blood, muscle, with room for noise.
SOFT_HU = (-200, 300)
RANGE_HU = (-4096, 2**15 - 1)
# Where the highest peaks of a chest lie: outside air (-1000), emphysema, lung in inspiration (-860) or expiration
# (-700); fat (-105), or muscle and blood (50), which a little contrast agent raises.
DARK_PEAK_HU = (-1030, -650)
BRIGHT_PEAK_HU = (-130, 100)
PEAK_SMOOTHING_HU = 10
ENOUGH_VOXELS = 2**22
# Less than this is what contrast agent, a sharp kernel or an ill-kept scanner does.
NOTED_SHIFT_HU = 40
# An intercept that was left out or applied twice.
USUAL_SHIFTS = (1024, -1024, 1000, -1000)


class UnreadableScan(ValueError):
    """A scan that cannot be read as a chest CT. The message says what is wrong, where, and what to do."""


@frozen
class VolumeConfig:
    """What a scan must be before anything is measured on it."""

    max_slice_mm: float = 6.0
    max_gib: float = 4.0
    min_fov_mm: float = 50.0
    max_tilt_deg: float = 1.0
    max_uneven: float = 0.1
    min_aerated: float = 0.002
    min_soft: float = 0.002
    max_shift_hu: float = 150.0

    def __post_init__(self) -> None:
        if min(self.max_slice_mm, self.min_fov_mm, self.max_gib) <= 0:
            raise ValueError(
                f"max_slice_mm, min_fov_mm and max_gib must be positive: {self.max_slice_mm}, "
                f"{self.min_fov_mm}, {self.max_gib}"
            )
        if not 0 <= self.max_tilt_deg < 45:
            raise ValueError(f"max_tilt_deg must lie in [0, 45), not {self.max_tilt_deg}")
        if not 0 < self.max_uneven < 0.5:
            raise ValueError(
                f"max_uneven, a share of the slice distance, must lie in (0, 0.5), not {self.max_uneven}"
            )
        if not (0 < self.min_aerated < 1 and 0 < self.min_soft < 1):
            raise ValueError("min_aerated and min_soft are shares of all voxels, between 0 and 1")
        if self.max_shift_hu < NOTED_SHIFT_HU:
            raise ValueError(f"max_shift_hu must be at least {NOTED_SHIFT_HU}, not {self.max_shift_hu}")


def check_size(count: float, bytes_each: float, config: VolumeConfig) -> None:
    """Refuse what would not fit in memory, from the header alone: a damaged header or a bomb."""
    gib = count * bytes_each / 2**30
    if gib > config.max_gib:
        raise UnreadableScan(
            f"its header announces {gib:.1f} GiB of voxels; more than max_gib, {config.max_gib:g}, is not read"
        )


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


def as_hu(values: np.ndarray, config: VolumeConfig) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stored values as HU, int16 (z, y, x), after checking that they can be HU at all, and notes on them.

    A chest CT holds air below -600 HU and soft tissue about 0 HU, cropped or not, and its peaks of air or lung
    and of fat or muscle lie where physics puts them. What lies under -1024 HU is filler from outside the field
    of view and becomes -1024. Other filler, such as the 0 around a registration result, cannot be told from
    tissue and stays.
    """
    if values.dtype.kind not in "iuf":
        raise UnreadableScan(f"its voxels are of type {values.dtype}; one number per voxel is needed")
    if values.dtype.kind == "f":
        strange = sum(part.size - np.count_nonzero(np.isfinite(part)) for part in values)
        if strange:
            raise UnreadableScan(f"{strange} of its {values.size} voxels are not numbers (NaN or infinite)")
    low, high = float(values.min()), float(values.max())
    counts = _histogram(values)
    notes = _check_values(counts, low, high, config)
    if values.dtype == np.int16 and low >= FILLER_HU:
        return values, notes
    hu = np.empty(values.shape, dtype=np.int16)
    for target, part in zip(hu, values, strict=True):
        rounded = np.rint(part) if part.dtype.kind == "f" else part
        target[...] = np.clip(rounded, FILLER_HU, RANGE_HU[1])
    return hu, notes


def _histogram(values: np.ndarray) -> np.ndarray:
    """How many voxels have each whole value of `RANGE_HU`; what lies outside counts at its ends.

    Of a large scan every second row and column is enough.
    """
    step = 2 if values.size > ENOUGH_VOXELS else 1
    counts = np.zeros(RANGE_HU[1] - RANGE_HU[0] + 1, dtype=np.int64)
    for part in values:  # a slice at a time: bincount needs eight bytes a voxel
        some = part[::step, ::step]
        whole = np.rint(some) if some.dtype.kind == "f" else some
        index = np.clip(whole, *RANGE_HU).astype(np.int64) - RANGE_HU[0]
        counts += np.bincount(index.ravel(), minlength=counts.size)
    return counts


def _check_values(counts: np.ndarray, low: float, high: float, config: VolumeConfig) -> tuple[str, ...]:
    if low == high:
        raise UnreadableScan(f"every voxel is {low:g}")
    if high - low < 256:
        raise UnreadableScan(
            f"its values run from {low:g} to {high:g}: one material alone, or an 8-bit or rescaled picture or "
            "a mask, not a chest in Hounsfield units"
        )
    hu = np.arange(RANGE_HU[0], RANGE_HU[1] + 1)
    peaks = find_peaks(counts)
    aerated = counts[(hu > AERATED_HU[0]) & (hu < AERATED_HU[1]) & (hu != FILLER_HU)].sum() / counts.sum()
    soft = counts[(hu > SOFT_HU[0]) & (hu < SOFT_HU[1])].sum() / counts.sum()
    for share, least, kind in ((aerated, config.min_aerated, "air"), (soft, config.min_soft, "soft tissue")):
        if share < least:
            raise UnreadableScan(
                f"it holds no {kind}: its values run from {low:g} to {high:g}, and {share:.2%} of them are "
                f"what {kind} has; {peaks.describe()}"
            )
    if peaks.dark < AERATED_HU[0]:  # filler has one value and makes no peak
        raise UnreadableScan(f"its values are not Hounsfield units: {peaks.describe()}")
    if peaks.least_shift is None or abs(peaks.least_shift) <= NOTED_SHIFT_HU:
        return ()
    if abs(peaks.least_shift) > config.max_shift_hu:
        raise UnreadableScan(f"its values are not calibrated: {peaks.describe()}")
    return (f"much contrast agent, or a calibration that is not right: {peaks.describe()}",)


@dataclass(frozen=True, slots=True)
class Peaks:
    """The peak of air or lung and that of fat or muscle of a scan, in its own values."""

    dark: int
    bright: int

    @property
    def shifts(self) -> tuple[int, int] | None:
        """The shifts, least and greatest, that put both peaks where they belong; None where none does."""
        least = max(self.dark - DARK_PEAK_HU[1], self.bright - BRIGHT_PEAK_HU[1])
        greatest = min(self.dark - DARK_PEAK_HU[0], self.bright - BRIGHT_PEAK_HU[0])
        return (least, greatest) if least <= greatest else None

    @property
    def least_shift(self) -> int | None:
        """The smallest shift that explains the peaks, 0 for a calibrated scan; None where no shift does."""
        if self.shifts is None:
            return None
        return int(np.clip(0, *self.shifts))

    def describe(self) -> str:
        """Where the peaks lie and should lie, and by how much all values are off."""
        words = (
            f"its values peak at {self.dark} and {self.bright}, where air or lung belongs at "
            f"{DARK_PEAK_HU[0]} to {DARK_PEAK_HU[1]} HU and fat or muscle at {BRIGHT_PEAK_HU[0]} to "
            f"{BRIGHT_PEAK_HU[1]} HU"
        )
        if self.shifts is None:
            return f"{words}, and no shift explains both: no CT of a chest, or not in Hounsfield units"
        if self.least_shift == 0:
            return words
        usual = next((shift for shift in USUAL_SHIFTS if self.shifts[0] <= shift <= self.shifts[1]), None)
        if usual is None:
            return f"{words}; it looks shifted by {self.shifts[0]:+d} to {self.shifts[1]:+d}"
        cure = "apply the rescale intercept" if usual > 0 else "the rescale intercept was applied twice"
        return f"{words}; it looks shifted by {usual:+d}: {cure}"


def find_peaks(counts: np.ndarray) -> Peaks:
    """The two peaks of a histogram over `RANGE_HU`, either side of the threshold that parts it best (Otsu).

    A single value that towers over its neighbours is filler, or where the scanner clipped, and does not count;
    nor do the ends of the range, nor the brightest half percent, bone and metal.
    """
    used = np.flatnonzero(counts)
    around = ndimage.median_filter(counts[used], size=9, mode="mirror")
    even = np.zeros(counts.shape)
    even[used] = np.where(counts[used] > 3 * around, 0, counts[used])
    even[[0, -1]] = 0
    if np.count_nonzero(even) < 2:
        return Peaks(int(used[0]) + RANGE_HU[0], int(used[-1]) + RANGE_HU[0])
    cumulated = np.cumsum(even)
    first = max(0, int(np.flatnonzero(even)[0]) - 4 * PEAK_SMOOTHING_HU)
    last = int(np.searchsorted(cumulated, 0.995 * cumulated[-1])) + 4 * PEAK_SMOOTHING_HU
    window = even[first:last]
    value = np.arange(len(window)) + first + RANGE_HU[0]
    threshold = threshold_otsu(hist=(window, value))
    smooth = ndimage.gaussian_filter1d(window, PEAK_SMOOTHING_HU, mode="constant")
    below = value <= threshold
    return Peaks(int(value[below][np.argmax(smooth[below])]), int(value[~below][np.argmax(smooth[~below])]))
