"""What is known of every 8 mm cell of a scan without any network: physical evidence and radiomic descriptors."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import dilate, erode
from diffseglung.patches import PatchConfig, Scan, half_a_cell_on
from diffseglung.teacher import TeacherConfig, describe_windows, window_evidence


@dataclass(frozen=True, slots=True)
class Cells:
    """Per cell of the scan, float32: `evidence` (z, y, x, 7) as in `tissue.EVIDENCE`, `descriptors` (z, y, x, 34).

    NaN where there is too little lung to tell.
    """

    evidence: np.ndarray
    descriptors: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """Cells (z, y, x) that hold lung and whose evidence is known."""
        return (self.evidence[..., 6] > 0) & np.isfinite(self.evidence).all(axis=-1)

    def laid_out(self, rows: np.ndarray) -> np.ndarray:
        """What is known of the cells `inside`, in rows (n, k), in their places: float32 (z, y, x, k), 0 elsewhere."""
        places = np.zeros((*self.inside.shape, rows.shape[1]), np.float32)
        places[self.inside] = rows
        return places


def describe_cells(
    hu: np.ndarray,
    evident: np.ndarray,
    patches: PatchConfig,
    teacher: TeacherConfig,
    *,
    between: bool = False,
) -> Cells:
    """Evidence and descriptors of each cell from the `evident` voxels of the window around it.

    hu int16 and evident bool (z, y, x). The cells fill their box; those `between` are centred on the corners of these,
    one more along each axis.
    """
    window, cell = patches.window_vox, patches.cell_vox
    if between:
        hu, evident = half_a_cell_on(hu, cell), half_a_cell_on(evident, cell)
    return Cells(
        evidence=window_evidence(hu, evident, size_vox=window, step_vox=cell, mesh_vox=patches.mesh_vox),
        descriptors=describe_windows(hu, evident, teacher, size_vox=window, step_vox=cell),
    )


def evident_voxels(scan: Scan, patches: PatchConfig, cavities: np.ndarray | None = None) -> np.ndarray:
    """The voxels whose density tells of the lung around them; bool (z, y, x).

    The lung's `core`, without what is known already: vessels and the walls of bronchi, and `cavities` (bool,
    (z, y, x)) with their rim, whose wall beside lung would pass for fibrosis.
    """
    evident = core(scan.lungs, patches) & ~scan.vessels
    if cavities is not None:
        evident &= ~ndimage.binary_dilation(cavities)
    return evident


def core(lungs: np.ndarray, patches: PatchConfig) -> np.ndarray:
    """The lungs' voxels that are judged by their density; bool (z, y, x).

    Not the outermost one, which is half chest wall and would pass for disease, and not what is nowhere `thick_mm`
    thick: the wedge between heart and ribs is so narrow that all of it is half something else. What surrounds them says
    what they are.
    """
    inner = ndimage.binary_erosion(lungs)
    if not inner.any():
        return lungs
    radius_mm, spacing_mm = patches.thick_mm / 2, patches.spacing_mm
    deep = erode(lungs, radius_mm, spacing_mm)
    return inner & dilate(deep, radius_mm, spacing_mm) if deep.any() else inner
