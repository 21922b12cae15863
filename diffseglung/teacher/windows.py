"""The teacher of every place: the same descriptors in overlapping windows over a whole volume, in seconds."""

import numpy as np
from scipy import ndimage

from diffseglung.teacher.kernels import (
    NO_PATTERN,
    WAVES,
    describe_window_planes,
    evidence_planes,
    gabor_window_sums,
    plane_patterns,
)
from diffseglung.teacher.names import TEACHER, TeacherConfig
from diffseglung.teacher.regions import clipped, grey_codes, in_threads, window_edges

Triple = tuple[int, int, int]

EVIDENCE = ("p10_hu", "p25_hu", "p50_hu", "p75_hu", "p90_hu", "log_mesh", "lung_fraction")
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
    mesh_vox: Triple,
) -> np.ndarray:
    """What the lung weighs and what mesh it forms around every place of a scan, in physical terms.

    Same windows as `describe_windows`. Returns float32 (gz, gy, gx, 7), named in EVIDENCE: five exact HU
    percentiles of the window's lung voxels; the natural log of their mean `hollow` for a box of `mesh_vox` (at
    least 1 HU); and the share of lung in the cell itself. The first six are NaN where the window has fewer than
    `min_evidence_vox` lung voxels.
    """
    config = config or TeacherConfig()
    hu, lungs, grid = _on_grid(hu, lungs, config, size_vox, step_vox)
    depth_hu = hollow(hu, lungs, mesh_vox)
    out = np.full((*grid, len(EVIDENCE)), np.nan, np.float32)
    low, high = config.clip_hu
    fixed = (low, high - low + 1, config.min_evidence_vox, size_vox, step_vox)
    in_threads(lambda a, b: evidence_planes(hu, lungs, depth_hu, *fixed, a, b, out), grid[0])
    return out


def hollow(hu: np.ndarray, lungs: np.ndarray, box_vox: Triple) -> np.ndarray:
    """How far each lung voxel lies below the denser lung that surrounds it, in HU: 0 where nothing does.

    The black top-hat: grey closing by a box of an odd width along (z, y, x), less density, as if nothing but the lung
    were there; int16 (z, y, x), 0 outside. Cysts between walls are hollow, and so are the holes of a net of lines; a
    spot, a ball or an edge is not, however steep: that is how a honeycomb differs from patches of ground glass.
    Source: Serra, Image Analysis and Mathematical Morphology (1982).
    """
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    closed = ndimage.maximum_filter(np.where(lungs, hu, low).astype(np.int16), box_vox, mode="nearest")
    closed = ndimage.minimum_filter(np.where(lungs, closed, high).astype(np.int16), box_vox, mode="nearest")
    return np.where(lungs, closed - hu, 0).astype(np.int16)


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
