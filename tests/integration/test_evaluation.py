"""Evaluation scores every mode of a model and every baseline on the same cases."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from made_jobs import call_job

from diffseglung.baselines import BASELINES
from diffseglung.calibration import Calibration
from diffseglung.mixture import MODES
from diffseglung.schemas import SCORES


def test_models_and_baselines_are_scored_on_the_same_cases(cohort: Path, model: Path, tmp_path: Path) -> None:
    words = ("--cohort", cohort, "--model", model, "--out", "out", "--max-failed", "0.5")
    words += ("--set", "resources.workers=1")
    ended = call_job("evaluate", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert scores.schema.names == SCORES.names
    methods = set(scores["method"].to_pylist())
    assert set(BASELINES) < methods
    assert len(methods) == len(BASELINES) + len(MODES)
    for method in methods:
        rows = [row for row in scores.to_pylist() if row["method"] == method]
        assert {row["case_id"] for row in rows} == {"phantom-0000", "phantom-0001"}
        healthy = [row["dice"] for row in rows if row["tissue"] == "healthy"]
        assert min(healthy) > 0.3, f"{method} does not even find healthy lung"
    assert str(model) in (tmp_path / "out" / "scores.md").read_text()
    assert "phantom-0000" in (tmp_path / "out" / "report.html").read_text()
    [parts] = json.loads((tmp_path / "out" / "calibration.json").read_text()).values()
    believed = {part: Calibration.from_dict(plain) for part, plain in parts.items()}
    assert 1000 < believed["diseased"].voxels.sum() < believed["lung"].voxels.sum()
    assert 0 < believed["lung"].error < 0.5
    assert "what is called diseased" in (tmp_path / "out" / "scores.md").read_text()
    assert "reliability" in (tmp_path / "out" / "report.html").read_text()
