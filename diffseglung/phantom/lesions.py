"""Five diseases painted into a lung, digital or real, each with the look that tells it from the others.

Emphysema, honeycomb cysts and cavities share the HU of air; fibrosis and ground glass share a mean HU. What
sets them apart is texture, place and enclosure, as on a real CT.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..labels import DISEASES, Tissue
from .fields import Frame, Spacing, both, cover, path, ramp, smooth_noise, tubes
from .trees import grow

Box = tuple[slice, slice, slice]
WATER_HU, CYST_HU = 30.0, -950.0
LUMEN_ML = 0.5  # of air, with less of which nobody would speak of a cavity


@dataclass(slots=True)
class Canvas:
    """A lung under the brush: HU float32 and truth change, the rest is where the brush may go."""

    hu: np.ndarray
    truth: np.ndarray
    lungs: np.ndarray
    paintable: np.ndarray
    kept: np.ndarray
    pleura_mm: np.ndarray
    frame: Frame
    lung_hu: float
    noise_hu: float

    @classmethod
    def over(
        cls,
        hu: np.ndarray,
        lungs: np.ndarray,
        spacing_mm: Spacing,
        *,
        airways: np.ndarray | None = None,
        vessels: np.ndarray | None = None,
        noise_hu: float = 0.0,
    ) -> "Canvas":
        """A canvas over HU (z, y, x) and a lung mask; vessels and airways, where known, stay as they are."""
        hu = hu.astype(np.float32)
        lung_hu = float(np.median(hu[lungs])) if lungs.any() else -850.0
        rim = ndimage.binary_dilation(lungs) & ~lungs & (hu > -700)
        kept = np.zeros_like(lungs)
        for keep in (airways, vessels):
            if keep is not None:
                kept |= keep
        return cls(
            hu=hu,
            truth=np.where(lungs, Tissue.HEALTHY, Tissue.BACKGROUND).astype(np.uint8),
            lungs=lungs,
            paintable=lungs | rim,
            kept=kept,
            pleura_mm=ndimage.distance_transform_edt(lungs, sampling=spacing_mm).astype(np.float32),
            frame=Frame(hu.shape, spacing_mm),
            lung_hu=lung_hu,
            noise_hu=noise_hu,
        )

    def aerated(self, box: Box) -> np.ndarray:
        """The share of a voxel that is aerated lung: 1 in parenchyma, 0 in a vessel, between at its edge."""
        return np.clip((WATER_HU - self.hu[box]) / (WATER_HU - self.lung_hu), 0, 1)

    def infiltrate(self, box: Box, share: np.ndarray, target_hu: np.ndarray | float) -> None:
        """Changes aerated lung towards a density; vessels in it stay, and so does the scan's own grain."""
        amount = share * self.aerated(box) * (self.paintable[box] & ~self.kept[box])
        self.hu[box] = np.maximum(self.hu[box] + amount * (target_hu - self.lung_hu), -1024)

    def replace(
        self, rng: np.random.Generator, box: Box, share: np.ndarray, target_hu: np.ndarray | float
    ) -> None:
        """Puts other tissue in the place of lung, vessels and all."""
        rim = ~self.lungs[box]
        amount = share * self.paintable[box] * np.where(rim, self.aerated(box), 1)
        grain = self.noise_hu * rng.standard_normal(amount.shape, dtype=np.float32) if self.noise_hu else 0
        self.hu[box] += amount * (target_hu + grain - self.hu[box])

    def label(self, box: Box, mask: np.ndarray, tissue: Tissue) -> None:
        self.truth[box][mask & self.lungs[box]] = tissue

    def place(self, rng: np.random.Generator, preference: np.ndarray) -> np.ndarray:
        """A lung voxel (z, y, x) drawn with the given preference (z, y, x), 0 or more."""
        weight = np.cumsum((preference * self.lungs).ravel(), dtype=np.float64)
        if weight[-1] <= 0:
            weight = np.cumsum(self.lungs.ravel(), dtype=np.float64)
        flat = np.searchsorted(weight, rng.random() * weight[-1], side="right")
        return np.array(np.unravel_index(min(flat, weight.size - 1), self.lungs.shape))

    def height(self) -> np.ndarray:
        """0 at the base of the lungs, 1 at the apex; broadcasts over the volume."""
        return self._along(0)

    def depth_back(self) -> np.ndarray:
        """0 at the front of the lungs, 1 at the back; broadcasts over the volume."""
        return self._along(1)

    def _along(self, axis: int) -> np.ndarray:
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(self.lungs.any(axis=others))
        first, last = (used[0], used[-1]) if len(used) else (0, 1)
        t = np.clip((np.arange(self.lungs.shape[axis]) - first) / max(last - first, 1), 0, 1).astype(
            np.float32
        )
        return t.reshape([-1 if a == axis else 1 for a in range(3)])


