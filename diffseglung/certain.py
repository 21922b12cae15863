"""What needs no cluster: air that dense tissue encloses is a cavity, and what runs beside a large airway is a vessel.

Both are found on the volume's own grid, where walls are still thin and whole, and are no evidence for the cells around
them: a cavity's wall beside lung would pass for fibrosis, and so would a thick artery.
"""

import numpy as np
from scipy import ndimage

from diffseglung.anatomy import Anatomy
from diffseglung.anatomy.morphology import distance_mm
from diffseglung.cavity import find_cavities
from diffseglung.config import Config
from diffseglung.grid import crop_grid, resample_labels
from diffseglung.patches import Scan
from diffseglung.refine import lung_box
from diffseglung.volume import Volume


def enclosed_air(volume: Volume, anatomy: Anatomy, config: Config) -> np.ndarray:
    """Cavities on the volume's own grid: bool (z, y, x)."""
    cavities = np.zeros(volume.shape, bool)
    box = lung_box(anatomy.side)
    if box is not None:
        near = anatomy.within(box)
        airways = near.airways
        found = find_cavities(volume.hu[box], near.lungs, airways, volume.spacing_mm, config.cavity)
        cavities[box] = found & ~airways
    return cavities


def hilar_vessels(volume: Volume, anatomy: Anatomy, scan: Scan, hilum_mm: float) -> np.ndarray:
    """Arteries, veins and bronchial walls near the large airways, on the volume's own grid: bool (z, y, x).

    Further out a honeycomb's walls may pass for vessels; here hardly anything but vessels looks like one.
    """
    hilar = np.zeros(volume.shape, bool)
    box = lung_box(anatomy.side)
    if box is not None:
        near = distance_mm(scan.airways, scan.grid.spacing_mm) < hilum_mm
        near = resample_labels(near, scan.grid, crop_grid(volume.grid, box)) > 0
        hilar[box] = anatomy.within(box).vessels & near
    return hilar


def on_scan(mask: np.ndarray, volume: Volume, scan: Scan) -> np.ndarray:
    """A mask of the volume's grid on that of the scan."""
    return resample_labels(mask, volume.grid, scan.grid) > 0


def no_evidence(cavities: np.ndarray, hilar: np.ndarray, volume: Volume, scan: Scan) -> np.ndarray:
    """Both on the scan's grid, and the voxels at their rim, which are half of it: bool (z, y, x)."""
    return ndimage.binary_dilation(on_scan(cavities, volume, scan) | on_scan(hilar, volume, scan))
