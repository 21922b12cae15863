"""CT -> what is lung, right and left, and what in it is airway or vessel.

No network and no learned weights unless asked for: air, enclosure, shape. The work is done on an isotropic grid of
about 2 mm; the answer is on the volume's own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from diffseglung.anatomy.airways import add_small_bronchi, find_trachea, grow_airways, oesophageal_gas
from diffseglung.anatomy.full_grid import to_full_grid
from diffseglung.anatomy.lungs import close_over_disease, lung_air, parenchyma_air, split_sides
from diffseglung.anatomy.morphology import bounding_box, dilate
from diffseglung.anatomy.network import lungs_by_network
from diffseglung.anatomy.vessels import find_vessels
from diffseglung.frozen import frozen
from diffseglung.grid import respace
from diffseglung.labels import Structure
from diffseglung.volume import Volume, resample

Watch = Callable[[str], AbstractContextManager[None]]
WAYS = ("shape", "lungmask")


def _unwatched(_: str) -> AbstractContextManager[None]:
    return nullcontext()


class NoLungs(ValueError):
    """The scan shows nothing that could be a lung."""


@frozen
class AnatomyConfig:
    """How the anatomy is looked for. Lengths in mm, volumes in ml.

    `lungs`: by their `shape`, or by the network of the package `lungmask`, where it and its weights are at hand.
    """

    lungs: str = "shape"
    working_mm: float = 2.0
    min_lung_ml: float = 100.0
    closing_mm: float = 10.0
    hilum_mm: float = 25.0
    disease_mm: float = 45.0

    def __post_init__(self) -> None:
        if self.lungs not in WAYS:
            raise ValueError(f"anatomy.lungs is one of {', '.join(WAYS)}, not {self.lungs}")
        if not 1.0 <= self.working_mm <= 4.0:
            raise ValueError(f"anatomy.working_mm must lie between 1 and 4 mm, not {self.working_mm}")
        if self.disease_mm < self.closing_mm:
            raise ValueError(
                f"anatomy.disease_mm must be at least closing_mm ({self.closing_mm}), not {self.disease_mm}"
            )


DEFAULT = AnatomyConfig()


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """What lies where in one scan, on the volume's own grid.

    `labels` uint8 (z, y, x), Structure values; vessels inside the lungs are labelled as vessels.
    `side` uint8 (z, y, x): 1 in the right lung, 2 in the left, their vessels included, 0 elsewhere.
    """

    labels: np.ndarray
    side: np.ndarray
    voxel_ml: float
    notes: tuple[str, ...] = ()

    @property
    def lungs(self) -> np.ndarray:
        """Both lungs with their vessels and their dense disease, without trachea and bronchi (bool)."""
        return self.side > 0

    @property
    def airways(self) -> np.ndarray:
        """The lumen of trachea and bronchi (bool)."""
        return self.labels == Structure.AIRWAY

    @property
    def vessels(self) -> np.ndarray:
        """The vessels inside the lungs and the walls of the bronchi beside them (bool)."""
        return self.labels == Structure.VESSEL

    def within(self, box: tuple[slice, slice, slice]) -> "Anatomy":
        """The part in a box of the grid; nothing is copied."""
        return Anatomy(self.labels[box], self.side[box], self.voxel_ml, self.notes)

    @property
    def right_ml(self) -> float:
        """Volume of the right lung, vessels included."""
        return float(np.count_nonzero(self.side == 1) * self.voxel_ml)

    @property
    def left_ml(self) -> float:
        """Volume of the left lung, vessels included."""
        return float(np.count_nonzero(self.side == 2) * self.voxel_ml)


def find_anatomy(
    volume: Volume,
    config: AnatomyConfig = DEFAULT,
    lungs: np.ndarray | None = None,
    *,
    watch: Watch = _unwatched,
) -> Anatomy:
    """The lungs, right and left, the airways down from the trachea, and the vessels in the lungs.

    `lungs` (nonzero is lung; the volume's shape), if given, is taken as it is and only divided in two. `watch`
    is entered with each stage's name. Raises NoLungs if there is none, NoNetwork if lungmask is asked for and missing.
    """
    if lungs is None and config.lungs == "lungmask":
        with watch("network"):
            lungs = lungs_by_network(volume)
    with watch("resample"):
        work = resample(volume, (config.working_mm,) * 3)
        hu, spacing_mm = work.hu.astype(np.float32), work.spacing_mm
    with watch("airways"):
        air = lung_air(hu, spacing_mm)
        trachea = find_trachea(hu, air, spacing_mm)
        airways = grow_airways(hu, air, trachea, spacing_mm)
        oesophagus = oesophageal_gas(hu, air, trachea, airways, spacing_mm)
        notes = () if airways.any() else ("no trachea found: airways may be counted as lung",)
    with watch("lungs"):
        side = (
            _find_sides(hu, air, airways, oesophagus, spacing_mm, config)
            if lungs is None
            else _given_sides(lungs, volume, work)
        )
    with watch("vessels"):
        box = bounding_box((side > 0) | airways, 10.0, spacing_mm)
        bronchi, vessels = np.zeros(side.shape, bool), np.zeros(side.shape, bool)
        rim_hu = np.zeros(side.shape, np.float32)
        bronchi[box] = add_small_bronchi(hu[box], airways[box], spacing_mm)
        inside = (side[box] > 0) & ~bronchi[box]
        vessels[box], rim_hu[box] = find_vessels(
            hu[box],
            inside,
            airways[box],
            spacing_mm,
            hilum_mm=config.hilum_mm,
            scan_mm=max(volume.spacing_mm),
        )
    with watch("full grid"):
        found = (side, bronchi, vessels, rim_hu)
        labels, full_side = to_full_grid(*found, work.grid, volume.hu, volume.grid, lungs)
    return Anatomy(labels=labels, side=full_side, voxel_ml=volume.grid.voxel_ml, notes=notes)


def _find_sides(
    hu: np.ndarray,
    air: np.ndarray,
    airways: np.ndarray,
    oesophagus: np.ndarray,
    spacing_mm: tuple[float, float, float],
    config: AnatomyConfig,
) -> np.ndarray:
    """1 in the right lung and 2 in the left, on the working grid (uint8)."""
    wall_mm = 1.25 * config.working_mm
    parenchyma = parenchyma_air(
        air & ~dilate(airways | oesophagus, wall_mm, spacing_mm), hu, spacing_mm, min_ml=config.min_lung_ml
    )
    if not parenchyma.any():
        raise NoLungs(
            f"no lung was found: the body holds no {config.min_lung_ml:g} ml of air at a lung's density; "
            "check that this is a chest CT in Hounsfield units, or give a lung mask"
        )
    box = bounding_box(parenchyma, config.closing_mm + 5.0, spacing_mm)
    side = np.zeros(hu.shape, np.uint8)
    side[box] = close_over_disease(
        split_sides(parenchyma[box], spacing_mm),
        hu[box],
        airways[box],
        spacing_mm,
        closing_mm=config.closing_mm,
        hilum_mm=config.hilum_mm,
        disease_mm=config.disease_mm,
    )
    return side


def _given_sides(lungs: np.ndarray, volume: Volume, work: Volume) -> np.ndarray:
    """A given mask on the working grid, divided into right and left."""
    if lungs.shape != volume.shape:
        raise ValueError(f"the lung mask has shape {lungs.shape} (z, y, x), the scan {volume.shape}")
    if not lungs.any():
        raise NoLungs("the given lung mask is empty")
    share = respace(lungs > 0, volume.grid, work.grid)
    return split_sides(share >= min(0.5, share.max()), work.spacing_mm)