# ---- the five diseases


def paint_emphysema(rng: np.random.Generator, canvas: Canvas) -> None:
    """Centrilobular holes without walls, crowded in the upper lobes, and now and then a bulla."""
    hole_mm = rng.uniform(6, 10)
    pixel_mm = canvas.frame.pixel_mm
    for _ in range(rng.integers(4, 9)):
        centre = canvas.place(rng, np.exp(2.5 * canvas.height()) * np.ones_like(canvas.pleura_mm))
        box, depth_mm = _blob(rng, canvas, centre, rng.uniform(16, 36), ragged=0.3, margin_mm=4)
        crowding = 2.4 - 2.9 * ramp(depth_mm, -4, 12)
        holes = cover((smooth_noise(rng, _within(canvas, box), hole_mm) - crowding) * hole_mm / 3, pixel_mm)
        holes *= cover(depth_mm, 4.0)
        air_hu = rng.uniform(-975, -940)
        canvas.infiltrate(box, holes, air_hu)
        crowd = ndimage.gaussian_filter(holes, [3.0 / mm for mm in canvas.frame.spacing_mm])
        canvas.label(box, (crowd > 0.3) | (holes > 0.5), Tissue.EMPHYSEMA)
    for _ in range(rng.integers(0, 4)):
        near = (canvas.pleura_mm < 8) * np.exp(3 * canvas.height())
        box, depth_mm = _blob(
            rng, canvas, canvas.place(rng, near), rng.uniform(6, 17), ragged=0.12, margin_mm=3
        )
        canvas.replace(rng, box, cover(depth_mm, pixel_mm), -680.0)
        canvas.replace(rng, box, cover(depth_mm - 0.9, pixel_mm), rng.uniform(-995, -965))
        canvas.label(box, depth_mm > 0, Tissue.EMPHYSEMA)


def paint_ground_glass(rng: np.random.Generator, canvas: Canvas) -> None:
    """Hazy, soft-edged clouds, mostly at the back and near the pleura; vessels are seen through them."""
    density = rng.uniform(-700, -570) + 35 * smooth_noise(rng, canvas.frame, 12.0)
    paved = rng.random() < 0.3
    haze = np.zeros_like(canvas.hu)
    for _ in range(rng.integers(3, 8)):
        nearby = np.exp(-canvas.pleura_mm / 15) * np.exp(1.5 * canvas.depth_back() - canvas.height())
        box, depth_mm = _blob(
            rng, canvas, canvas.place(rng, nearby), rng.uniform(12, 30), ragged=0.35, margin_mm=8
        )
        depth_mm = _true_outside(canvas, box, depth_mm)
        soft_mm = rng.uniform(3, 7)
        haze[box] = np.maximum(haze[box], ramp(depth_mm, -soft_mm, soft_mm))
        if paved:
            density[box] += (
                110 * _walls(rng, _within(canvas, box), haze[box] > 0, pitch_mm=10.0, wall_mm=1.3)[0]
            )
    everywhere = (slice(None),) * 3
    canvas.infiltrate(everywhere, haze, density)
    canvas.label(everywhere, haze > 0.5, Tissue.GROUND_GLASS)


