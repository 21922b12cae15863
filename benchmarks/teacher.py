"""How fast is the teacher? Milliseconds a patch on one core, beside the libraries that define its numbers.

One process, pinned to one core. Run it alone on the machine.
"""

import os
import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import torch
from record import record
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from diffseglung.teacher import TeacherConfig, describe_patches, describe_windows, kernels, reference
from diffseglung.teacher.regions import grey_codes

SHAPES = ((32, 96, 96), (32, 32, 32))
CONFIG = TeacherConfig()


def patches(count: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise of the density and spread of diseased lung, all of it lung: the most work."""
    field = gaussian_filter(np.random.default_rng(0).normal(size=(count, *shape)), (0, 1, 1, 1))
    hu = np.clip(-820 + field / field.std() * 150, *CONFIG.clip_hu).astype(np.int16)
    return hu, np.ones_like(hu, dtype=bool)


def pyradiomics(hu: np.ndarray, lungs: np.ndarray) -> None:
    """First order and the GLCM only: 11 of the 34."""
    for patch, inside in zip(hu, lungs, strict=True):
        reference.first_order(patch, inside, CONFIG)
        reference.glcm(patch, inside, CONFIG)


def scikit_image(hu: np.ndarray, lungs: np.ndarray) -> None:
    """The 34 as a script has them: numpy moments, GLCM and LBP of middle slices, Gabor by FFT."""
    kernels = reference.gabor_kernels()
    angles = np.deg2rad((0, 45, 90, 135))
    for patch, inside in zip(hu, lungs, strict=True):
        x = patch[inside].astype(float)
        deviation = x - x.mean()
        _ = [(deviation**k).mean() for k in (2, 3, 4)], np.histogram(x, CONFIG.entropy_bins, CONFIG.clip_hu)
        grey = ((patch[len(patch) // 2] - CONFIG.bin_origin_hu) // CONFIG.bin_width_hu).astype(np.uint8)
        matrix = graycomatrix(grey, [1], angles, CONFIG.grey_levels, symmetric=True, normed=True)
        for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "ASM"):
            graycoprops(matrix, name)
        for axis in range(3):
            local_binary_pattern(patch.take(patch.shape[axis] // 2, axis), 8, 1, "uniform")
        for plane in patch:
            for kernel in kernels:
                np.abs(fftconvolve(plane.astype(np.float32), kernel.astype(np.complex64), "same")).mean()


@numba.njit(nogil=True, error_model="numpy")
def scatter(codes: np.ndarray, tables: np.ndarray) -> None:
    """The lower bound: one increment for each voxel and each of 13 directions, in simple scalar code."""
    depth, height, width = codes.shape
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                here = codes[z, y, x]
                d = 0
                for dz in range(2):
                    for dy in range(-1, 2):
                        for dx in range(-1, 2):
                            if dz > 0 or dy > 0 or (dy == 0 and dx > 0):
                                tables[d, here, codes[z + dz, y + dy, x + dx]] += 1
                                d += 1


def codes_of(hu: np.ndarray) -> tuple[np.ndarray, int]:
    """Grey levels of a patch framed by zeros, and how many there are."""
    grey = (grey_codes(CONFIG) // 16).astype(np.uint8)
    return np.pad(grey[hu - CONFIG.clip_hu[0]], 1), int(grey[-1]) + 1


def lower_bound(hu: np.ndarray) -> float:
    """Milliseconds of `scatter` for one patch."""
    codes, levels = codes_of(hu)
    tables = np.zeros((13, levels, levels), np.uint32)
    return milliseconds(lambda: scatter(codes, tables), 30)


def own_counting(hu: np.ndarray) -> float:
    """Milliseconds that our own kernel takes for the same counts."""
    codes, levels = codes_of(hu)
    wide, pairs = codes.astype(np.uint16) * 16, np.zeros(levels * levels * 16, np.uint32)
    return milliseconds(lambda: kernels.co_occurrences(wide, levels, pairs), 30)


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """The best of several runs after one to warm up; processor time, which a busy machine disturbs least."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    """Time each way on each shape in turn, then one whole volume."""
    # Threads of any library then share this core, and processor time counts them all.
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ways: dict[str, tuple[Callable[[np.ndarray, np.ndarray], object], int]] = {
        "pyradiomics, first order + 3-D GLCM": (pyradiomics, 3),
        "scikit-image + scipy, 34, 2-D GLCM": (scikit_image, 2),
        "ours, 34, 2-D GLCM": (lambda hu, lungs: describe_patches(hu, lungs, TeacherConfig(glcm="2d")), 30),
        "ours, 34, 3-D GLCM": (lambda hu, lungs: describe_patches(hu, lungs, CONFIG), 30),
    }
    lines = [
        "| patch | way | ms | patches/s | times faster than (a) | times the lower bound |",
        "|---" * 6 + "|",
    ]
    for shape in SHAPES:
        hu, lungs = patches(1, shape)
        bound, own = lower_bound(hu[0]), own_counting(hu[0])
        name = "x".join(map(str, shape))
        rows = [("lower bound: 13 scatter increments a voxel, simple scalar code", bound)]
        rows += [("the same counts by our own kernel, alone", own)]
        for letter, (label, (way, runs)) in zip("abcd", ways.items(), strict=True):
            rows.append((f"({letter}) {label}", milliseconds(partial(way, hu, lungs), runs)))
        first = rows[2][1]
        lines += [
            f"| {name} | {label} | {ms:.2f} | {1000 / ms:.0f} | {first / ms:.1f} | {ms / bound:.2f} |"
            for label, ms in rows
        ]
    lines += ["", f"numpy {np.__version__}, numba {numba.__version__}; processor time, best of several runs."]
    hu, lungs = (array[0] for array in patches(1, (100, 160, 160)))
    for size, step in ((16, 8), (12, 4)):
        cubes = {"size_vox": (size,) * 3, "step_vox": (step,) * 3}
        ms = milliseconds(lambda cubes=cubes: describe_windows(hu, lungs, CONFIG, **cubes), 2)
        lines.append(f"100x160x160, all lung, each window of {size} at a step of {step}: {ms / 1000:.2f} s.")
    record(
        "How fast is the teacher, on one core, beside the libraries that define its numbers?",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
