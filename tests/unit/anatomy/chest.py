"""A small chest of ellipsoids whose anatomy is known, for the anatomy's tests."""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

SPACING_MM = (3.0, 2.0, 2.0)
SHAPE = (70, 110, 150)


@dataclass
class Chest:
    """HU and what is where (bool, z y x). z runs to the head, y to the back, x to the patient's left."""

    hu: np.ndarray
    lungs: np.ndarray
    right: np.ndarray
    trachea: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)


def at_mm() -> list[np.ndarray]:
    """z, y, x of every voxel in mm from the chest's centre."""
    return [
        ((np.arange(n) - (n - 1) / 2) * step).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, step) in enumerate(zip(SHAPE, SPACING_MM, strict=True))
    ]


def ball(z: float, y: float, x: float, rz: float, ry: float, rx: float) -> np.ndarray:
    """An ellipsoid by centre and radii in mm."""
    at_z, at_y, at_x = at_mm()
    return ((at_z - z) / rz) ** 2 + ((at_y - y) / ry) ** 2 + ((at_x - x) / rx) ** 2 <= 1


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> np.ndarray:
    """A straight tube between two points (z, y, x) in mm."""
    a, along = np.array(start), np.subtract(end, start)
    offsets = [axis - origin for axis, origin in zip(at_mm(), a, strict=True)]
    share = sum(o * d for o, d in zip(offsets, along, strict=True)) / (along @ along)
    share = np.clip(share, 0, 1)
    return sum((o - share * d) ** 2 for o, d in zip(offsets, along, strict=True)) <= radius**2


def make_chest(
    *,
    mass: bool = False,
    consolidation: bool = False,
    filled_angle: bool = False,
    filled_lobe: bool = False,
    stomach: bool = False,
    effusion: bool = False,
    bullae: bool = False,
    bowel: bool = False,
    oesophagus: bool = False,
    table: bool = False,
    noise: float = 25.0,
) -> Chest:
    """A chest of 210 x 220 x 300 mm with two lungs that almost touch, a heart, a trachea and two bronchi."""
    at_z, at_y, at_x = at_mm()
    hu = np.full(SHAPE, -1000.0)
    body = ((at_y / 88) ** 2 + (at_x / 138) ** 2 <= 1) & (at_z > -200)
    hu[body] = 40
    inner = ((at_y / 74) ** 2 + (at_x / 122) ** 2 <= 1) & (at_z > -200)
    ribs = body & ~((at_y / 80) ** 2 + (at_x / 129) ** 2 <= 1) & (np.abs(at_z % 24 - 12) < 5)
    hu[ribs] = 500
    hu[rod((-110, 68, 0), (110, 68, 0), 16)] = 400
    heart = ball(-20, -20, 15, 50, 42, 48)
    trachea = rod((10, 0, 0), (110, 0, 0), 8)
    bronchi = rod((10, 0, 0), (-12, 6, -38), 5.5) | rod((10, 0, 0), (-12, 6, 38), 5)
    wall = ndimage.binary_dilation(trachea | bronchi, iterations=1)
    spine = rod((-110, 68, 0), (110, 68, 0), 22)
    right = ball(0, 0, -62, 88, 66, 54) & inner
    left = ball(0, 0, 62, 88, 66, 54) & inner
    lungs = (right | left) & ~heart & ~wall & ~spine
    hu[lungs] = -860
    parts: dict[str, np.ndarray] = {"heart": heart & ~lungs}
    vessels = np.zeros(SHAPE, bool)
    for side in (-1, 1):
        for z, y in ((45, 25), (25, -35), (-35, 30), (-50, 5)):
            vessels |= rod((0, 5, side * 40), (z, y, side * 85), 2.6)
    parts["vessels"] = vessels & lungs
    hu[parts["vessels"]] = 30
    if mass:
        parts["mass"] = ball(-25, 48, -75, 21, 21, 21) & (right | ball(0, 0, -62, 92, 70, 58)) & inner
        hu[parts["mass"]] = 45
        lungs |= parts["mass"] & ndimage.binary_fill_holes(right | parts["mass"])
    if consolidation:
        # Wide against the ribs, down to 3 cm above the lung's end, its bronchi open.
        parts["consolidation"] = ball(-18, 22, -100, 38, 40, 34) & lungs
        hu[parts["consolidation"]] = 35
        for z in (-38, -18, 2):
            hu[rod((z, 30, -84), (z + 8, 18, -106), 2.2) & parts["consolidation"]] = -900
    if filled_angle:
        # The lung's lower end behind, down to the diaphragm and back to the ribs, its bronchi open.
        parts["filled_angle"] = lungs & (at_x < 0) & (at_z < 0.8 * at_y - 60)
        hu[parts["filled_angle"]] = 35
        for y, x in ((15, -66), (30, -84), (30, -54), (42, -68)):
            z = 0.8 * y - 60
            hu[rod((z, y, x), (z - 18, y + 15, x), 2.5) & parts["filled_angle"]] = -900
    if filled_lobe:
        # Along the heart's right side, far from the ribs, lung below it; one bronchus open.
        parts["filled_lobe"] = ball(-10, -35, -28, 40, 45, 26) & lungs
        hu[parts["filled_lobe"]] = 35
        hu[rod((10, -20, -35), (-35, -35, -38), 2.5) & parts["filled_lobe"]] = -900
    if stomach:
        # It lifts the left lung's base; a meal with gas in it.
        parts["stomach"] = ball(-85, 5, 66, 48, 40, 36)
        lungs &= ~parts["stomach"]
        hu[parts["stomach"]] = 35
        for y, x in ((-12, 60), (5, 72), (5, 52), (18, 66)):
            hu[rod((-66, y, x), (-52, y + 4, x), 2.5) & parts["stomach"]] = -900
    if effusion:
        # It lies behind the lung, a layer of water that is thickest in the middle.
        parts["effusion"] = ball(-10, 72, -64, 62, 34, 46) & lungs
        hu[parts["effusion"]] = 5
        lungs &= ~parts["effusion"]
    if bullae:
        parts["bullae"] = ball(45, -15, -60, 22, 22, 22) | ball(30, 20, 70, 18, 18, 18)
        hu[parts["bullae"] & lungs] = -990
    if bowel:
        parts["bowel"] = ball(-95, -10, 60, 14, 30, 30) & ~ndimage.binary_dilation(lungs, iterations=1)
        hu[parts["bowel"]] = -995
    if oesophagus:
        # Full of gas, which a wall as light as a thin one that is blurred parts from both lungs.
        parts["oesophagus"] = rod((12, 28, 0), (52, 28, 0), 11)
        around = rod((12, 28, 0), (52, 28, 0), 16)
        hu[around] = -550
        hu[parts["oesophagus"]] = -985
        lungs &= ~around
    if table:
        parts["table"] = np.broadcast_to((at_y > 94) & (at_y < 104) & (np.abs(at_x) < 120), SHAPE)
        hu[parts["table"]] = -900
    hu[(trachea | bronchi)] = -990
    hu = ndimage.gaussian_filter(hu, 0.5)
    hu += np.random.default_rng(0).normal(0, noise, SHAPE)
    return Chest(hu.round().astype(np.int16), lungs, right & lungs, trachea | bronchi, parts)
