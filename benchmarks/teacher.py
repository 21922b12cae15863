"""How fast is the teacher? Milliseconds a patch on one core, beside the libraries that define its numbers.

One process, pinned to one core. Run it alone on the machine.

Two lower bounds stand beside the times: `scatter`, the least that counting the pairs takes, and with it the least that
the Gabor filters take: `gabor_steps` at this core's `peak`. The Fourier transform would not lower the second: twelve
inverse transforms of a slice framed to 112 x 112 alone are 12 * 5 log2(112^2) = 817 additions and products a point or
1112 a voxel of 96 x 96, 556 if each two were one fused step, where the separable filters take 416 steps in all.
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


def gabor_steps(shape: tuple[int, int, int]) -> int:
    """Additions, products and fused steps of the twelve Gabor filters of a patch, each counted as one.

    As `kernels` has them: separable, even and odd taps shared between waves, cos and sin of a sum between 45 and 135
    degrees. A pair of taps is added, and subtracted where a wave needs that, once for all sums. Square roots, twelve a
    voxel, are left out: the divider takes them beside the multipliers; so are loads, and filling what is not lung.
    """
    depth, height, width = shape
    pairs, frame = kernels.REACH, 2 * kernels.REACH
    # The centre's product, which all sums share; of each pair of taps + and -, the mean and three waves' two parts.
    parts_x = 1 + pairs * (2 + 7)
    smooth_y = 1 + pairs * (1 + 1)
    # Of each pair + and -, the mean and three of the waves' sums; .10 and .40 cycles add and subtract theirs (4), three
    # are freed of the constant (3) and squared (6), and three roots are added up.
    straight = 1 + pairs * (2 + 4) + 4 + 3 + 6 + 3
    # Two centres and the constant; of each pair in both parts + and -, four products of waves; their sums (4), squares
    # (4) and roots.
    slanted = 3 + pairs * (4 + 4) + 4 + 4 + 2
    framed_rows, framed_columns = (height + frame) * width, height * (width + frame)
    inside = height * width * (2 * straight + 3 * slanted)
    return depth * (framed_rows * parts_x + framed_columns * smooth_y + inside)


CHAINS = 1024
_HALF, _ONE = np.float32(0.5), np.float32(1)


@numba.njit(nogil=True, error_model="numpy")
def chains(values: np.ndarray, times: int) -> None:
    """Eight steps of each value, three additions and five fused steps: the proportion of `gabor_steps`.

    Values do not wait for each other and stay in the first cache. Compiled to vectors as wide as those of `kernels`.
    """
    for _ in range(times):
        for x in range(min(values.size, CHAINS)):
            value = kernels.fma(values[x] + _ONE, _HALF, _ONE)
            for _ in range(2):
                value = kernels.fma(kernels.fma(value + _ONE, _HALF, _ONE), _HALF, _ONE)
            values[x] = value


def peak() -> float:
    """Steps in float32 that this core does in a millisecond where nothing else holds it up."""
    values, times = np.ones(CHAINS + 16, np.float32), 4000
    # From the beginning of a line of the cache: a vector across two lines is read twice.
    values = values[-values.ctypes.data // values.itemsize % 16 :]
    return 8 * CHAINS * times / milliseconds(lambda: chains(values, times), 30)


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
        "| patch | way | ms | patches/s | times faster than (a) | times the lower bound | times the bound of all 34 |",
        "|---" * 7 + "|",
    ]
    notes = []
    for shape in SHAPES:
        hu, lungs = patches(1, shape)
        bound, own = lower_bound(hu[0]), own_counting(hu[0])
        steps = peak()
        whole = bound + gabor_steps(shape) / steps
        name = "x".join(map(str, shape))
        rows = [("lower bound: 13 scatter increments a voxel, simple scalar code", bound)]
        rows += [("the same counts by our own kernel, alone", own)]
        rows += [("lower bound of all 34: the increments, and the Gabor filters at this core's peak", whole)]
        for letter, (label, (way, runs)) in zip("abcd", ways.items(), strict=True):
            rows.append((f"({letter}) {label}", milliseconds(partial(way, hu, lungs), runs)))
        first = rows[3][1]
        for label, ms in rows:
            times = f"{first / ms:.1f} | {ms / bound:.2f} | {ms / whole:.2f}"
            lines.append(f"| {name} | {label} | {ms:.2f} | {1000 / ms:.0f} | {times} |")
        each = gabor_steps(shape) / hu.size
        notes.append(f"{name}: {each:.0f} steps a voxel at a peak of {steps / 1e6:.0f} billion a second.")
    lines += [
        "",
        "Times the lower bound: of the increments alone. Times the bound of all 34: of these and of the additions, "
        "products and fused steps of the Gabor filters, without square roots; (a) does less, and (b) and (c) count "
        "fewer pairs. " + " ".join(notes),
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
