"""The 34 descriptors of whole patches, fast: integer counts and separable filters, compiled."""

from typing import Literal

import numpy as np

from diffseglung.teacher.kernels import describe_patch_rows
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
    lung alone. Patterns come from the three middle planes, Gabor responses from all axial slices. A patch
    with fewer lung voxels than `min_lung_vox` is a row of NaN. `pyradiomics` computes the same numbers with
    pyradiomics and scikit-image.
    """
    config = config or TeacherConfig()
    if hu.ndim != 4:
        raise ValueError(f"patches are (n, z, y, x); got {hu.ndim} axes")
    hu, lungs = clipped(hu, lungs, config)
    out = np.full((len(hu), len(TEACHER)), np.nan, np.float64)
    if backend == "pyradiomics":
        from diffseglung.teacher.reference import describe_patch

        for i in range(len(hu)):
            if lungs[i].sum() >= config.min_lung_vox:
                out[i] = describe_patch(hu[i], lungs[i], config)
    elif backend == "batched":
        grey_of, flat = grey_levels(config), config.glcm == "2d"
        fixed = (config.clip_hu[0], grey_of, config.entropy_bins, flat, config.min_lung_vox)
        in_threads(
            lambda first, last: describe_patch_rows(
                hu[first:last], lungs[first:last], *fixed, out[first:last]
            ),
            len(hu),
        )
    else:
        raise ValueError(f"backend must be 'batched' or 'pyradiomics', not {backend!r}")
    return out.astype(np.float32)
