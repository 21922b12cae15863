"""The same 34 numbers from libraries that others trust: pyradiomics, scikit-image, scipy. For checks."""

import logging

import numpy as np
import SimpleITK as sitk
from radiomics.firstorder import RadiomicsFirstOrder
from radiomics.glcm import RadiomicsGLCM
from scipy.ndimage import binary_erosion
from scipy.signal import fftconvolve
from skimage.feature import local_binary_pattern
from skimage.filters import gabor_kernel

from diffseglung.teacher.names import GABOR_DEGREES, GABOR_FREQUENCIES, TeacherConfig

logging.getLogger("radiomics").setLevel(logging.ERROR)

SIGMA_VOX = 3.0
REACH = 7


def describe_patch(hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig) -> np.ndarray:
    """One patch: hu (z, y, x) int16 within the clip range, lungs (z, y, x) bool -> float64 (34,)."""
    return np.concatenate(
        (first_order(hu, lungs, config), glcm(hu, lungs, config), lbp(hu, lungs), gabor(hu, lungs))
    )


def _features(
    calculator: type, image: np.ndarray, lungs: np.ndarray, names: list[str], bin_width: float
) -> list[float]:
    arrays = sitk.GetImageFromArray(image.astype(np.float64)), sitk.GetImageFromArray(lungs.astype(np.uint8))
    features = calculator(*arrays, binWidth=bin_width)
    for name in names:
        features.enableFeatureByName(name)
    found = features.execute()
    return [float(found[name]) for name in names]


def first_order(hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig) -> np.ndarray:
    """Mean, sd, skewness, kurtosis and entropy by pyradiomics."""
    low, high = config.clip_hu
    width = (high - low) / config.entropy_bins
    moments = _features(RadiomicsFirstOrder, hu, lungs, ["Mean", "Variance", "Skewness", "Kurtosis"], width)
    # pyradiomics gives the upper end a bin of its own, numpy.histogram puts it into the last one.
    binned = np.minimum(hu, high - width / 2) - low
    entropy = _features(RadiomicsFirstOrder, binned, lungs, ["Entropy"], width)
    moments[1] = np.sqrt(moments[1])
    return np.array([*moments, *entropy])


def glcm(hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig) -> np.ndarray:
    """Contrast, dissimilarity, homogeneity, energy, correlation and ASM by pyradiomics."""
    if config.glcm == "2d":
        middle = slice(len(hu) // 2, len(hu) // 2 + 1)
        hu, lungs = hu[middle], lungs[middle]
    names = ["Contrast", "DifferenceAverage", "Idm", "Correlation", "JointEnergy"]
    found = _features(RadiomicsGLCM, hu.astype(int) - config.bin_origin_hu, lungs, names, config.bin_width_hu)
    contrast, dissimilarity, homogeneity, correlation, asm = found
    return np.array([contrast, dissimilarity, homogeneity, np.sqrt(asm), correlation, asm])


def lbp(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Shares of the ten uniform patterns in the middle planes across the three axes, by scikit-image."""
    counts = np.zeros(10)
    for axis, length in enumerate(hu.shape):
        for middle in sorted({(length - 1) // 2, length // 2}):
            plane, inside = (np.take(array, middle, axis) for array in (hu, lungs))
            whole = binary_erosion(inside, np.ones((3, 3)), border_value=0)
            counts += np.bincount(_patterns(plane)[whole], minlength=10)
    return counts / max(1, counts.sum())


def _patterns(plane: np.ndarray) -> np.ndarray:
    """scikit-image's uniform patterns of a plane (y, x), with ties counted as ties.

    It leaves equal neighbours to the rounding of its interpolation. A centre lower by a millionth of a HU
    decides every tie as the formula says; one voxel in nine is lowered at a time, so that no neighbour is.
    """
    out = np.zeros(plane.shape, int)
    for dy in range(3):
        for dx in range(3):
            lowered = plane.astype(np.int64) * 1_000_000
            lowered[dy::3, dx::3] -= 1
            out[dy::3, dx::3] = local_binary_pattern(lowered, 8, 1, "uniform")[dy::3, dx::3].astype(int)
    return out


def gabor_kernels() -> list[np.ndarray]:
    """The twelve complex 15 x 15 kernels: scikit-image's, less their response to a constant."""
    gauss = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / SIGMA_VOX) ** 2)
    gauss = np.outer(gauss, gauss) / gauss.sum() ** 2
    kernels = []
    for frequency in GABOR_FREQUENCIES:
        for degrees in GABOR_DEGREES:
            wide = gabor_kernel(
                frequency, np.deg2rad(degrees), sigma_x=SIGMA_VOX, sigma_y=SIGMA_VOX, n_stds=5
            )
            y, x = (length // 2 for length in wide.shape)
            kernel = wide[y - REACH : y + REACH + 1, x - REACH : x + REACH + 1]
            kernels.append(kernel - kernel.sum().real * gauss)
    return kernels


def gabor(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Mean |response| of the twelve kernels over the lung, and their mean, by scikit-image and scipy."""
    profile = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / SIGMA_VOX) ** 2)
    gauss = np.outer(profile, profile)
    centre = hu[lungs].mean()
    kernels = gabor_kernels()
    sums = np.zeros(len(kernels))
    for plane, inside in zip(hu, lungs, strict=True):
        weight = fftconvolve(inside.astype(float), gauss, "full")
        near = weight > gauss.min() / 2
        total = fftconvolve(np.where(inside, plane - centre, 0.0), gauss, "full")
        filled = np.where(near, total / np.where(near, weight, 1), 0.0)
        filled[REACH:-REACH, REACH:-REACH][inside] = plane[inside] - centre
        for i, kernel in enumerate(kernels):
            sums[i] += np.abs(fftconvolve(filled, kernel, "valid"))[inside].sum()
    means = sums / lungs.sum()
    return np.array([*means, means.mean()])