def paint_fibrosis(rng: np.random.Generator, canvas: Canvas) -> None:
    """A honeycomb under the pleura, at the bases and the back: cysts of air in layers, walls between."""
    pitch_mm = max(rng.uniform(7.0, 10.5), 3.6 * canvas.frame.pixel_mm)
    band_mm = rng.uniform(14, 26)
    for _ in range(rng.integers(4, 8)):
        low = np.exp(-canvas.pleura_mm / 6) * np.exp(2.2 * canvas.depth_back() - 2.6 * canvas.height())
        box, depth_mm = _blob(
            rng, canvas, canvas.place(rng, low), rng.uniform(22, 42), ragged=0.3, margin_mm=6
        )
        frame = _within(canvas, box)
        uneven = 1 + 0.3 * smooth_noise(rng, frame, 20.0)
        depth_mm = both(depth_mm, band_mm * uneven - canvas.pleura_mm[box], 4.0)
        depth_mm = _true_outside(canvas, box, depth_mm)
        walls, cell = _walls(rng, frame, depth_mm > -2, pitch_mm, wall_mm=rng.uniform(1.2, 1.9))
        solid = (cell < 0.15) * 0.6
        web = np.maximum(walls, solid)
        texture = CYST_HU + web * (rng.uniform(-260, -140) - CYST_HU)
        canvas.infiltrate(box, 0.35 * ramp(depth_mm, -6, 2), -600.0)
        canvas.replace(rng, box, cover(depth_mm, 3.0), texture)
        canvas.label(box, depth_mm > 0, Tissue.FIBROSIS)


def paint_consolidation(rng: np.random.Generator, canvas: Canvas) -> None:
    """Lung as dense as muscle, wide against the pleura, its bronchi left open as black branches."""
    for _ in range(rng.integers(1, 4)):
        nearby = np.exp(-canvas.pleura_mm / 5) * np.exp(1.5 * canvas.depth_back() - 1.5 * canvas.height())
        centre = canvas.place(rng, nearby)
        radius_mm = rng.uniform(18, 38)
        box, depth_mm = _blob(rng, canvas, centre, radius_mm, ragged=0.35, margin_mm=8)
        frame = _within(canvas, box)
        depth_mm = _true_outside(canvas, box, depth_mm + 1.6 * smooth_noise(rng, frame, 7.0))
        canvas.infiltrate(box, 0.3 * ramp(depth_mm, -7, 1), -350.0)
        filled = cover(depth_mm, rng.uniform(2.5, 5.0))
        canvas.infiltrate(box, filled, rng.uniform(10, 45) + 8 * smooth_noise(rng, frame, 10.0))
        canvas.replace(rng, box, _bronchogram(rng, canvas, box, depth_mm) * filled, -960.0)
        canvas.label(box, depth_mm > 0, Tissue.CONSOLIDATION)


def paint_cavity(rng: np.random.Generator, canvas: Canvas) -> None:
    """A hole of air in a thick, uneven wall, often dirty: a fluid level, debris, a strand across."""
    pixel_mm = canvas.frame.pixel_mm
    for _ in range(rng.integers(1, 4)):
        radius_mm = rng.uniform(11, 24)
        deep = (canvas.pleura_mm > 0.4 * radius_mm) * np.exp(1.5 * canvas.height())
        box, depth_mm = _blob(rng, canvas, canvas.place(rng, deep), radius_mm, ragged=0.2, margin_mm=7)
        frame = _within(canvas, box)
        depth_mm = _true_outside(canvas, box, depth_mm)
        thick_mm = np.maximum(rng.uniform(3.0, 7.0) * (1 + 0.45 * smooth_noise(rng, frame, 12.0)), 2.0)
        lumen_mm = both(depth_mm - thick_mm, depth_mm - 2.5, 2.0)
        canvas.infiltrate(box, 0.25 * ramp(depth_mm, -7, 0), -400.0)
        canvas.replace(
            rng,
            box,
            cover(depth_mm, pixel_mm + 0.8),
            rng.uniform(15, 60) + 10 * smooth_noise(rng, frame, 9.0),
        )
        air = cover(_clean(rng, frame, lumen_mm), pixel_mm)
        canvas.replace(rng, box, air, rng.uniform(-995, -915))
        # Squeezed by the pleura or another lesion it may be all wall: then it is none.
        lumen_ml = (air * canvas.lungs[box]).sum() * np.prod(canvas.frame.spacing_mm) / 1000
        canvas.label(box, depth_mm > 0, Tissue.CAVITY if lumen_ml > LUMEN_ML else Tissue.CONSOLIDATION)


PAINTERS: dict[Tissue, Callable[[np.random.Generator, Canvas], None]] = {
    Tissue.EMPHYSEMA: paint_emphysema,
    Tissue.GROUND_GLASS: paint_ground_glass,
    Tissue.FIBROSIS: paint_fibrosis,
    Tissue.CONSOLIDATION: paint_consolidation,
    Tissue.CAVITY: paint_cavity,
}


