"""A prepared workspace of two phantoms, made once for all integration tests."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from diffseglung_ray.config import load_config
from diffseglung_ray.preparation import prepare


@cache
def made_workspace(cohort: Path) -> Path:
    """Prepared with recipe `smoke`; the cohort's broken file is a failed row in it."""
    place = Path(mkdtemp(dir=cohort.parent.parent, prefix="workspace-"))
    prepare(str(cohort), str(place), load_config("smoke"), max_failed=0.5)
    return place
