"""What a tissue looks like in physical terms, and how likely each is for a small cell of lung.

A cell (8 mm) is described by its surroundings (a 16 mm window) without the vessels that are known: five HU
percentiles, and how much of a mesh they form. Each tissue has a prototype in those terms; no annotation is involved.
"""

from enum import Enum
from typing import NamedTuple

import numpy as np

from diffseglung.frozen import frozen
from diffseglung.labels import TISSUES, Tissue

# The columns of a cell's evidence, in this order everywhere.
PERCENTILES = ("p10_hu", "p25_hu", "p50_hu", "p75_hu", "p90_hu")
EVIDENCE = (*PERCENTILES, "log_mesh", "lung_fraction")

# Where the mode of a healthy lung may lie: above what a deep breath leaves, so that emphysema is not taken for it.
MODE_HU = (-905, -650)

DEEP_BREATH_HU = -860.0  # the mode of healthy lung after a deep breath, for which absolute HU are given

VESSEL = 7  # a class beyond the tissues: vessel or airway wall
CONFLUENT = 8  # another: emphysema with no lung left in it
PATCHY = 9  # another: patches of soft tissue in healthy lung, each voxel the one or the other
PART_OF: dict[int, tuple[Tissue, ...]] = {  # what they are called at the end, in equal parts
    VESSEL: (Tissue.HEALTHY,),
    CONFLUENT: (Tissue.EMPHYSEMA,),
    PATCHY: (Tissue.HEALTHY, Tissue.CONSOLIDATION),
}


class Counted(Enum):
    """What a tissue's HU are counted from."""

    ABSOLUTE = "water and air: fluid, what is solid"
    LUNG = "the scan's own lung mode: parenchyma"
    DENSER_LUNG = "absolute, but as much above as the lung is denser than after a deep breath: holes among it"

    def shift_hu(self, mode_hu: np.ndarray) -> np.ndarray:
        """What a scan's lung mode (n,) adds to them."""
        if self is Counted.ABSOLUTE:
            return np.zeros_like(mode_hu)
        return mode_hu if self is Counted.LUNG else np.maximum(mode_hu - DEEP_BREATH_HU, 0)


class Prototype(NamedTuple):
    """Mean and spread of a tissue's percentiles (HU) and of its mesh (log of `teacher.hollow`, beside the lung's)."""

    counted: Counted
    hu: tuple[float, float, float, float, float]
    spread_hu: tuple[float, float, float, float, float]
    mesh: float
    mesh_spread: float
    prior: float
    source: str


_TRIAL = "fitted by hand on digital phantoms that no score uses"
PROTOTYPES: dict[int, Prototype] = {
    Tissue.HEALTHY: Prototype(
        Counted.LUNG, (-45, -25, 0, 45, 140), (35, 35, 45, 100, 140), 0.0, 0.3, 0.3,
        "definition of the lung mode; vessels give the upper tail",
    ),
    Tissue.EMPHYSEMA: Prototype(
        Counted.DENSER_LUNG, (-985, -960, -910, -840, -720), (25, 35, 60, 70, 150), 0.4, 0.35, 0.2,
        "LAA-950: holes below -950 HU among what is left of the lung (Gevenois 1996); prior: validation phantoms",
    ),
    Tissue.GROUND_GLASS: Prototype(
        Counted.ABSOLUTE, (-780, -710, -630, -545, -455), (80, 90, 100, 130, 170), 0.05, 0.35, 0.1,
        "-750 to -300 HU, vessels stay visible (Fleischner glossary, Hansell 2008); " + _TRIAL,
    ),
    Tissue.FIBROSIS: Prototype(
        Counted.ABSOLUTE, (-840, -750, -610, -490, -400), (70, 90, 100, 120, 140), 1.1, 0.3, 0.1,
        "honeycomb: air cysts of -900 HU between walls of -300 HU (Hansell 2008); " + _TRIAL,
    ),
    Tissue.CONSOLIDATION: Prototype(
        Counted.ABSOLUTE, (-400, -200, -10, 25, 60), (300, 250, 120, 60, 60), 0.4, 0.5, 0.1,
        "soft tissue that hides vessels; air bronchograms give the lower tail (Hansell 2008)",
    ),
    CONFLUENT: Prototype(
        Counted.DENSER_LUNG, (-990, -977, -962, -945, -915), (25, 18, 16, 20, 45), 0.0, 0.35, 0.02,
        "destroyed lung that has run together: half of it and more below -950 HU (Gevenois 1996); see docs/log.md",
    ),
    VESSEL: Prototype(
        Counted.LUNG, (-40, -15, 25, 190, 480), (45, 45, 60, 180, 235), 0.55, 0.4, 0.1,
        "lung pierced by a vessel or an airway wall that the anatomy missed; prior: as above; " + _TRIAL,
    ),
    PATCHY: Prototype(
        Counted.LUNG, (0, 50, 160, 340, 540), (50, 60, 100, 150, 200), 0.55, 0.4, 0.04,
        "bronchopneumonia, tree-in-bud: soft tissue thicker than a honeycomb's walls fills some tenths of aerated lung "
        "(Hansell 2008); by one real scan, see docs/log.md",
    ),
}  # fmt: skip
ANCHORED: tuple[int, ...] = tuple(PROTOTYPES)  # cavity has no prototype: it is a question of enclosure


@frozen
class TissueConfig:
    """How firmly physics speaks."""

    temperature: float = 1.0  # above 1 where the six numbers of a cell should count for less than six
    scan_relative: bool = True  # False: the lung mode is taken to be -860 HU in every scan

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"tissue.temperature {self.temperature} must be above 0")


