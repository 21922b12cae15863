"""Cavities: air that dense tissue encloses. No cluster finds them, for their air looks like emphysema."""

from collections.abc import Iterator

import cc3d
import numpy as np
from scipy import ndimage

from diffseglung.anatomy.morphology import bounding_box, dilate, distance_mm, opening
from diffseglung.filters import eroded_by_box, smoothed_below
from diffseglung.frozen import frozen
from diffseglung.refine import lung_box

FACES = ndimage.generate_binary_structure(3, 1)

Box = tuple[slice, slice, slice]
Spacing = tuple[float, float, float]


@frozen
class CavityConfig:
    """What counts as enclosed (METHOD.md, "Cavity"); the sizes are those of the Fleischner glossary's cavities."""

    air_hu: tuple[float, ...] = (
        -850.0,
        -750.0,
        -650.0,
    )  # lumen: smoothed density below one of these; a small lumen's air is mixed with its wall
    smooth_mm: float = 1.0  # standard deviation of the Gaussian before that
    darker_hu: float = 70.0  # so far below the lung's median lies a lumen's air: what is shut in may be lung
    darkest_hu: float = -985.0  # no lumen need be darker, however dark its lung
    dark: float = 0.1  # share of a lumen that is
    dense_hu: float = -300.0  # shell and wall: density above this
    shell: float = 0.65  # share of the lumen's surface that must be dense; a bulla among walls has up to .6
    own: float = 0.3  # share of it whose dense wall is lung: ribs and heart shut in the tip of a healthy one
    reach_mm: float = 3.0  # how far the smoothed air may lie inside the lumen's true border
    joined: float = 0.03  # share of the lumen's surface above which it belongs to the airway tree
    neck_mm: float = 1.0  # leaks narrower than twice this do not join the lumen to the lung
    wall_mm: float = 8.0  # dense tissue this close to the lumen is its wall; thin walls end of themselves
    fluid_mm: float = 30.0  # how far fluid and debris may fill it; 0 takes the wall alone
    vessel_mm: float = 3.0  # what hangs on to it and is narrower than twice this is no part of it
    air_share: float = 0.12  # of air in it all, below which it is a hole in a consolidation: the wall alone
    round: float = 0.2  # of it all, its largest inscribed sphere: less where it runs on into a consolidation
    min_ml: float = 0.5  # of lumen: a sphere of 10 mm
    small_ml: float = 1.0  # a lumen of less may be a honeycomb's cyst, in fibrosis or open to others:
    small_shell: float = 0.9  # share of its surface that must be dense
    max_ml: float = 500.0
    compact: float = 0.17  # of the lumen's volume, its largest inscribed sphere: a bronchus is a long tube

    def __post_init__(self) -> None:
        if not self.air_hu or max(self.air_hu) >= self.dense_hu:
            raise ValueError(
                f"cavity.air_hu {self.air_hu} must be one or more numbers below cavity.dense_hu {self.dense_hu}"
            )
        for name in ("shell", "own", "small_shell", "compact", "air_share", "round", "dark"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"cavity.{name} {getattr(self, name)} is a share, 0 to 1")
        for name in ("smooth_mm", "reach_mm", "neck_mm", "wall_mm", "fluid_mm", "vessel_mm", "small_ml"):
            if getattr(self, name) < 0:
                raise ValueError(f"cavity.{name} {getattr(self, name)} must not be below 0")
        if not 0 < self.min_ml < self.max_ml:
            raise ValueError(f"cavity.min_ml {self.min_ml} must lie between 0 and max_ml {self.max_ml}")


def find_cavities(
    hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing, config: CavityConfig
) -> np.ndarray:
    """Mark every hole in dense lung tissue, with its wall; bullae, emphysema and bronchi stay out.

    hu, lungs, airways: (z, y, x), density in HU and masks. Returns a bool mask (z, y, x): lumen, what fills a part
    of it, and wall, inside the lungs. Bodies of air are judged one at a time in their own box, so memory stays that
    of a few masks.
    """
    found = np.zeros(hu.shape, dtype=bool)
    box = lung_box(lungs)
    if box is None:
        return found
    hu, airways = hu[box], np.asarray(airways[box], dtype=bool)
    inside = np.asarray(lungs[box], dtype=bool) & ~airways
    if not inside.any():
        return found
    dark_hu = max(float(np.median(hu[inside])) - config.darker_hu, config.darkest_hu)
    sigma_vox, levels = [config.smooth_mm / mm for mm in spacing_mm], sorted({dark_hu, *config.air_hu})
    below = smoothed_below(hu, sigma_vox, levels, inside)
    dark = below >= len(levels) - levels.index(dark_hu)
    for air_hu in config.air_hu:
        air = below >= len(levels) - levels.index(air_hu)
        for core, near in _cores(air, spacing_mm, config):
            if dark[near][core].mean() < config.dark:
                continue
            lumen = _fill(core, air_hu, hu[near], inside[near], spacing_mm, config)
            if _is_cavity(lumen, hu[near], inside[near], airways[near], spacing_mm, config):
                found[box][near] |= _with_wall(lumen, hu[near], inside[near], spacing_mm, config)
    return found


def _is_cavity(
    lumen: np.ndarray,
    hu: np.ndarray,
    inside: np.ndarray,
    airways: np.ndarray,
    spacing_mm: Spacing,
    config: CavityConfig,
) -> bool:
    """Whether a body of air is large enough, compact, apart from the airways and enclosed, in part by lung."""
    lumen_ml = lumen.sum() * np.prod(spacing_mm) / 1000
    if not config.min_ml <= lumen_ml <= config.max_ml:
        return False
    around = bounding_box(lumen, 2 * max(spacing_mm), spacing_mm)
    alone = lumen[around]
    if sphere_share(alone, spacing_mm) < config.compact:
        return False
    if joined_share(alone, airways[around]) > config.joined:
        return False
    dense = hu[around] > config.dense_hu
    if enclosed_share(alone, dense) < (config.shell if lumen_ml >= config.small_ml else config.small_shell):
        return False
    return enclosed_share(alone, dense & inside[around]) >= config.own


