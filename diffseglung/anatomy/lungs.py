"""Which voxels of a chest CT are lung, and which lung: air inside the body, closed over what is dense in it.

Everything here works on an isotropic grid of about 2 mm; HU float32, masks bool, all (z, y, x).
"""

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image
from skimage.segmentation import watershed

from diffseglung.anatomy.bronchograms import dense_around_bronchi, open_bronchi
from diffseglung.anatomy.fluid import without_fluid
from diffseglung.anatomy.morphology import (
    Spacing,
    bounding_box,
    closing,
    components,
    dilate,
    distance_mm,
    erode,
    opening,
)
from diffseglung.anatomy.symmetry import dense_as_mirrored
from diffseglung.anatomy.wall import BONE_HU, dense_at_ribs

AIR_HU = -400  # half-way from healthy lung (-850) to soft tissue (50)
ROOM_AIR_HU = -970  # no lung is so empty; a miscalibrated scanner's room air still is


def lung_air(hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Air inside the body: lungs with airways and bowel, without the room, the table and the blankets (bool).

    What is open to the sides of the picture, or runs through it from top to bottom like a table, is outside,
    unless the scan is a crop that shows no closed lung at all: then only what is as empty as room air is.
    """
    parts, sizes = components(hu < AIR_HU)
    voxel_mm3 = float(np.prod(spacing_mm))
    numbers = np.arange(len(sizes))
    extent_mm2 = np.maximum(sizes * voxel_mm3, 1) ** (2 / 3)
    openness = _area_on_sides(parts, len(sizes), spacing_mm) / extent_mm2
    large = numbers[(sizes * voxel_mm3 > 100_000)]
    closed = [n for n in large if openness[n] < 0.5 and ROOM_AIR_HU < np.median(hu[parts == n]) < -500]
    if closed:
        return np.isin(parts, numbers[(numbers > 0) & (openness < 0.5)])
    empty = [n for n in large if _mode_hu(hu[parts == n]) < ROOM_AIR_HU]
    return (parts > 0) & ~np.isin(parts, empty)


def _area_on_sides(parts: np.ndarray, count: int, spacing_mm: Spacing) -> np.ndarray:
    """mm2 of each part on the four sides of the picture, or on its top and bottom if it is on both."""
    dz, dy, dx = spacing_mm
    area = [np.bincount(face.ravel(), minlength=count) for face in (parts[:, 0], parts[:, -1])]
    area_mm2 = (area[0] + area[1]) * dz * dx
    area = [np.bincount(face.ravel(), minlength=count) for face in (parts[:, :, 0], parts[:, :, -1])]
    area_mm2 = area_mm2 + (area[0] + area[1]) * dz * dy
    area = [np.bincount(face.ravel(), minlength=count) for face in (parts[0], parts[-1])]
    return np.maximum(area_mm2, 2 * np.minimum(area[0], area[1]) * dy * dx)


def _mode_hu(values_hu: np.ndarray) -> int:
    """The commonest density, in bins of 10 HU."""
    return int(np.bincount(np.clip(values_hu + 1100, 0, 1500).astype(int) // 10).argmax() * 10 - 1095)


def parenchyma_air(air: np.ndarray, hu: np.ndarray, spacing_mm: Spacing, *, min_ml: float) -> np.ndarray:
    """The air that is lung by size and density: bowel gas is emptier, the rest smaller (bool)."""
    air = air & ~_bowel_gas(air, hu, spacing_mm)
    parts, sizes = components(opening(air, 2.5, spacing_mm))
    ml = sizes * float(np.prod(spacing_mm)) / 1000
    kept = [n for n in range(1, min(len(sizes), 12)) if ml[n] >= max(min_ml, 0.04 * ml[1])]
    kept = [n for n in kept if np.median(hu[parts == n]) > ROOM_AIR_HU]
    return dilate(np.isin(parts, kept), 4.0, spacing_mm) & air


def _bowel_gas(air: np.ndarray, hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Gas of stomach and colon that joins the lung through a thin diaphragm: empty, with belly around it."""
    parts, sizes = components(opening(air & (hu < -940), 4.0, spacing_mm))
    belly = np.zeros(air.shape, bool)
    heights = np.flatnonzero(air.any((1, 2)))
    if heights.size == 0:
        return belly
    low = heights[0] + np.ptp(heights) // 3
    for number in np.flatnonzero(sizes * float(np.prod(spacing_mm)) > 3000)[:20]:
        box = bounding_box(parts == number, 14.0, spacing_mm)
        gas = parts[box] == number
        around = distance_mm(gas, spacing_mm)
        around = (around > 5) & (around < 12)
        if box[0].start < low and (hu[box][around] > -300).mean() > 0.6:
            belly[box] |= dilate(gas, 5.0, spacing_mm)
    return belly


def split_sides(air: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """1 where the air is of the patient's right lung, 2 of the left, 0 elsewhere (uint8).

    Lungs that touch at the anterior junction are parted where the bridge between them is thinnest.
    """
    depth = distance_mm(~air, spacing_mm)
    for waist_mm in (0.0, 3.0, 5.0, 8.0, 12.0):
        parts, sizes = components(depth > waist_mm)
        pair = _pair(parts, sizes, spacing_mm)
        if pair is not None:
            seeds = np.zeros(air.shape, np.int32)
            for side, number in enumerate(pair, start=1):
                seeds[parts == number] = side
            return watershed(-depth, seeds, mask=air).astype(np.uint8)
    return np.where(air, _only_side(air), 0).astype(np.uint8)


def _pair(parts: np.ndarray, sizes: np.ndarray, spacing_mm: Spacing) -> tuple[int, int] | None:
    """The two parts that lie side by side like lungs, the patient's right (low x) first."""
    big = [n for n in range(1, min(len(sizes), 6)) if sizes[n] > 0.12 * sizes[1]]
    if not big:
        return None
    width = np.ptp(np.flatnonzero((parts > 0).any((0, 1)))) * spacing_mm[2]
    centres = {n: np.array(ndimage.center_of_mass(parts == n)) * spacing_mm for n in big}
    for n in big[1:]:
        z, y, x = centres[n] - centres[big[0]]
        if abs(x) > max(0.3 * width, abs(z), abs(y)):
            return (big[0], n) if x > 0 else (n, big[0])
    return None


def _only_side(air: np.ndarray) -> int:
    """Which lung a lone lung is: towards the ribs it bulges, towards heart and hilum it is hollowed out."""
    columns = np.arange(air.shape[2])
    lean = 0.0
    for axial in air[:: max(1, air.shape[0] // 16)]:
        if np.count_nonzero(axial) > 100:
            hollow = convex_hull_image(axial) & ~axial
            lean += hollow.sum(0) @ (columns - np.average(columns, weights=axial.sum(0)))
    return 1 if lean > 0 else 2


def close_over_disease(
    side: np.ndarray,
    hu: np.ndarray,
    airways: np.ndarray,
    spacing_mm: Spacing,
    *,
    closing_mm: float,
    hilum_mm: float,
    disease_mm: float,
) -> np.ndarray:
    """Lungs from their air: vessels and small dense disease by a rolling ball, then what is too large for it.

    Near the trachea and the large bronchi the ball is small, or it would fill the notches between the hilar
    vessels and take the rim of the mediastinum into the lung. uint8 (z, y, x) as `split_sides`.
    """
    hilar = distance_mm(airways, spacing_mm) < hilum_mm
    lungs = side.copy()
    for number in np.unique(side[side > 0]):
        air = side == number
        closed = closing(air, 4.0, spacing_mm) | (closing(air, closing_mm, spacing_mm) & ~hilar)
        closed = ndimage.binary_fill_holes(closed) | _enclosed_in_planes(closed)
        lungs[closed & (lungs == 0) & ~airways] = number

    def take_in(number: int, bodies: np.ndarray, rim_mm: float) -> None:
        """Bodies become lung, but for fluid, and so does what lies between them and it."""
        bodies = without_fluid(bodies, hu, lungs > 0, spacing_mm)
        if bodies.any():
            whole = closing((lungs == number) | bodies, closing_mm, spacing_mm)
            whole &= dilate(bodies, rim_mm, spacing_mm)
            lungs[whole & (lungs == 0) & ~airways & (hu < BONE_HU)] = number

    for number in np.unique(side[side > 0]):
        bodies = dense_at_ribs(lungs, number, hu, airways, spacing_mm)
        take_in(number, bodies, 8.0)
        for _ in range(2):
            bodies = _dense_disease(lungs, number, hu, airways, hilar, spacing_mm, disease_mm)
            if not bodies.any():
                break
            take_in(number, bodies, 8.0)
    bronchi = open_bronchi(lungs > 0, hu, airways, hilar, spacing_mm)
    for number in np.unique(side[side > 0]):
        bodies = dense_around_bronchi(lungs, number, bronchi, hu, airways, spacing_mm)
        take_in(number, bodies, 4.0)
    for number in np.unique(side[side > 0]):
        lungs[dense_as_mirrored(lungs, number, hu, airways | hilar, spacing_mm)] = number
    return lungs


def _enclosed_in_planes(lung: np.ndarray) -> np.ndarray:
    """What lung surrounds on a slice of at least two of three directions: thick vessels outside the hilum, disease
    that hangs on them. The diaphragm's dome is surrounded in one, heart and aorta in none (bool).
    """
    votes = np.zeros(lung.shape, np.uint8)
    for axis in range(3):
        in_plane = np.zeros((3, 3, 3), bool)
        centre = tuple(slice(None) if a != axis else 1 for a in range(3))
        in_plane[centre] = ndimage.generate_binary_structure(2, 1)
        parts, count = ndimage.label(~lung, in_plane)
        open_ = np.zeros(count + 1, bool)
        for side in (a for a in range(3) if a != axis):
            for end in (0, -1):
                open_[parts.take(end, side)] = True
        open_[0] = True
        votes += ~open_[parts]
    return votes >= 2


def _dense_disease(
    lungs: np.ndarray,
    number: int,
    hu: np.ndarray,
    airways: np.ndarray,
    hilar: np.ndarray,
    spacing_mm: Spacing,
    ball_mm: float,
) -> np.ndarray:
    """Dense bodies that bulge into one lung: masses and consolidations at the pleura, not heart or diaphragm.

    A body in a hollow of the lung's surface is of the lung where lung covers most of it; heart, aorta and
    dome of the diaphragm show the lung about half of the piece that a ball of `ball_mm` cuts from them, or
    less. Against the ribs a flatter body will do: nothing else lies between a lung and its ribs. The shares
    part masses (.58) and consolidations (.42 with .42 at the ribs) from all else (.53) on nine real scans and
    the phantom.
    """
    hollow = closing(lungs == number, ball_mm, spacing_mm) & (lungs == 0) & (hu < BONE_HU)
    hollow = opening(hollow & ~dilate(airways, 3.0, spacing_mm), 5.0, spacing_mm)
    near_bone = dilate(hu > BONE_HU, 12.0, spacing_mm)
    parts, sizes = components(hollow)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    kept = []
    for part in np.flatnonzero(sizes * voxel_ml > 2):
        body = parts == part
        to_lung = _contact(body, lungs > 0)
        elsewhere = body ^ ndimage.binary_dilation(body)
        elsewhere &= lungs == 0
        share = to_lung / (to_lung + max(1, _contact(body, elsewhere)))
        at_ribs = near_bone[elsewhere].mean() if elsewhere.any() else 0.0
        hilar_share = hilar[body].mean()
        bulges = share > 0.4 and share + 0.4 * at_ribs > 0.55 and hilar_share < 0.7
        if bulges or (share > 0.45 and hilar_share < 0.5 and _holds_bronchi(body, hu, spacing_mm)):
            kept.append(part)
    return np.isin(parts, kept)


def _holds_bronchi(body: np.ndarray, hu: np.ndarray, spacing_mm: Spacing) -> bool:
    """Open bronchi run through consolidated lung, none through heart, vessels and diaphragm."""
    core = erode(body, 4.0, spacing_mm)
    return bool(core.any() and (hu[core] < -200).mean() > 0.01)


def _contact(a: np.ndarray, b: np.ndarray) -> int:
    """Faces that the voxels of two masks share."""
    faces = 0
    for axis in range(3):
        low = tuple(slice(0, -1) if n == axis else slice(None) for n in range(3))
        high = tuple(slice(1, None) if n == axis else slice(None) for n in range(3))
        faces += int(np.count_nonzero(a[low] & b[high]) + np.count_nonzero(a[high] & b[low]))
    return faces
