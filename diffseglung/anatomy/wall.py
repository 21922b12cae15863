"""Dense lung against the ribs: consolidation that no ball rolled over the lung's air could take for lung.

Each lung is looked at from its middle, slice by slice, along rays (z, angle): where its air ends, and where the
ribs begin. Between a lung and its ribs lies nothing else but fluid, which `fluid` tells from it, so a place at the
ribs that air does not reach, although air reaches the ribs below it, is diseased lung.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffseglung.anatomy.fluid import without_fluid
from diffseglung.anatomy.morphology import Spacing, components, dilate, opening

BONE_HU = 220
STEP_DEG = 3
REACH_MM = 180.0
RIB_GAP_MM = 14.0  # half of the way from rib to rib
CONTACT_MM = (
    9.0  # air that ends further from the ribs than is usual in this scan, by this, does not touch them
)
# From straight sideways: the front is the heart's, wider on the left, and the back beside the spine the aorta's.
FRONT_DEG, BACK_DEG = {1: 60, 2: 35}, {1: 140, 2: 125}
NOTCH_DEG = 75  # the lung's lower border may be lifted by disease over this much of the wall, no more
OFTEN = 0.35
# One body may lie in pieces; a lobule of liver that the diaphragm's dome lifts to the ribs has 3 ml.
PIECE_ML, APART_MM, MIN_BODY_ML = 2.0, 10.0, 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """One lung seen from its middle. All (z, angle), lengths in mm from the middle; angle 0 is sideways, out.

    `air`: where the lung's air ends; `inner`: where its outermost run of air begins; `wall`: the ribs' inside,
    infinite where there are none.
    """

    air: np.ndarray
    inner: np.ndarray
    wall: np.ndarray


def dense_at_ribs(
    lungs: np.ndarray, number: int, hu: np.ndarray, keep_out: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """Bodies of consolidated lung between the lung `number` (1 right, 2 left) and its ribs, of 5 ml or more (bool).

    `lungs` (uint8) holds the air of both, closed over vessels; `keep_out` what is surely something else.
    """
    lung = lungs == number
    nothing = np.zeros(lung.shape, bool)
    centre = _middle(lung, spacing_mm)
    if centre is None:
        return nothing
    bone = hu > BONE_HU
    rays = _cast(lung, bone, centre, number, spacing_mm)
    start, stop = _hidden(rays, number, spacing_mm)
    if not (stop > start).any():
        return nothing
    radius, angle = _polar(lung.shape, centre, number, spacing_mm)
    z = np.arange(lung.shape[0])[:, None, None]
    body = (radius >= start[z, angle]) & (radius <= stop[z, angle]) & (lungs == 0) & ~bone & ~keep_out
    for _ in range(2):  # what fluid leaves of a body may be a thin rind
        body &= dilate(opening(body, 4.0, spacing_mm), 6.0, spacing_mm)
        body = without_fluid(body, hu, lungs > 0, spacing_mm)
    parts, sizes = components(body)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    body = np.isin(parts, np.flatnonzero(sizes * voxel_ml >= PIECE_ML))
    together, _ = components(dilate(body, APART_MM / 2, spacing_mm))
    ml = np.bincount(together[body], minlength=1) * voxel_ml
    return body & np.isin(together, np.flatnonzero(ml >= MIN_BODY_ML))


def _middle(lung: np.ndarray, spacing_mm: Spacing) -> np.ndarray | None:
    """(y, x) in mm of the straight line through the lung's middle, in each slice; None without 2 slices of lung."""
    area = lung.sum((1, 2)).astype(float)
    used = np.flatnonzero(area * spacing_mm[1] * spacing_mm[2] > 500)
    if used.size < 2:
        return None
    line = []
    for axis in (1, 2):
        places = (np.arange(lung.shape[axis]) * spacing_mm[axis]) @ lung.sum(3 - axis).T
        fit = np.polyfit(used, places[used] / area[used], 1, w=area[used])
        line.append(np.polyval(fit, np.arange(lung.shape[0])))
    return np.stack(line, axis=1)


def _outward(number: int) -> float:
    return -1.0 if number == 1 else 1.0