def paint_diseases(canvas: Canvas, seed: int, kinds: tuple[Tissue, ...]) -> None:
    """Paints the given diseases in a fixed order, each from its own random stream."""
    for tissue in DISEASES:
        if tissue in kinds:
            PAINTERS[tissue](np.random.default_rng([seed, int(tissue)]), canvas)


def insert_lesions(
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing_mm: Spacing,
    seed: int,
    *,
    vessels: np.ndarray | None = None,
    kinds: tuple[Tissue, ...] = DISEASES,
) -> tuple[np.ndarray, np.ndarray]:
    """The same diseases inside a real scan, blurred and grained as the scan is, with the truth known.

    hu int16 and lungs (z, y, x), canonical; any grid. Vessels, where given, shine through unchanged. Returns
    new hu int16 and truth uint8 (`Tissue`). Raises ValueError where shapes disagree or there is no lung.
    """
    if hu.shape != lungs.shape:
        raise ValueError(
            f"lungs {lungs.shape} and scan {hu.shape} are not on one grid: resample the mask first"
        )
    if not np.any(lungs):
        raise ValueError("the lung mask is empty: there is nowhere to put a lesion")
    box = _around(np.asarray(lungs, bool), margin=4)
    inside = np.ascontiguousarray(np.asarray(lungs, bool)[box])
    before = hu[box].astype(np.float32)
    kept = None if vessels is None else np.asarray(vessels, bool)[box]
    canvas = Canvas.over(before, inside, spacing_mm, vessels=kept, noise_hu=_grain_hu(before, inside))
    paint_diseases(canvas, seed, kinds)
    change = ndimage.gaussian_filter(canvas.hu - before, 0.6, truncate=3.0)
    change[np.abs(change) < 0.5] = 0
    painted, truth = hu.astype(np.int16, copy=True), np.zeros(hu.shape, np.uint8)
    painted[box] = np.clip(np.rint(before + change), -1024, 3071).astype(np.int16)
    truth[box] = canvas.truth
    return painted, truth


# ---- shapes of lesions


def _blob(
    rng: np.random.Generator,
    canvas: Canvas,
    centre: np.ndarray,
    radius_mm: float,
    *,
    ragged: float,
    margin_mm: float,
) -> tuple[Box, np.ndarray]:
    """A ragged, lopsided ball: the box around it, and the depth inside it in mm (z, y, x of the box)."""
    stretch = rng.uniform(0.8, 1.25, 3)
    reach = np.ceil((radius_mm * 1.25 * (1 + 1.5 * ragged) + margin_mm) / np.array(canvas.frame.spacing_mm))
    low = np.maximum(centre - reach, 0).astype(int)
    high = np.minimum(centre + reach + 1, canvas.lungs.shape).astype(int)
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    away2 = sum(
        ((np.arange(low[a], high[a]) - centre[a]) * canvas.frame.spacing_mm[a] / stretch[a]).reshape(
            [-1 if i == a else 1 for i in range(3)]
        )
        ** 2
        for a in range(3)
    )
    relief = np.clip(smooth_noise(rng, _within(canvas, box), 0.9 * radius_mm), -1.5, 1.5)
    return box, (radius_mm * (1 + ragged * relief) - np.sqrt(away2)).astype(np.float32)


def _true_outside(canvas: Canvas, box: Box, depth_mm: np.ndarray) -> np.ndarray:
    """The same depth, but outside the lesion never less than the true distance to it, give or take a voxel.

    A ragged outline makes the depth fall slowly in places, where a soft edge would reach far into healthy lung.
    """
    core = (depth_mm > 0) & canvas.lungs[box]
    if not core.any():
        return np.full_like(depth_mm, -np.inf)
    away_mm = ndimage.distance_transform_edt(~core, sampling=canvas.frame.spacing_mm)
    return np.where(core, depth_mm, np.minimum(depth_mm, 2 * canvas.frame.pixel_mm - away_mm)).astype(
        np.float32
    )


def _within(canvas: Canvas, box: Box) -> Frame:
    depth, height, width = (side.stop - side.start for side in box)
    return Frame((depth, height, width), canvas.frame.spacing_mm)


