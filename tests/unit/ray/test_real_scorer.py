"""A real scan goes through the same actor as one with a truth, and is measured by what is known of it."""

import json
from pathlib import Path

from made_model import SMALL

from diffseglung.baselines import BASELINES
from diffseglung.phantom import make_phantom
from diffseglung.real import find_known
from diffseglung.volume import Volume, write_volume
from diffseglung_ray.cases import Attempts, on_its_way
from diffseglung_ray.cluster import Workers
from diffseglung_ray.cohort import Case
from diffseglung_ray.evaluation import RealScorer
from diffseglung_ray.storage import Store


def test_every_baseline_is_measured_on_a_scan_without_a_truth(tmp_path: Path) -> None:
    phantom = make_phantom(3, SMALL, healthy=True)
    image = tmp_path / "normal-x.nii.gz"
    write_volume(image, Volume.from_array(phantom.hu, phantom.spacing_mm, phantom.affine))
    known = {one.case_id: one for one in find_known(tmp_path)}
    store = Store.at(str(tmp_path / "out"))
    scorer = RealScorer({}, store, Attempts(store, "run"), Workers(1, 1, 0.0, None), known)
    case = Case(case_id="normal-x", image=str(image))
    (row,) = scorer({name: [value] for name, value in on_its_way(case).items()}).to_pylist()
    assert row["status"] == "ok", row["reason"]
    measured = json.loads(row["scores"])
    assert [(one["method"], one["measure"]) for one in measured] == [(m, "diseased_pct") for m in BASELINES]
    shares = {one["method"]: one["value"] for one in measured}
    assert shares["median_ground_glass"] < shares["hu_thresholds"] < 60
    assert shares["hu_thresholds"] > 0
