"""Preparing, segmenting and evaluating as programs: what they leave, what they say, and how they end."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diffseglung.baselines import BASELINES
from diffseglung.mixture import MODES
from diffseglung.schemas import SCORES

Job = Callable[..., subprocess.CompletedProcess[str]]


def only_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "name", ["phantom", "prepare", "train", "tune", "segment", "evaluate", "generate", "demo"]
)
def test_help_shows_examples(name: str, call_job: Job) -> None:
    ended = call_job(name, "--help")
    assert ended.returncode == 0
    assert f"python jobs/{name}.py --" in ended.stdout


WRONG = [
    ("prepare", ["--cohort", "none.csv", "--workspace", "w"], "there is no cohort at none.csv"),
    ("prepare", ["--cohort", "."], "--workspace"),
    ("prepare", ["--cohort", ".", "--workspace", "w"], "holds no scan"),
    ("prepare", ["--cohort", ".", "--workspace", "w", "--set", "train.lrr=1"], "did you mean train.lr?"),
    ("segment", ["--cohort", "COHORT", "--model", "no-model", "--out", "o"], "no model"),
    ("segment", ["--cohort", "COHORT", "--model", "models:/nobody@home", "--out", "o"], "nobody"),
    ("segment", ["--cohort", "COHORT", "--model", "m", "--out", "o", "--max-failed", "7"], "fraction"),
    ("evaluate", ["--cohort", ".", "--out", "o"], "holds no scan"),
    ("train", ["--workspace", "nowhere"], "run jobs/prepare.py"),
    ("train", ["--workspace", "w", "--set", "train.batch=0"], "train.batch 0"),
    ("tune", ["--workspace", "nowhere", "--trials", "0"], "--trials 0"),
    ("generate", ["--model", "nowhere", "--out", "o"], "no model folder at nowhere"),
    ("generate", ["--model", "models:/diffseglung@best", "--out", "o"], "no model 'diffseglung'"),
    ("generate", ["--model", "MODEL", "--out", "o", "--workspace", "nowhere"], "run jobs/prepare.py"),
]


@pytest.mark.parametrize(("name", "words", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_ends_2_with_one_line(
    name: str, words: list[str], said: str, cohort: Path, model: Path, call_job: Job, tmp_path: Path
) -> None:
    real = {"COHORT": str(cohort), "MODEL": str(model)}
    ended = call_job(name, *(real.get(word, word) for word in words))
    assert ended.returncode == 2
    assert said in only_line(ended.stderr)
    assert ended.stdout == ""
    assert not {"w", "o"} & {path.name for path in tmp_path.iterdir()}


def test_in_a_submitted_job_what_would_vanish_is_refused(cohort: Path, call_job: Job, tmp_path: Path) -> None:
    submitted = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    ended = call_job("prepare", "--cohort", cohort, "--workspace", "w", **submitted)
    assert ended.returncode == 2
    assert "--workspace w is a relative path" in only_line(ended.stderr)
    words = ["--cohort", cohort, "--model", "models:/diffseglung@champion", "--out", tmp_path / "o"]
    ended = call_job("segment", *words, **submitted)
    assert ended.returncode == 2
    assert "needs MLFLOW_TRACKING_URI" in only_line(ended.stderr)


def test_a_program_of_its_own_says_its_one_line_too(run_job: Job) -> None:
    ended = run_job("segment", "--cohort", ".", "--model", "no-model", "--out", "o")
    assert ended.returncode == 2
    assert "holds no scan" in only_line(ended.stderr)


def test_prepare_then_the_same_again(cohort: Path, run_job: Job, tmp_path: Path) -> None:
    words = ["--cohort", cohort, "--workspace", "work", "--recipe", "smoke", "--max-failed", "0.5"]
    ended = run_job("prepare", *words)
    assert ended.returncode == 0, ended.stderr
    assert "2 of 3 cases prepared" in ended.stdout
    assert "failed: broken: " in ended.stdout
    assert (tmp_path / "work" / "manifest.json").exists()
    again = run_job("prepare", *words[:-2])
    assert again.returncode == 1
    assert "1 of 3 cases failed, more than --max-failed 0.1" in again.stderr
    assert "Traceback" not in again.stderr
    assert set(pq.read_table(tmp_path / "work" / "cases.parquet")["status"].to_pylist()) == {
        "failed",
        "skipped",
    }


def test_segment_says_little_and_leaves_everything(
    cohort: Path, model: Path, run_job: Job, tmp_path: Path
) -> None:
    ended = run_job("segment", "--cohort", cohort, "--model", model, "--out", "out", "--max-failed", "0.5")
    assert ended.returncode == 0, ended.stderr
    assert "2 of 3 cases segmented" in ended.stdout
    assert [line for line in ended.stderr.splitlines() if not line.startswith("segment: ")] == []
    assert {"cases", "report.html", "results.csv", "results.parquet"} == {
        p.name for p in (tmp_path / "out").iterdir()
    }


def test_evaluate_scores_models_and_baselines_on_the_same_cases(
    cohort: Path, model: Path, run_job: Job, tmp_path: Path
) -> None:
    ended = run_job("evaluate", "--cohort", cohort, "--model", model, "--out", "out", "--max-failed", "0.5")
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
