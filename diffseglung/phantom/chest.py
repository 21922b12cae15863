"""A healthy chest: body wall, ribs, spine, heart, great vessels, diaphragm, and two lungs with their trees.

Everything is drawn in the frame of `fields.Frame` (mm, +z head, +y back, +x left) for an adult in a field of
view of 320 x 320 x 240 mm, and stretched to the patient at hand. HU are textbook values at 120 kV.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

import numpy as np

from .effusion import Effusion, fluid_depth
from .fields import Frame, blend, both, cover, depth_of, either, path, ramp, smooth_noise
from .trees import Tree, grow

ADULT_MM = (240.0, 320.0, 320.0)
# Landmarks of the adult chest, (z, y, x) in mm.
CARINA_MM = (22.0, 12.0, 0.0)
PULMONARY_TRUNK_MM = (11.0, -6.0, 8.0)
MAIN_BRONCHUS_MM = {"right": (2.0, 14.0, -33.0), "left": (-2.0, 20.0, 36.0)}
ARTERY_HILUM_MM = {"right": (4.0, -2.0, -36.0), "left": (14.0, 14.0, 38.0)}
VEIN_HILUM_MM = {"right": (-14.0, 8.0, -28.0), "left": (-12.0, 12.0, 30.0)}
AIR, FAT, MUSCLE, SKIN, LIVER, MARROW, CORTEX = -1000.0, -100.0, 50.0, 10.0, 55.0, 180.0, 600.0
AIRLESS, SQUEEZED_MM = -150.0, 6.0  # lung at a fluid's edge, and how far from it half of that is gone


@dataclass(frozen=True, slots=True)
class Physique:
    """What differs from one healthy patient to the next; HU, mm, or shares of one."""

    stretch: tuple[float, float, float]
    fat_mm: float
    lung_hu: float
    gravity_hu: float
    dependent_hu: float
    blood_hu: float
    heart_tilt: float
    heart_size: float
    dome_right_mm: float
    dome_left_mm: float
    motion_mm: float
    vessel_tip_mm: float
    bronchus_ratio: float
    fissure_mm: float


def draw_physique(rng: np.random.Generator, frame: Frame) -> Physique:
    """One patient, drawn in one place."""
    contrast = rng.random() < 0.35
    grown = frame.extent_mm / ADULT_MM * rng.uniform(0.93, 1.0, 3)
    return Physique(
        stretch=(float(grown[0]), float(grown[1]), float(grown[2])),
        fat_mm=rng.uniform(3, 16),
        lung_hu=rng.uniform(-885, -815),
        gravity_hu=rng.uniform(40, 75),
        dependent_hu=rng.uniform(0, 120),
        blood_hu=rng.uniform(150, 320) if contrast else rng.uniform(35, 50),
        heart_tilt=rng.uniform(-0.12, 0.12),
        heart_size=rng.uniform(0.9, 1.08),
        dome_right_mm=rng.uniform(-48, -36),
        dome_left_mm=rng.uniform(-58, -46),
        motion_mm=rng.uniform(2, 6),
        vessel_tip_mm=rng.uniform(0.62, 0.78),
        bronchus_ratio=rng.uniform(0.85, 1.05),
        fissure_mm=rng.uniform(0.2, 0.5),
    )


@dataclass(frozen=True, slots=True)
class Chest:
    """A healthy chest before the scanner: HU float32, and what is what, all (z, y, x)."""

    hu: np.ndarray
    lungs: np.ndarray
    airways: np.ndarray
    vessels: np.ndarray
    effusion: np.ndarray
    story: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Depths in mm (positive inside) that the paint follows."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    body: np.ndarray
    cavity: np.ndarray
    angle: np.ndarray
    mediastinum: np.ndarray
    heart: np.ndarray
    diaphragm: np.ndarray
    lung: np.ndarray


def make_chest(rng: np.random.Generator, frame: Frame, effusion: Effusion | None = None) -> Chest:
    """Draws a patient and paints it from the skin inwards; fluid, if any, takes room from the same lungs."""
    physique = draw_physique(rng, frame)
    shapes = _shapes(rng, frame, physique)
    hu = _paint_wall(rng, frame, physique, shapes)
    hu = _paint_abdomen(rng, frame, physique, shapes, hu)
    hu = _paint_spine(frame, shapes, hu)
    hu = _paint_mediastinum(rng, frame, physique, shapes, hu)
    parenchyma, upper = _parenchyma(rng, frame, physique, shapes)
    share = _lung_share(frame, physique, shapes)
    aired = blend(hu, parenchyma, share)
    aired, large_airway, airways, vessels = _paint_trees(rng, frame, physique, shapes, upper, aired)
    inside = (shapes.lung > 0) & (large_airway < 0.5)
    vessels = (vessels > 0.5) & inside & (airways <= 0.5)
    chest = Chest(aired, inside, airways > 0.5, vessels, np.zeros_like(inside), asdict(physique))
    return _pour(frame, shapes, effusion, chest, hu, share) if effusion else chest


def _pour(
    frame: Frame, shapes: _Shapes, effusion: Effusion, chest: Chest, around: np.ndarray, share: np.ndarray
) -> Chest:
    """The chest with fluid in it: lung, `share` of each voxel in what lies `around`, gives way and is squeezed."""
    depth_mm = fluid_depth(effusion, frame, chest.lungs, shapes.lung, (shapes.z, shapes.y, shapes.x))
    near = np.exp2(np.minimum(depth_mm, 0) / SQUEEZED_MM)
    hu = np.maximum(chest.hu, blend(chest.hu, AIRLESS, near * share))
    hu = blend(hu, blend(around, effusion.hu, share), cover(depth_mm, frame.pixel_mm))
    fluid = chest.lungs & (depth_mm > 0)
    lungs, airways, vessels = (part & ~fluid for part in (chest.lungs, chest.airways, chest.vessels))
    return replace(chest, hu=hu, lungs=lungs, airways=airways, vessels=vessels, effusion=fluid)


# ---- shapes


def _shapes(rng: np.random.Generator, frame: Frame, physique: Physique) -> _Shapes:
    z, y, x = (mm / scale for mm, scale in zip(frame.zyx_mm, physique.stretch, strict=True))
    wobble = smooth_noise(rng, frame, 70.0)
    cavity, angle = _cavity(frame, z, y, x)
    cavity = cavity + 1.5 * wobble
    flat = 1 - 0.13 * ramp(z, 40, 115)
    body_norm = (np.abs(x / (149 + 6 * ramp(z, 20, 90))) ** 2.4 + np.abs((y - 4) / (106 * flat)) ** 2.4) ** (
        1 / 2.4
    )
    body = depth_of(1 - body_norm, frame.spacing_mm) + wobble
    heart = _heart(frame, physique, z, y, x)
    mediastinum = _mediastinum(frame, heart, z, y, x) + 1.2 * smooth_noise(rng, frame, 25.0)
    diaphragm = _diaphragm(physique, z, y, x) + 1.5 * wobble
    lung = both(both(cavity, -mediastinum, 9.0), diaphragm, 5.0)
    return _Shapes(z, y, x, body, cavity, angle, mediastinum, heart, diaphragm, lung)


def _cavity(frame: Frame, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth inside the rib cage and the angle round it, 0 at the spine and pi at the breastbone."""
    rise = np.maximum((z + 25) / 134, 0)
    middle = 3 + 20 * ramp(z, 0, 110)
    forward = np.clip((middle - y) / 88, -0.4, 1.2)
    half_x, half_y = 126 * (1 - 0.15 * forward), 88.0
    norm = (np.abs(x / half_x) ** 2.3 + np.abs((y - middle) / half_y) ** 2.3 + rise**2.7) ** (1 / 2.3)
    return depth_of(1 - norm, frame.spacing_mm), np.arctan2(np.abs(x), y - middle)