def _cast(lung: np.ndarray, bone: np.ndarray, centre: np.ndarray, number: int, spacing_mm: Spacing) -> Rays:
    step_mm = min(spacing_mm)
    angles = np.deg2rad(np.arange(-180, 180, STEP_DEG))
    r = np.arange(0.0, REACH_MM, step_mm)
    z = np.arange(lung.shape[0])[:, None, None]
    y = (centre[:, 0, None, None] + r * np.sin(angles)[:, None]) / spacing_mm[1]
    x = (centre[:, 1, None, None] + _outward(number) * r * np.cos(angles)[:, None]) / spacing_mm[2]
    y, x = np.rint(y).astype(np.int32), np.rint(x).astype(np.int32)
    seen = (y >= 0) & (y < lung.shape[1]) & (x >= 0) & (x < lung.shape[2])
    y, x = np.clip(y, 0, lung.shape[1] - 1), np.clip(x, 0, lung.shape[2] - 1)
    on_lung, on_bone = lung[z, y, x] & seen, bone[z, y, x] & seen
    count = len(r)
    last = np.where(on_lung.any(2), count - 1 - on_lung[..., ::-1].argmax(2), 0)
    before_gap = ~on_lung & (np.arange(count) < last[..., None])
    first = np.where(before_gap.any(2), count - before_gap[..., ::-1].argmax(2), 0)
    beyond = on_bone & (np.arange(count) >= last[..., None])
    rib = np.where(beyond.any(2), beyond.argmax(2) * step_mm, np.inf)
    size = (2 * round(RIB_GAP_MM / spacing_mm[0]) + 1, 5)
    wall = ndimage.minimum_filter(rib, size, mode=("nearest", "wrap"))
    return Rays(last * step_mm, first * step_mm, wall)


def _hidden(rays: Rays, number: int, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """From where to where (mm) each ray (z, angle) runs through dense lung; nowhere: start 0 and stop -1."""
    degrees = np.arange(-180, 180, STEP_DEG)  # below 0 is the front
    costal = (degrees >= -FRONT_DEG[number]) & (degrees <= BACK_DEG[number])
    gap = rays.wall - rays.air
    usual = costal & np.isfinite(rays.wall) & (rays.air > 0)
    nowhere = np.zeros_like(gap), np.full_like(gap, -1.0)
    if usual.sum() < 50:
        return nowhere
    usual_mm = float(np.percentile(gap[usual], 30))
    contact = usual & (gap < usual_mm + CONTACT_MM)
    z = np.arange(len(gap))[:, None]
    low = np.where(contact, z, len(gap)).min(0).astype(float)[costal]
    high = np.where(contact, z, -1).max(0).astype(float)[costal]
    size = NOTCH_DEG // STEP_DEG
    border, top = np.full(len(degrees), np.inf), np.full(len(degrees), -np.inf)
    border[costal] = ndimage.grey_opening(low, size, mode="nearest")
    top[costal] = ndimage.grey_closing(high, size, mode="nearest")
    # Where air hardly ever touches the ribs, beside the spine say, its absence is no disease.
    often = contact.sum(0) >= OFTEN * (np.nan_to_num(top, neginf=0) - np.nan_to_num(border, posinf=0))
    hidden = costal & often & np.isfinite(rays.wall) & ~contact & (z >= border) & (z <= top)
    hidden &= ~_past_last_rib(rays.wall)
    hidden = ndimage.binary_opening(hidden, np.ones((3, 3)))
    if not hidden.any():
        return nowhere
    # What lies further in at this height than the lung does to both sides is diaphragm or heart.
    columns = np.arange(len(degrees))
    depth = np.zeros_like(gap)
    for row in np.flatnonzero(hidden.any(1)):
        touching = np.flatnonzero(contact[row])
        if touching.size:
            inner = ndimage.median_filter(rays.inner[row, touching], 5, mode="nearest")
            depth[row] = np.interp(columns, touching, inner)
        else:
            hidden[row] = False
    start = np.maximum(np.maximum(rays.air, depth), rays.wall - 90)
    return np.where(hidden, start, 0.0), np.where(hidden, rays.wall - min(usual_mm, 8.0), -1.0)


def _past_last_rib(wall: np.ndarray) -> np.ndarray:
    """Rays (z, angle) that meet bone again, further back than some that meet none: the spine's processes (bool).

    Each rib runs back to the spine, so beside it no ray to the back misses the ribs. Below the last one the wall is
    muscle, and what the lung's middle sees beyond it are processes of the vertebrae, which no lung lies on.
    """
    back = np.arange(-180, 180, STEP_DEG) >= 90
    bone = np.isfinite(wall) & back
    met = np.maximum.accumulate(bone, axis=1)
    return bone & np.maximum.accumulate(met & ~bone & back, axis=1)


def _polar(
    shape: tuple[int, ...], centre: np.ndarray, number: int, spacing_mm: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """Of each voxel: how far from the lung's middle (mm), and the number of the ray that it lies on."""
    y = (np.arange(shape[1]) * spacing_mm[1] - centre[:, :1])[:, :, None].astype(np.float32)
    x = _outward(number) * (np.arange(shape[2]) * spacing_mm[2] - centre[:, 1:])[:, None, :]
    angle = np.rint((np.rad2deg(np.arctan2(y, x.astype(np.float32))) + 180) / STEP_DEG).astype(np.int32)
    return np.hypot(y, x.astype(np.float32)), angle % (360 // STEP_DEG)