def _around(mask: np.ndarray, margin: int) -> Box:
    z, y, x = (np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    sides = [slice(max(int(used[0]) - margin, 0), int(used[-1]) + margin + 1) for used in (z, y, x)]
    return sides[0], sides[1], sides[2]


def _walls(
    rng: np.random.Generator, frame: Frame, where: np.ndarray, pitch_mm: float, wall_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Walls between the cells of a jittered foam: share of each voxel, and a random number for each cell.

    A wall lies where the nearest and the second-nearest of the scattered cell centres are equally far
    (Worley, SIGGRAPH 1996).
    """
    counts = np.ceil(frame.extent_mm / pitch_mm).astype(int) + 2
    lattice = np.stack(np.meshgrid(*[np.arange(n) for n in counts], indexing="ij"), -1).reshape(-1, 3)
    centres = (lattice - 1 + rng.uniform(-0.42, 0.42, lattice.shape)) * pitch_mm
    index = np.argwhere(where)
    share, cell = np.zeros(frame.shape, np.float32), np.ones(frame.shape, np.float32)
    if len(index):
        distance_mm, nearest = cKDTree(centres).query(index * np.array(frame.spacing_mm), k=2)
        share[where] = cover((wall_mm - (distance_mm[:, 1] - distance_mm[:, 0])) / 2, frame.pixel_mm)
        share[where] *= min(1.0, 1.4 * wall_mm / frame.pixel_mm)
        cell[where] = rng.random(len(centres), dtype=np.float32)[nearest[:, 0]]
    return share, cell


def _bronchogram(rng: np.random.Generator, canvas: Canvas, box: Box, depth_mm: np.ndarray) -> np.ndarray:
    """Open bronchi that enter from the middle of the lung and branch towards the pleura; voxel shares."""
    frame = _within(canvas, box)
    inside = np.argwhere((depth_mm > 2) & canvas.lungs[box])
    if len(inside) < 30:
        return np.zeros(frame.shape, np.float32)
    deepest = inside[np.argmax(canvas.pleura_mm[box][tuple(inside.T)])]
    tips = inside[rng.choice(len(inside), 14, replace=False)]
    tree = grow(rng, frame.to_mm(deepest), frame.to_mm(tips))
    radii_mm = tree.radii_mm(rng.uniform(0.9, 1.2), most_mm=2.6)
    return tubes(frame, tree.start_mm, tree.end_mm, np.stack([radii_mm, radii_mm], 1))


def _clean(rng: np.random.Generator, frame: Frame, lumen_mm: np.ndarray) -> np.ndarray:
    """What fluid, debris and strands leave of a cavity's lumen (depth in mm)."""
    y_mm = frame.axis_mm(1)
    air_mm = lumen_mm
    if rng.random() < 0.45:
        # The patient lies on the back: fluid fills the posterior part, under a level surface.
        air_mm = np.minimum(air_mm, rng.uniform(0.0, 0.5) * max(float(lumen_mm.max()), 1.0) - y_mm)
    for _ in range(rng.integers(0, 4)):
        edge = np.argwhere(np.abs(lumen_mm) < frame.pixel_mm)
        if len(edge):
            at = frame.to_mm(edge[rng.integers(len(edge))])
            away2 = sum((frame.axis_mm(a) - at[a]) ** 2 for a in range(3))
            air_mm = np.minimum(air_mm, np.sqrt(away2) - rng.uniform(2.5, 5.0))
    if rng.random() < 0.3:
        reach_mm = float(lumen_mm.max()) + 4
        ends = [tuple(rng.normal(0, reach_mm, 3)) for _ in range(2)]
        air_mm = np.minimum(air_mm, 2.0 - 6.0 * path(frame, ends, 1.4))
    # Without air it would be a mass: then the cavity stays clean.
    return air_mm if (air_mm > 0).sum() > 0.35 * (lumen_mm > 0).sum() else lumen_mm


def _grain_hu(hu: np.ndarray, lungs: np.ndarray) -> float:
    """The scan's noise: the robust spread of differences between neighbours in quiet lung."""
    step = np.diff(hu, axis=2)[lungs[:, :, 1:] & lungs[:, :, :-1]]
    return float(1.4826 * np.median(np.abs(step)) / np.sqrt(2)) if step.size else 0.0
