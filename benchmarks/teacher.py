"""How fast is the teacher? Milliseconds a patch on one core, beside the libraries that define its numbers.

Prints one Markdown table. Run it alone on the machine: `OMP_NUM_THREADS=1 python benchmarks/teacher.py`.
"""

import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from diffseglung.teacher import TeacherConfig, describe_patches, describe_windows, reference

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
    """Time each way on each shape, then one whole volume."""
    torch.set_num_threads(1)
    ways: dict[str, tuple[Callable[[np.ndarray, np.ndarray], object], int]] = {
        "pyradiomics, first order + 3-D GLCM": (pyradiomics, 3),
        "scikit-image + scipy, 34, 2-D GLCM": (scikit_image, 2),
        "ours, 34, 2-D GLCM": (lambda hu, lungs: describe_patches(hu, lungs, TeacherConfig(glcm="2d")), 30),
        "ours, 34, 3-D GLCM": (lambda hu, lungs: describe_patches(hu, lungs, CONFIG), 30),
    }
    print(f"One core of {platform.processor() or platform.machine()}, numpy {np.__version__}\n")
    print(
        "| way | " + " | ".join(f"{'x'.join(map(str, s))}: ms | patches/s | times (a)" for s in SHAPES) + " |"
    )
    print("|---" * (1 + 3 * len(SHAPES)) + "|")
    first: dict[tuple[int, int, int], float] = {}
    for letter, (name, (way, runs)) in zip("abcd", ways.items(), strict=True):
        cells = []
        for shape in SHAPES:
            hu, lungs = patches(2, shape)
            ms = milliseconds(lambda way=way, hu=hu, lungs=lungs: way(hu, lungs), runs) / len(hu)
            cells.append(f"{ms:.1f} | {1000 / ms:.0f} | {first.setdefault(shape, ms) / ms:.1f}")
        print(f"| ({letter}) {name} | {' | '.join(cells)} |")
    hu, lungs = (array[0] for array in patches(1, (100, 160, 160)))
    for size, step in ((16, 8), (12, 4)):
        cubes = {"size_vox": (size,) * 3, "step_vox": (step,) * 3}
        ms = milliseconds(lambda cubes=cubes: describe_windows(hu, lungs, CONFIG, **cubes), 2)
        print(f"\n100x160x160, all lung, every window of {size} at a step of {step}: {ms / 1000:.2f} s")


if __name__ == "__main__":
    main()
