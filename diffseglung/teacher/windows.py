"""The teacher of every place: the same descriptors in overlapping windows over a whole volume, in seconds."""

import numpy as np

from diffseglung.teacher.kernels import (
    NO_PATTERN,
    WAVES,
    describe_window_planes,
    evidence_planes,
    gabor_window_sums,
    neighbour_differences,
    plane_patterns,
)
from diffseglung.teacher.names import TEACHER, TeacherConfig
from diffseglung.teacher.regions import clipped, grey_codes, in_threads, window_edges

Triple = tuple[int, int, int]

EVIDENCE = ("p10_hu", "p25_hu", "p50_hu", "p75_hu", "p90_hu", "log_difference", "lung_fraction")
"""Columns of `window_evidence`."""


def describe_windows(
    hu: np.ndarray,
    lungs: np.ndarray,
    config: TeacherConfig | None = None,
    *,
    size_vox: Triple,
    step_vox: Triple,
) -> np.ndarray:
    """How the lung looks around every place of a scan: the 34 descriptors on a coarse grid.

    hu (z, y, x) int16, lungs (z, y, x); returns float32 (gz, gy, gx, 34) with ceil(z / step) windows an
    axis. Window i is centred on cell i, which begins at voxel i * step; it ends where the volume ends. NaN
    where less than `min_lung_fraction` of the full window is lung. The HU and GLCM numbers are those of
    `describe_patches` on the window. The patterns come from every plane that crosses it, in three
    directions, and the Gabor responses are filtered once for the volume: both know the voxels just outside
    the window.
    """
    config = config or TeacherConfig()
    hu, lungs, grid = _on_grid(hu, lungs, config, size_vox, step_vox)
    patterns = np.full((3, *hu.shape), NO_PATTERN, np.uint8)

    def find_patterns(axis: int) -> None:
        in_threads(lambda a, b: plane_patterns(hu, lungs, axis, a, b, patterns[axis]), hu.shape[axis])

    for axis in range(3):
        find_patterns(axis)
    waves = np.zeros((hu.shape[0], *grid[1:], WAVES))
    centre = np.float32(hu[lungs].mean()) if lungs.any() else np.float32(0)
    y_edges, x_edges = (window_edges(grid[i], size_vox[i], step_vox[i], hu.shape[i]) for i in (1, 2))
    in_threads(
        lambda a, b: gabor_window_sums(hu, lungs, centre, a, b, size_vox, step_vox, y_edges, x_edges, waves),
        hu.shape[0],
    )
    out = np.full((*grid, len(TEACHER)), np.nan, np.float32)
    fixed = (config.clip_hu[0], grey_codes(config), config.entropy_bins, config.glcm == "2d")
    needed = config.min_lung_fraction * np.prod(size_vox)
    in_threads(
        lambda a, b: describe_window_planes(
            hu, lungs, patterns, waves, *fixed, needed, size_vox, step_vox, a, b, out
        ),
        grid[0],
    )
    return out


def window_evidence(
    hu: np.ndarray,
    lungs: np.ndarray,
    config: TeacherConfig | None = None,
    *,
    size_vox: Triple,
    step_vox: Triple,
) -> np.ndarray:
    """What the lung weighs and how rough it is around every place of a scan, in physical terms.

    Same windows as `describe_windows`. Returns float32 (gz, gy, gx, 7), named in EVIDENCE: five exact HU
    percentiles of the window's lung voxels; the natural log of the mean absolute HU difference between
    neighbouring lung voxels (13 directions, at least 1 HU; each pair belongs to its first voxel); and the
    share of lung in the cell itself. The first six are NaN where the window has fewer than
    `min_evidence_vox` lung voxels.
    """
    config = config or TeacherConfig()
    hu, lungs, grid = _on_grid(hu, lungs, config, size_vox, step_vox)
    difference, pairs = np.zeros(hu.shape, np.int32), np.zeros(hu.shape, np.uint8)
    in_threads(lambda a, b: neighbour_differences(hu, lungs, a, b, difference, pairs), hu.shape[0])
    out = np.full((*grid, len(EVIDENCE)), np.nan, np.float32)
    low, high = config.clip_hu
    fixed = (low, high - low + 1, config.min_evidence_vox, size_vox, step_vox)
    in_threads(lambda a, b: evidence_planes(hu, lungs, difference, pairs, *fixed, a, b, out), grid[0])
    return out


def _on_grid(
    hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig, size_vox: Triple, step_vox: Triple
) -> tuple[np.ndarray, np.ndarray, Triple]:
    if hu.ndim != 3:
        raise ValueError(f"a volume is (z, y, x); got {hu.ndim} axes")
    if min(step_vox) < 1 or any(size < step for size, step in zip(size_vox, step_vox, strict=True)):
        raise ValueError(f"windows of {size_vox} voxels leave gaps at a step of {step_vox}")
    hu, lungs = clipped(hu, lungs, config)
    gz, gy, gx = (-(-length // step) for length, step in zip(hu.shape, step_vox, strict=True))
    return hu, lungs, (gz, gy, gx)
