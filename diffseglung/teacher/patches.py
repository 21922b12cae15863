"""The 34 descriptors of whole patches, fast: integer counts and separable filters, compiled."""

from typing import Literal

import numpy as np

from diffseglung.teacher.kernels import WAVES, empty_pairs, gabor_window_sums, hu_and_glcm, middle_patterns
from diffseglung.teacher.names import TEACHER, TeacherConfig
from diffseglung.teacher.regions import clipped, grey_levels, in_threads

Backend = Literal["batched", "pyradiomics"]


def describe_patches(
    hu: np.ndarray,
    lungs: np.ndarray,
    config: TeacherConfig | None = None,
    backend: Backend = "batched",
) -> np.ndarray:
    """How the lung in each patch looks, in the 34 numbers that radiomics has for it.

    hu (n, z, y, x) int16, lungs (n, z, y, x); returns float32 (n, 34) in the order of TEACHER.names. Only
    lung voxels count: pairs have both ends in the lung, patterns all nine voxels, and the Gabor filters see
    lung alone. Patterns come from the middle plane across each axis (both of them where the size is even),
    Gabor responses from all axial slices. A patch with fewer lung voxels than `min_lung_vox` is a row of NaN.
    `pyradiomics` computes the same numbers with pyradiomics and scikit-image.
    """
    config = config or TeacherConfig()
    if hu.ndim != 4:
        raise ValueError(f"patches are (n, z, y, x); got {hu.ndim} axes")
    hu, lungs = clipped(hu, lungs, config)
    out = np.full((len(hu), len(TEACHER)), np.nan, np.float64)
    if backend == "pyradiomics":
        from diffseglung.teacher.reference import describe_patch
    elif backend == "batched":
        describe_patch = _describe_patch
    else:
        raise ValueError(f"backend must be 'batched' or 'pyradiomics', not {backend!r}")

    def describe(first: int, last: int) -> None:
        for i in range(first, last):
            if np.count_nonzero(lungs[i]) >= config.min_lung_vox:
                out[i] = describe_patch(hu[i], lungs[i], config)

    in_threads(describe, len(hu))
    return out.astype(np.float32)


def _describe_patch(hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig) -> np.ndarray:
    """One patch: hu (z, y, x) int16 within the clip range, lungs (z, y, x) bool -> float64 (34,)."""
    row = np.empty(len(TEACHER))
    grey_of = grey_levels(config)
    # The plain function: compiled code that hands a new array to Python fails in Ray's workers (numba 0.68).
    counts, pairs = np.empty(grey_of.size, np.int64), empty_pairs.py_func(grey_of)
    flat = config.glcm == "2d"
    hu_and_glcm(hu, lungs, config.clip_hu[0], grey_of, config.entropy_bins, flat, counts, pairs, row)
    patterns = np.empty(10, np.int64)
    middle_patterns(hu, lungs, patterns)
    row[TEACHER.families["lbp"]] = patterns / max(1, patterns.sum())
    # A patch is its own only window.
    sums = np.zeros((len(hu), 1, 1, WAVES))
    gabor_window_sums(hu, lungs, np.float32(row[0]), 0, len(hu), hu.shape, hu.shape, sums)
    energies = sums.sum(axis=(0, 1, 2)) / np.count_nonzero(lungs)
    row[TEACHER.families["gabor"]] = [*energies, energies.mean()]
    return row
