"""What the scanner adds: blur, kernel, slice thickness, dose, and a calibration that is a little off."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from .fields import Frame


@dataclass(frozen=True, slots=True)
class Scanner:
    """One protocol. `sharpen` 0 is a soft-tissue kernel, 0.8 a lung kernel that overshoots at edges."""

    blur_mm: float
    slice_mm: float
    sharpen: float
    noise_hu: float
    calibration_hu: float
    outside_hu: float | None


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """One protocol, drawn in one place. A sharp kernel shows more noise for the same dose."""
    sharpen = rng.uniform(0, 0.8)
    outside = rng.random()
    return Scanner(
        blur_mm=rng.uniform(0.7, 1.2),
        slice_mm=float(rng.choice([1.0, 1.5, 2.0, 2.5, 3.0, 5.0])),
        sharpen=sharpen,
        noise_hu=rng.uniform(7, 20) * (1 + 0.6 * sharpen),
        calibration_hu=rng.uniform(-15, 15),
        # Some scanners pad outside their round field of view, with -1024 or -2000 HU.
        outside_hu=-1024.0 if outside < 0.15 else -2000.0 if outside < 0.25 else None,
    )


def scan(rng: np.random.Generator, hu: np.ndarray, frame: Frame, scanner: Scanner) -> np.ndarray:
    """The chest as this scanner shows it: hu float32 (z, y, x) in, int16 out."""
    shown = _blur(hu, frame, scanner)
    shown += scanner.sharpen * (
        shown - gaussian_filter(shown, [0, *(2.0 / mm for mm in frame.spacing_mm[1:])])
    )
    shown += _noise(rng, shown, frame, scanner) + scanner.calibration_hu
    shown = np.clip(shown, -1024, 3071)
    if scanner.outside_hu is not None:
        _, y, x = frame.zyx_mm
        outside = np.hypot(y, x) > min(frame.extent_mm[1:]) / 2
        shown = np.where(outside, np.float32(scanner.outside_hu), shown)
    return np.rint(shown).astype(np.int16)


def _blur(hu: np.ndarray, frame: Frame, scanner: Scanner) -> np.ndarray:
    # A slice of that thickness averages along z; a Gaussian with the same full width at half maximum.
    sigma_mm = (scanner.slice_mm / 2.355, scanner.blur_mm, scanner.blur_mm)
    return gaussian_filter(hu, [s / mm for s, mm in zip(sigma_mm, frame.spacing_mm, strict=True)])


def _noise(rng: np.random.Generator, hu: np.ndarray, frame: Frame, scanner: Scanner) -> np.ndarray:
    """Grain of the kernel's coarseness, stronger in slices with much bone, streaky at the shoulders."""
    fine = 0.9 - 0.5 * scanner.sharpen
    grain = gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), [0.3, fine, fine])
    grain -= 0.6 * gaussian_filter(grain, [0, 2.5, 2.5])
    grain /= grain.std()
    load = np.clip(hu + 1000, 0, 2500).mean((1, 2), keepdims=True)
    load = gaussian_filter1d(load / load.mean(), 2.0, axis=0)
    streaks = gaussian_filter1d(rng.standard_normal(hu.shape, dtype=np.float32), 5.0, axis=2)
    streaks *= np.clip(load - 1.05, 0, 1) * 3.0 / streaks.std()
    return scanner.noise_hu * (load * grain + streaks)
