"""Evaluation scores every mode of a model and every baseline on the same cases."""

from pathlib import Path

import pyarrow.parquet as pq
from made_jobs import call_job

from diffseglung.baselines import BASELINES
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
