"""A digital chest whose diseases are known by construction, and the same diseases for a real scan.

    phantom = make_phantom(seed=7)
    write_cohort("cohort", cases=8, seed=1)
    hu, truth = insert_lesions(scan_hu, lungs, spacing_mm, seed=3)

The scan is drawn in parts: `chest` (a healthy patient), `lesions` (five diseases), `scanner` (what the
machine adds). It is hard for HU alone, and holds what is not disease but looks like it: thick vessels at the
hila, density that sinks to the back, bronchial walls, fissures, the moving edge of heart and diaphragm.
"""

from .cohort import Row, case_kinds, case_seed, write_case, write_cohort, write_manifest
from .effusion import Effusion
from .insertion import write_inserted
from .lesions import insert_lesions
from .make import Phantom, PhantomConfig, make_phantom

__all__ = [
    "Effusion",
    "Phantom",
    "PhantomConfig",
    "Row",
    "case_kinds",
    "case_seed",
    "insert_lesions",
    "make_phantom",
    "write_case",
    "write_cohort",
    "write_inserted",
    "write_manifest",
]
