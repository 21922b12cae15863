"""What the numbers in the label maps mean, and the colours they are drawn in everywhere."""

from enum import IntEnum


class Tissue(IntEnum):
    """Voxel labels of `segmentation.nii.gz` (uint8)."""

    BACKGROUND = 0
    HEALTHY = 1
    EMPHYSEMA = 2
    GROUND_GLASS = 3
    FIBROSIS = 4
    CONSOLIDATION = 5
    CAVITY = 6

    @property
    def key(self) -> str:
        """The name in column names: `ground_glass`."""
        return self.name.lower()

    @property
    def title(self) -> str:
        """The name for people: `ground glass`."""
        return self.key.replace("_", " ")


TISSUES: tuple[Tissue, ...] = tuple(Tissue)[1:]
DISEASES: tuple[Tissue, ...] = tuple(Tissue)[2:]


class Structure(IntEnum):
    """Voxel labels of `anatomy.nii.gz` (uint8). Right and left are the patient's."""

    BACKGROUND = 0
    RIGHT_LUNG = 1
    LEFT_LUNG = 2
    AIRWAY = 3
    VESSEL = 4


# Okabe and Ito's palette (2008): told apart with colour-blind eyes too.
TISSUE_RGB: dict[Tissue, tuple[int, int, int]] = {
    Tissue.HEALTHY: (0, 158, 115),
    Tissue.EMPHYSEMA: (86, 180, 233),
    Tissue.GROUND_GLASS: (240, 228, 66),
    Tissue.FIBROSIS: (213, 94, 0),
    Tissue.CONSOLIDATION: (204, 121, 167),
    Tissue.CAVITY: (0, 114, 178),
}
STRUCTURE_RGB: dict[Structure, tuple[int, int, int]] = {
    Structure.RIGHT_LUNG: (120, 180, 230),
    Structure.LEFT_LUNG: (120, 220, 150),
    Structure.AIRWAY: (250, 220, 80),
    Structure.VESSEL: (220, 60, 60),
}
