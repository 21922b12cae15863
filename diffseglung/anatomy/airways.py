"""The trachea and the bronchi that a CT shows: grown from the trachea, stopped before they spill into lung.

HU float32, masks bool, all (z, y, x) on an isotropic grid of about 2 mm.
"""

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import Spacing, bounding_box, components, dilate, distance_mm, opening

LUMEN_HU = (-850, -750, -650)  # thick slices blur the trachea's air with its wall
AREA_MM2 = (50.0, 1200.0)  # from a child's trachea to tracheobronchomegaly
LEAK_ML = 150.0  # what one step adds beyond this is lung; up to it, it may be a cavity
SMALL_MM = 6.0
WALL_HU = (-650, -600, -550, -500, -450, -400)  # of small bronchi, blurred; the last only bronchi have
TWIG_MM2 = 10.0  # volume over length: of twigs in 48 phantoms eight tenths are bronchi, of lumps a fifth
WIDE_MM = 8.0  # half the width that no bronchus reaches, whatever the trachea's
MIN_TUBE_MM = 20.0  # of trachea and oesophagus
# Lung is one with the lung around it; the oesophagus's wall, thinner than a voxel, is denser than this all the same.
WALLED_HU = -800
AS_EMPTY_HU = 60.0  # above the trachea's gas: half of the way to healthy lung
BEHIND_MM, MIN_BEHIND = 4.0, 0.8  # of its gas lies behind the trachea or so far beside that
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def find_trachea(hu: np.ndarray, air: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The longest upright tube of air with a dense wall, perhaps with a bronchus; empty if there is none."""
    for lumen_hu in LUMEN_HU:
        tube = _longest(_discs(hu, air & (hu < lumen_hu), spacing_mm), spacing_mm)
        if tube.any():
            break
    return tube


def _discs(hu: np.ndarray, lumen: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Round patches of air in single axial slices that soft tissue surrounds (bool)."""
    patches, count = ndimage.label(lumen, IN_PLANE)
    area_mm2 = np.bincount(patches.ravel(), minlength=count + 1) * spacing_mm[1] * spacing_mm[2]
    found = np.zeros(hu.shape, bool)
    for number, (z, y, x) in enumerate(ndimage.find_objects(patches), start=1):
        height, width = (y.stop - y.start) * spacing_mm[1], (x.stop - x.start) * spacing_mm[2]
        round_enough = (
            max(height, width) < 2.5 * min(height, width) and area_mm2[number] > 0.5 * height * width
        )
        if not (AREA_MM2[0] <= area_mm2[number] <= AREA_MM2[1] and round_enough):
            continue
        wide = z.start, slice(max(0, y.start - 2), y.stop + 2), slice(max(0, x.start - 2), x.stop + 2)
        disc = patches[wide] == number
        wall = ndimage.binary_dilation(disc, iterations=2) & ~disc
        if (hu[wide][wall] > -600).mean() > 0.55:
            found[wide] |= disc
    return found


def _longest(discs: np.ndarray, spacing_mm: Spacing, *, min_mm: float = MIN_TUBE_MM) -> np.ndarray:
    """The connected pile of discs with the largest length times width, at least `min_mm` long (bool)."""
    parts, sizes = components(discs)
    best, best_score = -1, 0.0
    for number, box in enumerate(ndimage.find_objects(parts)[:20], start=1):
        length_mm = (box[0].stop - box[0].start) * spacing_mm[0]
        score = length_mm * np.sqrt(sizes[number])
        if length_mm >= min_mm and score > best_score:
            best, best_score = number, score
    return parts == best


def grow_airways(hu: np.ndarray, air: np.ndarray, trachea: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """What joins the trachea under the highest threshold that does not yet spill into the lung (bool).

    The threshold rises in steps; a bronchus adds a few ml, a leak adds a lung at once ("explosion control",
    Mori et al., ICPR 1996). A cavity that opens into a bronchus is cut off, and the rest grows on.
    """
    grown = trachea
    if not trachea.any():
        return grown
    voxel_ml = float(np.prod(spacing_mm)) / 1000

    def too_much(joined: np.ndarray) -> bool:
        return bool(joined.sum() * voxel_ml > 1.25 * grown.sum() * voxel_ml + 4)

    for threshold_hu in range(-960, -600, 10):
        parts, _ = components((air & (hu < threshold_hu)) | trachea)
        joined = np.isin(parts, np.unique(parts[trachea]))
        if (joined.sum() - grown.sum()) * voxel_ml > LEAK_ML:
            break
        joined = _without_caverns(joined, trachea, spacing_mm) if too_much(joined) else joined
        if too_much(joined):
            break
        grown = joined
    return _without_caverns(grown, trachea, spacing_mm)


def oesophageal_gas(
    hu: np.ndarray, air: np.ndarray, trachea: np.ndarray, airways: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """Gas in the oesophagus: an upright tube behind the trachea, as empty as that, walled off from the lung (bool).

    Between the two lungs that wall is so thin that its gas joins theirs below -400 HU. A recess of the lung behind the
    trachea is fuller and joins the rest of the lung, and a bulla lies in lung, not behind the trachea alone.
    """
    found = np.zeros(air.shape, bool)
    if not trachea.any():
        return found
    box = bounding_box(trachea, 40.0, spacing_mm)  # so wide that lung in it is not behind the trachea alone
    empty_hu = float(np.median(hu[trachea])) + AS_EMPTY_HU
    behind = dilate(np.maximum.accumulate(trachea[box], axis=1), BEHIND_MM, spacing_mm)
    blurred = dilate(airways[box], 2.5, spacing_mm)  # the airways with their rim, which is as light
    parts, sizes = components(air[box] & (hu[box] < WALLED_HU) & ~blurred)
    share = np.bincount(parts[behind], minlength=len(sizes)) / np.maximum(sizes, 1)
    for number in np.flatnonzero(share >= MIN_BEHIND):
        gas = parts == number
        if np.count_nonzero(gas.any((1, 2))) * spacing_mm[0] < MIN_TUBE_MM:
            continue
        if np.median(hu[box][gas]) < empty_hu:
            found[box] |= gas
    return found


def _without_caverns(airways: np.ndarray, trachea: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The airways without what is wider than the trachea: a bronchus, dilated too, is not; cavities and bullae are.

    What hangs behind a cavity goes with it (bool).
    """
    box = bounding_box(airways, 6.0, spacing_mm)
    tube = airways[box]
    widest_mm = max(WIDE_MM, 1.1 * float(distance_mm(~trachea[box], spacing_mm).max()))
    wide = opening(tube, widest_mm, spacing_mm) & ~dilate(trachea[box], 4.0, spacing_mm)
    if not wide.any():
        return airways
    parts, _ = components(tube & ~dilate(wide, 4.0, spacing_mm))
    kept = np.zeros_like(airways)
    kept[box] = np.isin(parts, np.unique(parts[trachea[box] & (parts > 0)]))
    return kept


def add_small_bronchi(
    hu: np.ndarray, airways: np.ndarray, spacing_mm: Spacing, *, contrast_hu: float = 120.0
) -> np.ndarray:
    """The airways and the bronchi of up to 6 mm across that join them, by their walls (bool).

    A small bronchus is as dark as the lung around it, blurred, but on some slice a wall goes all round: closing
    the slice in grey values fills its lumen to the height of the wall, and leaves emphysema, which has none, and
    bullae, which are wider, as they are (after Fetita et al., IEEE TMI 2004). Lung between vessels or septa is walled
    in too, but joins in lumps: what is no twig is looked at again behind denser walls, up to some that only bronchi
    have.
    """
    size = [2 * round((SMALL_MM / mm - 1) / 2) + 1 for mm in spacing_mm]
    if not airways.any() or max(spacing_mm) > SMALL_MM / 2.4:
        return airways  # on a coarser grid a wall and the lumen beside it are one voxel
    flat = np.minimum(hu, 0)
    wall_hu = np.full(hu.shape, -np.inf, np.float32)
    for axis in range(3):
        closed = ndimage.grey_closing(flat, [1 if a == axis else size[a] for a in range(3)])
        np.maximum(wall_hu, closed, out=wall_hu, where=closed - flat > contrast_hu)
    found, open_ = airways.copy(), hu < WALL_HU[0]
    for least_hu in WALL_HU:
        parts, _ = components(airways | (open_ & (wall_hu > least_hu)), connectivity=26)
        joined = np.isin(parts, np.unique(parts[airways])) & ~airways
        twigs = joined if least_hu == WALL_HU[-1] else _twigs(joined, spacing_mm)
        found |= twigs
        open_ = joined & ~twigs
    return found


def _twigs(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The parts of a mask (26 neighbours) that are thin for their length (bool)."""
    parts, sizes = components(mask, connectivity=26)
    thin = np.zeros(len(sizes), bool)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        length_mm = np.linalg.norm([(b.stop - b.start) * mm for b, mm in zip(box, spacing_mm, strict=True)])
        thin[number] = sizes[number] * np.prod(spacing_mm) <= TWIG_MM2 * length_mm
    return thin[parts]
