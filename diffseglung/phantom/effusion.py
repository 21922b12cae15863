"""Fluid between a lung and its ribs: no disease of the lung, but it lies where consolidation does and looks like it.

The patient lies on the back, so it gathers behind and at the base, and climbs along the pleura: a crescent.
"""

import numpy as np

from ..frozen import frozen
from .fields import Frame, depth_of

BASAL = 0.35  # how far down counts, beside how far back: the space behind is deepest at the base
CLIMB_MM, THIN_MM = 35.0, 15.0  # up along the pleura, and how fast that ends further in
BEYOND_MM = 4.0  # the lung's outline, where breath blurs it


@frozen
class Effusion:
    """Free fluid in ml on either side, all of one density: a transudate near 0 HU, an exudate up to 20."""

    right_ml: float = 0.0
    left_ml: float = 0.0
    hu: float = 10.0

    def __post_init__(self) -> None:
        if min(self.right_ml, self.left_ml) < 0:
            raise ValueError(
                f"an effusion of {self.right_ml} and {self.left_ml} ml: no side has less than none"
            )
        if not 0 <= self.hu <= 20:
            raise ValueError(f"pleural fluid has 0 to 20 HU, not {self.hu}")


def fluid_depth(
    effusion: Effusion,
    frame: Frame,
    lungs: np.ndarray,
    lung_mm: np.ndarray,
    zyx_mm: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Depth in mm inside the fluid that takes the place of lung (z, y, x), which is `lung_mm` inside its outline.

    Its inner border is a level, lower in front and above, that bends up beside the pleura. Raises ValueError where a
    side has less than twice as much lung as fluid.
    """
    z, y, x = zyx_mm
    low = y - BASAL * z + CLIMB_MM * np.exp(-np.maximum(lung_mm, 0) / THIN_MM)
    depth_mm = np.full(low.shape, -np.inf, np.float32)
    for side, ml in ((x < 0, effusion.right_ml), (x >= 0, effusion.left_ml)):
        if ml > 0:
            heights = low[lungs & side]
            count = round(ml * 1000 / float(np.prod(frame.spacing_mm)))
            if 2 * count > len(heights):
                raise ValueError(f"{ml:g} ml of fluid leave less than half of a lung: draw less")
            level = np.partition(heights, -count)[-count]
            depth_mm = np.where(side, depth_of(low - level, frame.spacing_mm), depth_mm)
    return np.minimum(depth_mm, lung_mm + BEYOND_MM)
