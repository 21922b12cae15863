"""What is known of one CT before a network sees it: its anatomy, its cavities, and the physics of every cell."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Self

import numpy as np

from diffseglung.anatomy import Anatomy, find_anatomy
from diffseglung.cavity import find_cavities
from diffseglung.cells import Cells, describe_cells, evident_voxels
from diffseglung.config import Config
from diffseglung.patches import Scan, on_scan, to_scan
from diffseglung.volume import Volume


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One scan without a network.

    `cavities` is bool on the volume's canonical grid. On the lung box of the recipe's grid lie `scan`, `enclosed` (the
    cavities again), the `evident` voxels (bool), `cells` and, if they were asked for, those `between` them.
    """

    volume: Volume
    anatomy: Anatomy
    scan: Scan
    cavities: np.ndarray
    enclosed: np.ndarray
    evident: np.ndarray
    cells: Cells
    between: Cells | None

    def with_other_cavities(self, cavities: np.ndarray) -> Self:
        """The same scan with these instead (bool, on the volume's grid); its cells stay as they were described."""
        return replace(self, cavities=cavities, enclosed=on_scan(cavities, self.volume, self.scan))

    def with_features(self, features: np.ndarray, watch: Stopwatch | None = None) -> "Observation":
        """And what a student sees: (c, z, y, x)."""
        known = {part.name: getattr(self, part.name) for part in fields(Look)}
        return Observation(**known, features=features, watch=watch or Stopwatch())


@dataclass(frozen=True, slots=True, eq=False)
class Observation(Look):
    """All that is known of a scan before anything is decided: what every mode of the mixture shares."""

    features: np.ndarray
    watch: Stopwatch


def look(
    volume: Volume,
    config: Config,
    lungs: np.ndarray | None = None,
    *,
    between: bool = True,
    watch: Callable[[str], AbstractContextManager[None]] | None = None,
) -> Look:
    """Lungs, airways and vessels, the lung box, what dense tissue encloses in it, and the evidence of each cell.

    To decide, the cells `between` are looked at too; to learn, the others will do. `lungs` is a given mask on the
    volume's grid, used as it is. Raises ValueError, in words, where the scan holds none.
    """
    watch = watch or Stopwatch()
    with watch("anatomy"):
        anatomy = find_anatomy(volume, config.anatomy, lungs)
        scan = to_scan(volume, anatomy, config.patches, config.student.stride_vox)
    with watch("cavities"):
        cavities = find_cavities(volume.hu, anatomy.lungs, anatomy.airways, volume.spacing_mm, config.cavity)
        enclosed = on_scan(cavities, volume, scan)
    with watch("cells"):
        evident = evident_voxels(scan, config.patches, enclosed)
        known = scan.hu, evident, config.patches, config.teacher
        cells = describe_cells(*known)
        others = describe_cells(*known, between=True) if between else None
    return Look(volume, anatomy, scan, cavities, enclosed, evident, cells, others)
