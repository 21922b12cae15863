"""The 34 descriptors of whole patches, fast: integer counts and separable filters, compiled."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import numpy as np

from diffseglung.teacher.kernels import (
    GABOR,
    LBP,
    WAVES,
    gabor_window_sums,
    hu_and_glcm,
    middle_patterns,
    pair_room,
)
from diffseglung.teacher.names import TEACHER, TeacherConfig
from diffseglung.teacher.regions import clipped, grey_codes, in_threads, window_edges

Backend = Literal["batched", "pyradiomics"]
DescribePatch = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""hu (z, y, x) int16 within the clip range, lungs (z, y, x) bool -> float64 (34,)."""


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
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be 'batched' or 'pyradiomics', not {backend!r}")
    out = np.full((len(hu), len(TEACHER)), np.nan, np.float64)

    def describe(first: int, last: int) -> None:
        describe_patch = (_compiled if backend == "batched" else _reference)(config)
        for i in range(first, last):
            if np.count_nonzero(lungs[i]) >= config.min_lung_vox:
                out[i] = describe_patch(hu[i], lungs[i])

    in_threads(describe, len(hu))
    return out.astype(np.float32)


def _compiled(config: TeacherConfig) -> DescribePatch:
    """Describe a patch by the kernels, with room that serves one patch after another."""
    grey_of = grey_codes(config)
    # The plain function: compiled code that hands a new array to Python fails in Ray's workers (numba 0.68).
    counts, pairs, over = pair_room.py_func(grey_of)
    low, bins, flat = config.clip_hu[0], config.entropy_bins, config.glcm == "2d"
    patterns = np.empty(10, np.int64)

    def describe_patch(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
        row = np.empty(len(TEACHER))
        hu_and_glcm(hu, lungs, low, grey_of, bins, flat, counts, pairs, over, row)
        middle_patterns(hu, lungs, patterns)
        row[LBP:GABOR] = patterns / max(1, patterns.sum())
        # A patch is its own only window.
        sums = np.zeros((len(hu), 1, 1, WAVES))
        y_edges, x_edges = (window_edges(1, length, length, length) for length in hu.shape[1:])
        fixed = (np.float32(row[0]), 0, len(hu), hu.shape, hu.shape)
        gabor_window_sums(hu, lungs, *fixed, y_edges, x_edges, sums)
        energies = sums.sum(axis=(0, 1, 2)) / np.count_nonzero(lungs)
        row[GABOR:] = [*energies, energies.mean()]
        return row

    return describe_patch


def _reference(config: TeacherConfig) -> DescribePatch:
    from diffseglung.teacher.reference import describe_patch

    return partial(describe_patch, config=config)