def enclosed_share(lumen: np.ndarray, dense: np.ndarray) -> float:
    """Share of a lumen's shell (the voxels that touch it) that is dense or touches dense tissue, 0 to 1.

    lumen, dense: bool (z, y, x). A shell voxel may mix air and wall, hence "touches": by a face, not by a distance,
    which in thick slices would reach over many voxels of lung to the next vessel.
    """
    shell = _shell(lumen)
    if not (dense.any() and shell.any()):
        return 0.0
    return float(ndimage.binary_dilation(dense, FACES)[shell].mean())


def joined_share(lumen: np.ndarray, airways: np.ndarray) -> float:
    """Share of a lumen's shell that is airway, 0 to 1: a bronchus that drains a cavity is a small part of it."""
    shell = _shell(lumen)
    return float(airways[shell].mean()) if shell.any() else 0.0


def sphere_share(body: np.ndarray, spacing_mm: Spacing) -> float:
    """Share of a body's volume that its largest inscribed sphere takes, 0 (a tube) to 1 (a ball)."""
    radius_mm = float(distance_mm(~np.pad(body, 1), spacing_mm).max())
    return float(min(1.0, 4 / 3 * np.pi * radius_mm**3 / (body.sum() * np.prod(spacing_mm))))


def _shell(lumen: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(lumen, FACES) & ~lumen


def _cores(air: np.ndarray, spacing_mm: Spacing, config: CavityConfig) -> Iterator[tuple[np.ndarray, Box]]:
    """The inside of each body of air of a cavity's size, in a box with room for the wall, and that box.

    Necks are cut by eroding the air; what is left is grown back, within the air, by as much.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    width = [2 * round(config.neck_mm / mm) + 1 for mm in spacing_mm]
    labels = cc3d.connected_components(eroded_by_box(air, width), connectivity=6)
    stats = cc3d.statistics(labels, no_slice_conversion=False)
    room_mm = max(config.wall_mm, config.fluid_mm) + max(config.reach_mm, *spacing_mm) + config.neck_mm
    for label in range(1, int(labels.max()) + 1):
        # An eroded core is never larger than its lumen, and rarely less than a twentieth of it.
        if not config.min_ml / 20 <= stats["voxel_counts"][label] * voxel_ml <= config.max_ml:
            continue
        # In a box that the grown core fits, then in one with room for the wall.
        grown = _widened(stats["bounding_boxes"][label], config.neck_mm, spacing_mm, air.shape)
        core = (labels[grown] == label).view(np.uint8)
        body = ndimage.maximum_filter(core, width, mode="constant").view(bool) & air[grown]
        near = _widened(stats["bounding_boxes"][label], room_mm, spacing_mm, air.shape)
        room = [(g.start - n.start, n.stop - g.stop) for g, n in zip(grown, near, strict=True)]
        yield np.pad(body, room), near


def _widened(box: Box, margin_mm: float, spacing_mm: Spacing, shape: tuple[int, ...]) -> Box:
    """A box with a margin, as far as the array goes."""
    z, y, x = (
        slice(max(0, s.start - margin), min(size, s.stop + margin))
        for s, margin, size in zip(
            box, (int(np.ceil(margin_mm / mm)) + 1 for mm in spacing_mm), shape, strict=True
        )
    )
    return z, y, x


def _fill(
    core: np.ndarray,
    air_hu: float,
    hu: np.ndarray,
    inside: np.ndarray,
    spacing_mm: Spacing,
    config: CavityConfig,
) -> np.ndarray:
    """The lumen: its core, out to where density is halfway to the wall's but no further than `reach_mm`."""
    halfway_hu = (air_hu + config.dense_hu) / 2
    near = dilate(core, max(config.reach_mm, *spacing_mm), spacing_mm)
    return _joined_to(core, core | (inside & near & (hu < halfway_hu)))


def _with_wall(
    lumen: np.ndarray, hu: np.ndarray, inside: np.ndarray, spacing_mm: Spacing, config: CavityConfig
) -> np.ndarray:
    """The lumen, the mixed voxels around it, and the dense tissue that hangs on to them: its wall and its fluid.

    Fluid under a level, or debris, may lie further from the air than any wall. It is told from a consolidation around
    the cavity by air enough and a shape round enough for it all, and from vessels by its width.
    """
    dense = inside & (hu > config.dense_hu)
    rim = inside & dilate(lumen, min(spacing_mm), spacing_mm)
    near = dense & dilate(lumen, max(config.wall_mm, *spacing_mm), spacing_mm)
    whole = _joined_to(lumen, lumen | rim | near)
    if config.fluid_mm > config.wall_mm:
        wide = opening(dense | whole, config.vessel_mm, spacing_mm)
        filled = _joined_to(lumen, whole | (wide & dilate(lumen, config.fluid_mm, spacing_mm)))
        airy = lumen.sum() >= config.air_share * filled.sum()
        if airy and sphere_share(filled, spacing_mm) >= config.round:
            return filled
    return whole


def _joined_to(seed: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The pieces of `mask` that hold a voxel of `seed`."""
    pieces = cc3d.connected_components(mask, connectivity=6)
    return np.isin(pieces, np.unique(pieces[seed]))
