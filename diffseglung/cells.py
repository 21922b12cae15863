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


def describe_cells(
    scan: Scan,
    patches: PatchConfig,
    teacher: TeacherConfig,
    cavities: np.ndarray | None = None,
    *,
    between: bool = False,
) -> Cells:
    """Evidence and descriptors of each cell from the window around it, voxels of the lung's core only.

    The cells fill the box of the scan; those `between` are centred on the corners of these, one more along each axis.

    What is known already says nothing of its surroundings: vessels and the walls of bronchi, and `cavities` (bool,
    (z, y, x)) with their rim, whose wall beside lung would pass for fibrosis.
    """
    window, cell = patches.window_vox, patches.cell_vox
    lungs = core(scan.lungs, patches) & ~scan.vessels
    if cavities is not None:
        lungs &= ~ndimage.binary_dilation(cavities)
    hu = scan.hu
    if between:
        hu, lungs = half_a_cell_on(hu, cell), half_a_cell_on(lungs, cell)
    return Cells(
        evidence=window_evidence(hu, lungs, size_vox=window, step_vox=cell, mesh_vox=patches.mesh_vox),
        descriptors=describe_windows(hu, lungs, teacher, size_vox=window, step_vox=cell),
    )


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