def _heart(frame: Frame, physique: Physique, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A tilted ellipsoid whose apex points to the left, forwards and down."""
    dx, dy, dz = x - 20, y + 24, z + 42
    apex = np.array([-0.42 + physique.heart_tilt, -0.42, 0.80])
    apex /= np.linalg.norm(apex)
    along = dz * apex[0] + dy * apex[1] + dx * apex[2]
    across2 = dx**2 + dy**2 + dz**2 - along**2
    size = physique.heart_size
    return depth_of(1 - np.sqrt((along / (66 * size)) ** 2 + across2 / (46 * size) ** 2), frame.spacing_mm)


def _mediastinum(frame: Frame, heart: np.ndarray, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Everything between the lungs as one smooth depth: heart and its fat, great vessels, spine, hila."""

    def column(x0: float, y0: float, half_x: float, half_y: float) -> np.ndarray:
        norm = np.sqrt(((x - x0) / half_x) ** 2 + ((y - y0) / half_y) ** 2)
        return (1 - norm) * min(half_x, half_y) + np.zeros_like(z)

    top = column(0, -8, 25, 46) - 40 * ramp(-z, 25, 60)
    low = column(8, 32, 21, 24)
    spine = either(column(0, 59, 20, 22), column(0, 96, 36, 26), 10.0)
    # The lungs almost touch in front of the heart and great vessels: the anterior junction line.
    junction = (3.0 + 0.6 * np.maximum(-62 - y, 0) - np.abs(x)) - np.maximum(y + 20, 0)
    arch = _capsules(
        z,
        y,
        x,
        [
            (-8, -22, -12),
            (26, -27, -14),
            (46, -14, -5),
            (55, 12, 13),
            (46, 36, 24),
            (20, 41, 25),
            (-20, 42, 21),
        ],
        14.0,
    )
    arch = either(arch, _capsules(z, y, x, [(-20, 42, 21), (-118, 42, 15)], 13.0), 4.0)
    hilum = either(
        _capsules(z, y, x, [(4, 6, 0), (2, 9, -31)], 11.0),
        _capsules(z, y, x, [(12, 6, 4), (6, 15, 35)], 12.0),
        8.0,
    )
    depth = either(heart + 4, top, 12.0)
    for part in (low, spine, junction, arch, hilum):
        depth = either(depth, part, 9.0)
    return depth


def _capsules(
    z: np.ndarray, y: np.ndarray, x: np.ndarray, points: list[tuple[float, float, float]], radius: float
) -> np.ndarray:
    """Depth inside a tube through points (z, y, x), everywhere in the volume."""
    nearest = np.inf
    for a, b in pairwise(points):
        along = np.subtract(b, a)
        t = ((z - a[0]) * along[0] + (y - a[1]) * along[1] + (x - a[2]) * along[2]) / (along**2).sum()
        t = np.clip(t, 0, 1).astype(np.float32)
        away2 = (
            (z - a[0] - t * along[0]) ** 2 + (y - a[1] - t * along[1]) ** 2 + (x - a[2] - t * along[2]) ** 2
        )
        nearest = np.minimum(nearest, away2)
    return (radius - np.sqrt(nearest)).astype(np.float32)


def _diaphragm(physique: Physique, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Height above two domes that fall off steeply towards the ribs, most of all behind."""
    front, back = np.minimum(y + 10, 0), np.maximum(y + 10, 0)
    fall_y = 22 * (front / 75) ** 2 + 62 * (back / 88) ** 2
    right = physique.dome_right_mm - fall_y - np.where(x < -60, 40, 10) * ((x + 60) / 62) ** 2
    left = physique.dome_left_mm - fall_y - np.where(x > 62, 38, 8) * ((x - 62) / 60) ** 2
    left_share = ramp(x, -20, 20)
    return (z - (right + left_share * (left - right))).astype(np.float32)


# ---- paint


def _paint_wall(rng: np.random.Generator, frame: Frame, physique: Physique, shapes: _Shapes) -> np.ndarray:
    """Air, table, skin, fat, muscle, ribs, shoulder blades and breastbone."""
    pixel_mm = frame.pixel_mm
    z, y, x = shapes.z, shapes.y, shapes.x
    outward = -shapes.cavity
    hu = np.full(frame.shape, AIR, np.float32)
    bench = np.abs(y - (128 - 0.0012 * x**2)) + np.zeros_like(z)
    hu = blend(hu, -120.0, cover(2.0 - bench, pixel_mm))
    hu = blend(hu, FAT + 12 * smooth_noise(rng, frame, 12.0), cover(shapes.body, pixel_mm))
    hu = blend(hu, SKIN, cover(1.5 - np.abs(shapes.body - 1.5), pixel_mm) * 0.8)
    patches = smooth_noise(rng, frame, (40.0, 22.0, 22.0))
    layers = np.minimum(
        shapes.body - physique.fat_mm - 3 * patches, 4 + 5 * patches + 30 - np.abs(outward - 15)
    )
    muscle = np.maximum(layers, 7 - np.abs(outward - 7))
    muscle = np.minimum(muscle, shapes.body - 3)
    # Planes of fat between the muscles.
    planes = 0.55 * np.exp(-((outward - 13 - 2 * patches) ** 2) / 4) + 0.4 * np.exp(-((patches) ** 2) / 0.01)
    hu = blend(hu, MUSCLE + 8 * patches, cover(muscle, pixel_mm) * (1 - planes))
    return _paint_ribs(frame, shapes, outward, hu)


def _paint_ribs(frame: Frame, shapes: _Shapes, outward: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """Ribs slant down from the spine to the front, where they turn into cartilage; blades lie behind them."""
    pixel_mm = frame.pixel_mm
    z, y, x, angle = shapes.z, shapes.y, shapes.x, shapes.angle
    period_mm = 23.0
    level = z + 30 * angle - 6 * np.maximum(angle - 2.0, 0) ** 2
    off_mm = np.abs((level % period_mm) - period_mm / 2)
    rib = (1 - np.sqrt((off_mm / 6.5) ** 2 + ((outward - 6.5) / 4.2) ** 2)) * 4.2
    rib = np.minimum(rib, 40 * np.minimum(angle - 0.28, 2.85 - angle))
    cartilage = ramp(angle, 2.15, 2.3)
    hu = blend(hu, blend(CORTEX, 110.0, cartilage), cover(rib, pixel_mm))
    hu = blend(hu, blend(MARROW, 90.0, cartilage), cover(rib - 1.8, pixel_mm))
    blade = np.minimum(2.2 - np.abs(outward - 25 + 10 * (angle - 1) ** 2), 30 * (0.42 - np.abs(angle - 1.0)))
    blade = np.minimum(np.minimum(blade, z + 8), shapes.body - 6)
    hu = blend(hu, 420.0, cover(blade, pixel_mm))
    front = y + (8 + 86) * (1 - 0.10 * ramp(z, 10, 80))
    breastbone = (1 - np.sqrt((x / 17) ** 2 + ((front + 4) / 6) ** 2)) * 6
    breastbone = np.minimum(breastbone, np.minimum(z + 45, 75 - z)) + np.zeros_like(z)
    hu = blend(hu, 350.0, cover(breastbone, pixel_mm))
    return blend(hu, 130.0, cover(breastbone - 2.0, pixel_mm))


def _paint_spine(frame: Frame, shapes: _Shapes, hu: np.ndarray) -> np.ndarray:
    """Vertebral bodies with discs between them, canal, arches, spines, and the muscles beside them."""
    pixel_mm = frame.pixel_mm
    z, y, x = shapes.z, shapes.y, shapes.x
    beside = (1 - np.sqrt(((np.abs(x) - 22) / 19) ** 2 + ((y - 97) / 15) ** 2)) * 15 + np.zeros_like(z)
    hu = blend(hu, MUSCLE, cover(np.minimum(beside, shapes.body - 3), pixel_mm))
    level = z % 23.0
    disc = cover(2.5 - np.abs(level - 11.5), pixel_mm)
    inside = (1 - np.sqrt((x / 16) ** 2 + ((y - 60) / 14) ** 2)) * 14 + np.zeros_like(z)
    body = cover(inside, pixel_mm)
    hu = blend(hu, blend(CORTEX - 150, 80.0, disc), body)
    hu = blend(hu, blend(MARROW, 80.0, disc), cover(inside - 1.8, pixel_mm))
    ring = 3.5 - np.abs(np.sqrt(x**2 + (y - 82) ** 2) - 11)
    wings = np.minimum(4 - np.abs(y - 84 - 0.25 * np.abs(x)), 28 - np.abs(x)) - 1.2 * np.maximum(
        np.abs(level - 5) - 4, 0
    )
    spike = np.minimum(2.8 - np.abs(x), 13 - np.abs(y - 104)) + np.zeros_like(z)
    arch = np.maximum(np.maximum(ring - 0.6 * disc, wings), spike - 3 * disc)
    hu = blend(hu, 420.0, cover(np.minimum(arch, shapes.body - 5), pixel_mm))
    canal = (1 - np.sqrt(x**2 + (y - 82) ** 2) / 9) * 9 + np.zeros_like(z)
    return blend(hu, 30.0, cover(canal, pixel_mm))


def _paint_abdomen(
    rng: np.random.Generator, frame: Frame, physique: Physique, shapes: _Shapes, hu: np.ndarray
) -> np.ndarray:
    """Under the diaphragm: liver, spleen, and a stomach with the gas bubble that fools lung finders."""
    z, y, x = shapes.z, shapes.y, shapes.x
    below = np.minimum(shapes.cavity, -shapes.diaphragm)
    inside = cover(below, frame.pixel_mm)
    organs = np.full(frame.shape, FAT, np.float32)
    liver = np.minimum(55 - x - 0.25 * y, 95 - y) + np.zeros_like(z)
    organs = blend(organs, LIVER + 5 * smooth_noise(rng, frame, 30.0), cover(liver, 8.0))
    spleen = (1 - np.sqrt(((x - 78) / 30) ** 2 + ((y - 42) / 38) ** 2 + ((z + 95) / 36) ** 2)) * 30
    organs = blend(organs, 48.0, cover(spleen, frame.pixel_mm))
    stomach = (1 - np.sqrt(((x - 58) / 34) ** 2 + ((y + 20) / 36) ** 2 + ((z + 96) / 32) ** 2)) * 32
    organs = blend(organs, 40.0, cover(stomach, frame.pixel_mm))
    content = blend(25.0, AIR, cover(-28 - y + np.zeros_like(z), frame.pixel_mm))
    organs = blend(organs, content, cover(stomach - 4, frame.pixel_mm))
    return blend(hu, organs, inside)


def _paint_mediastinum(
    rng: np.random.Generator, frame: Frame, physique: Physique, shapes: _Shapes, hu: np.ndarray
) -> np.ndarray:
    """Fat between the lungs, the heart, and the great vessels in it."""
    pixel_mm = frame.pixel_mm
    stretch = np.array(physique.stretch)
    width = float(stretch.mean())
    space = np.minimum(np.minimum(shapes.cavity, shapes.diaphragm), shapes.mediastinum)
    not_spine = 1 - ramp(shapes.y, 40, 46) * ramp(24 - np.abs(shapes.x), 0, 4)
    share = cover(space, pixel_mm) * not_spine
    hu = blend(hu, -75 + 18 * smooth_noise(rng, frame, 18.0), share)
    heart = blend(45.0, physique.blood_hu, 0.75 * ramp(shapes.heart, 4, 14))
    hu = blend(hu, heart, cover(np.minimum(shapes.heart, shapes.diaphragm), physique.motion_mm))

    def vessel(
        points: Sequence[tuple[float, float, float]], radius: float, value: float, under: np.ndarray
    ) -> np.ndarray:
        return blend(
            under, value, path(frame, [tuple(p * stretch) for p in np.array(points)], radius * width)
        )

    blood = physique.blood_hu
    aorta = [
        (-10, -22, -10),
        (24, -26, -14),
        (44, -14, -6),
        (53, 12, 12),
        (44, 36, 23),
        (18, 41, 24),
        (-120, 42, 16),
    ]
    hu = vessel(aorta, 12.0, blood, hu)
    hu = vessel([(-10, -30, 8), (14, -26, 14), (16, -8, 8)], 12.0, blood, hu)
    hu = vessel([(120, -4, -30), (60, -12, -22), (-10, -12, -26), (-40, -5, -22)], 8.5, blood + 20, hu)
    hu = vessel([(120, -8, 22), (62, -8, 14), (52, 4, 10)], 5.0, blood, hu)
    hu = vessel([(120, 26, 4), (20, 32, 6), (-118, 32, 4)], 6.0, 40.0, hu)
    return vessel([(46, 46, -9), (-118, 48, -7)], 3.5, blood, hu)


# ---- inside the lung


def _parenchyma(
    rng: np.random.Generator, frame: Frame, physique: Physique, shapes: _Shapes
) -> tuple[np.ndarray, np.ndarray]:
    """Aerated lung: denser towards the back where gravity compresses it; lobules; fissures.

    Returns HU, and the lobe number 0 to 4 of each voxel (right upper, middle, lower, left upper, lower).
    """
    z, y, x = shapes.z, shapes.y, shapes.x
    tissue = physique.lung_hu + physique.gravity_hu * (y / 170) - 10 * ramp(z, -80, 80)
    tissue = tissue + 9 * smooth_noise(rng, frame, 45.0) + 13 * smooth_noise(rng, frame, 7.0)
    dependent = np.exp(-np.maximum(shapes.lung, 0) / 5) * ramp(y, 20, 75)
    tissue = tissue + physique.dependent_hu * dependent

    bend = 5 * smooth_noise(rng, frame, 60.0)
    major = np.where(x < 0, z - 42 - 1.08 * (y - 60), z - 50 - 1.15 * (y - 60)) + bend
    minor = z - 2 + 0.0012 * (x + 70) ** 2 + 0.5 * bend[::-1]
    lower = major < 0
    middle = (x < 0) & ~lower & (minor < 0)
    lobe = np.where(x < 0, np.where(lower, 2, np.where(middle, 1, 0)), np.where(lower, 4, 3))
    sheet_mm = np.abs(depth_of(major.astype(np.float32), frame.spacing_mm))
    minor_mm = np.abs(minor) + 100 * (lower | (x >= 0))
    sheet_mm = np.minimum(sheet_mm, minor_mm)
    complete = ramp(smooth_noise(rng, frame, 50.0), -1.0, -0.4)
    share = np.minimum(
        cover(physique.fissure_mm / 2 - sheet_mm, frame.pixel_mm), physique.fissure_mm / frame.pixel_mm
    )
    return blend(tissue, 20.0, share * complete).astype(np.float32), lobe


def _lung_share(frame: Frame, physique: Physique, shapes: _Shapes) -> np.ndarray:
    """How much of a voxel is lung: sharp at the ribs, smeared by motion at the heart and the diaphragm."""
    near_heart = ramp(shapes.heart, -12, -5)
    near_dome = ramp(-shapes.diaphragm, -12, -4) * ramp(shapes.cavity, 2, 10)
    edge_mm = frame.pixel_mm + physique.motion_mm * np.maximum(near_heart, near_dome)
    return cover(shapes.lung, edge_mm)


def _paint_trees(
    rng: np.random.Generator,
    frame: Frame,
    physique: Physique,
    shapes: _Shapes,
    lobe: np.ndarray,
    hu: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windpipe, bronchi beside arteries, veins: HU, shares of large airway, of any airway, of any vessel."""
    stretch = np.array(physique.stretch)
    width = float(stretch.mean())
    large, shell = _windpipe(frame, stretch)
    vessels, small, small_shell = (np.zeros(frame.shape, np.float32) for _ in range(3))
    for side, main in MAIN_BRONCHUS_MM.items():
        mine = (shapes.lung > 5) & ((shapes.x < 0) == (side == "right"))
        hilum = np.array(ARTERY_HILUM_MM[side]) * stretch
        arteries, artery_mm = _vessels(rng, frame, physique, mine, lobe, hilum)
        veins, vein_mm = _vessels(rng, frame, physique, mine, lobe, np.array(VEIN_HILUM_MM[side]) * stretch)
        vessels = np.maximum(
            vessels, np.maximum(arteries.paint(frame, artery_mm), veins.paint(frame, vein_mm))
        )
        bronchi, lumen_mm = _bronchi(physique, arteries, artery_mm, np.array(main) * stretch - hilum)
        small = np.maximum(small, bronchi.paint(frame, lumen_mm))
        small_shell = np.maximum(small_shell, bronchi.paint(frame, 1.15 * lumen_mm + 0.35))
        trunk = path(frame, [tuple(np.array(PULMONARY_TRUNK_MM) * stretch), tuple(hilum)], 9.5 * width)
        hu = blend(hu, physique.blood_hu, trunk)
    hu = blend(hu, physique.blood_hu, vessels)
    hu = blend(hu, 20.0, np.maximum(shell, small_shell))
    airways = np.maximum(large, small)
    hu = blend(hu, AIR, airways)
    return hu, np.maximum(large, small * (shapes.lung < 6)), airways, vessels


def _windpipe(frame: Frame, stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trachea and main bronchi: shares of the lumen, and of lumen and wall."""
    width = float(stretch.mean())
    pieces = [([(125.0, 0.0, 0.0), (70.0, 6.0, 0.0), CARINA_MM], [8.5, 8.5, 8.5])]
    pieces += [([CARINA_MM, main], [7.0, 5.5]) for main in MAIN_BRONCHUS_MM.values()]
    shares = []
    for wall_mm in (0.0, 1.0):
        tubes = [
            path(frame, [tuple(np.array(p) * stretch) for p in points], [width * r + wall_mm for r in radii])
            for points, radii in pieces
        ]
        shares.append(np.maximum.reduce(tubes))
    return shares[0], shares[1]


def _vessels(
    rng: np.random.Generator,
    frame: Frame,
    physique: Physique,
    lung: np.ndarray,
    lobe: np.ndarray,
    root_mm: np.ndarray,
) -> tuple[Tree, np.ndarray]:
    """A vessel tree to about one tip per 2 mL of lung, and the radius of its pieces."""
    inside = np.flatnonzero(lung)
    count = int(np.clip(len(inside) * frame.pixel_mm**3 / 2000, 40, 1600))
    chosen = rng.choice(inside, min(count, len(inside)), replace=False)
    index = np.stack(np.unravel_index(chosen, frame.shape), 1)
    tree = grow(rng, root_mm, frame.to_mm(index), lobe.ravel()[chosen])
    return tree, tree.radii_mm(physique.vessel_tip_mm, most_mm=7.5)


def _bronchi(
    physique: Physique, tree: Tree, radii_mm: np.ndarray, root_mm: np.ndarray
) -> tuple[Tree, np.ndarray]:
    """The first generations of airway, each beside its artery and about as wide.

    root_mm (3,): where the main bronchus ends, seen from the artery's root.
    """
    keep = tree.tips >= 6
    arteries, lumen_mm = tree.select(keep), physique.bronchus_ratio * radii_mm[keep] * 0.75
    along = arteries.end_mm - arteries.start_mm
    outward = np.cross(along, [0.3, 0.2, 1.0])
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-6)
    aside_mm = outward * (radii_mm[keep] + 1.3 * lumen_mm + 0.6)[:, None]
    at_root = np.linalg.norm(arteries.start_mm - tree.start_mm[0], axis=1) < 1e-6
    bronchi = arteries.beside(aside_mm)
    bronchi.start_mm[at_root] = tree.start_mm[0] + root_mm
    return bronchi, lumen_mm