class Reference(NamedTuple):
    """What is normal in this scan; for cells of several scans, one number per cell (n,)."""

    mode_hu: float | np.ndarray
    log_mesh: float | np.ndarray


def scan_reference(evidence: np.ndarray, config: TissueConfig) -> Reference:
    """The scan's own lung mode (HU) and mesh, from its cells.

    `evidence` is (n, 7) in the order of `EVIDENCE`. The mode is that of the cells' medians within `MODE_HU`, smoothed
    over 30 HU; the mesh is the median of the cells near that mode.
    """
    known = evidence[np.isfinite(evidence).all(axis=1)]
    median_hu, mesh = known[:, 2], known[:, 5]
    if not config.scan_relative or not len(known):
        return Reference(DEEP_BREATH_HU, float(np.median(mesh)) if len(known) else 0.0)
    edges = np.arange(MODE_HU[0], MODE_HU[1] + 5, 5)
    counts = np.histogram(median_hu, edges)[0].astype(float)
    if not counts.any():
        return Reference(DEEP_BREATH_HU, float(np.median(mesh)))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 3) ** 2)
    mode = float(edges[np.convolve(counts, kernel, mode="same").argmax()] + 2.5)
    near = np.abs(median_hu - mode) < 40
    return Reference(mode, float(np.median(mesh[near] if near.any() else mesh)))


def prior() -> np.ndarray:
    """Prior (8,) of the anchored classes, summing to one."""
    p = np.array([PROTOTYPES[k].prior for k in ANCHORED])
    return p / p.sum()


def anchor_log_likelihood(evidence: np.ndarray, reference: Reference, config: TissueConfig) -> np.ndarray:
    """Log-likelihood (n, 8) of each anchored class for cells (n, 7), up to a constant per cell.

    Diagonal Gaussians around the prototypes, tempered; unknown cells (NaN) come out flat.
    """
    known = np.isfinite(evidence).all(axis=1)
    cells = np.where(known[:, None], evidence, 0).astype(np.float64)
    out = np.empty((len(cells), len(ANCHORED)))
    for column, tissue in enumerate(ANCHORED):
        p = PROTOTYPES[tissue]
        hu = np.array(p.hu) + p.counted.shift_hu(np.atleast_1d(reference.mode_hu))[:, None]
        z = (cells[:, :5] - hu) / np.array(p.spread_hu)
        mesh = (cells[:, 5] - reference.log_mesh - p.mesh) / p.mesh_spread
        scale = np.log(p.spread_hu).sum() + np.log(p.mesh_spread)
        out[:, column] = -(0.5 * (z**2).sum(axis=1) + 0.5 * mesh**2 + scale) / config.temperature
    return np.where(known[:, None], out, 0.0)


def to_tissues(posterior: np.ndarray) -> np.ndarray:
    """Anchored posterior (..., 8) over the six tissues (..., 6): `PART_OF` says what counts as what; cavity is 0."""
    out = np.zeros((*posterior.shape[:-1], len(TISSUES)), dtype=np.float32)
    for column, kind in enumerate(ANCHORED):
        parts = PART_OF.get(kind, (kind,))
        for tissue in parts:
            out[..., tissue - 1] += posterior[..., column] / len(parts)
    return out


def of_tissues(posterior: np.ndarray) -> np.ndarray:
    """The other way: six tissues (..., 6), of which cavity is left out, as an anchored posterior (..., 8)."""
    out = np.zeros((*posterior.shape[:-1], len(ANCHORED)), dtype=np.float32)
    for column, kind in enumerate(ANCHORED):
        if kind in TISSUES:
            out[..., column] = posterior[..., kind - 1]
    return out


# HU bands of the published recipe; ground glass lies above healthy lung (the authors' code has them crossed).
HU_BANDS: dict[Tissue, tuple[float, float]] = {
    Tissue.EMPHYSEMA: (-1100, -925),
    Tissue.HEALTHY: (-925, -750),
    Tissue.GROUND_GLASS: (-750, -500),
    Tissue.FIBROSIS: (-500, -200),
    Tissue.CONSOLIDATION: (-200, 500),
}


def name_by_hu(mean_hu: np.ndarray) -> list[Tissue]:
    """The tissue in whose HU band each cluster's mean lies (paper, section 3.4)."""
    names = []
    for hu in np.clip(mean_hu, -1099, 499):
        names.append(next(t for t, (low, high) in HU_BANDS.items() if low <= hu < high))
    return names


class Density(NamedTuple):
    """Mean and spread of a tissue's single voxels (HU)."""

    counted: Counted
    hu: float
    spread_hu: float


# With them upsampled posteriors are leaned on; wide where a tissue is mixed.
VOXEL_HU: dict[Tissue, Density] = {
    Tissue.HEALTHY: Density(Counted.LUNG, 10, 90),
    Tissue.EMPHYSEMA: Density(Counted.ABSOLUTE, -930, 80),
    Tissue.GROUND_GLASS: Density(Counted.ABSOLUTE, -600, 130),
    Tissue.FIBROSIS: Density(Counted.ABSOLUTE, -550, 280),
    Tissue.CONSOLIDATION: Density(Counted.ABSOLUTE, -10, 110),
    Tissue.CAVITY: Density(Counted.ABSOLUTE, -500, 500),
}


def voxel_densities(mode_hu: float | np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Mean, in the shape of the lung's mode, and spread of every tissue's voxels (HU), in the order of `TISSUES`."""
    each = (VOXEL_HU[tissue] for tissue in TISSUES)
    return [(d.hu + d.counted.shift_hu(np.asarray(mode_hu)), d.spread_hu) for d in each]
