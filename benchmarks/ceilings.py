"""How far each stage lets a score rise: with the truth in the place of what comes before it. None is label-free."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from chain import Seen
from looked import key_of, table
from ways import LABELLED, Labeller, Lessons, Way, observed

from diffseglung.cells import Cells
from diffseglung.labels import TISSUES, Tissue
from diffseglung.prepare import cell_tissues
from diffseglung.segment import decide, judged


def ceiling_ways(lessons: Lessons) -> Iterator[Way]:
    """The truth cut to the lungs that we find; the true tissue of each cell, and of the cavities too."""
    own = key_of(Path(__file__).read_text(encoding="utf-8"))
    yield Way(f"{LABELLED}truth, cut to our lungs", 0, f"lungs {own}", lambda _: within_our_lungs)
    for title, cavities in (("true cells", False), ("true cells and cavities", True)):
        make = told(lessons, cavities=cavities)
        yield Way(f"{LABELLED}{title}", 0, f"{title} {own}", lambda _, make=make: make)


def within_our_lungs(seen: Seen) -> np.ndarray:
    """All that a perfect judge of what lies in our lungs could get."""
    lungs = seen.anatomy.lungs
    return np.where(lungs, np.maximum(seen.truth, Tissue.HEALTHY), 0).astype(np.uint8)


def told(lessons: Lessons, *, cavities: bool) -> Labeller:
    """Ours from the cells on, each told the tissue that fills more than half of it; the prototypes judge the rest."""

    def label(seen: Seen) -> np.ndarray:
        model = lessons.learned(lessons.bench.config)[1]
        patches, scan = model.config.patches, observed(seen)

        def named(lattice: Cells, features: np.ndarray) -> np.ndarray:
            inside = lattice.inside
            cells = table(lattice, features, model.config, inside)
            between = lattice is seen.between
            tissue = cell_tissues(seen.truth, seen.volume, seen.scan, patches, between=between)[inside]
            posterior = model.mixture.posterior(cells, "rule")
            posterior[tissue > 0] = np.eye(len(TISSUES))[tissue[tissue > 0] - 1]
            return lattice.laid_out(posterior)

        if cavities:
            scan = scan.with_other_cavities((seen.truth == Tissue.CAVITY) & seen.anatomy.lungs)
        return decide(scan, model, posteriors=judged(scan, named, patches.cell_vox)).labels

    return label
