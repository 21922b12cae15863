"""What a job says before it has begun: its help, and one line where an argument is wrong."""

from pathlib import Path

import pytest
from made_jobs import call_job


def only_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "name", ["phantom", "prepare", "train", "tune", "segment", "evaluate", "generate", "demo"]
)
def test_help_shows_examples(name: str, tmp_path: Path) -> None:
    ended = call_job(name, "--help", cwd=tmp_path)
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
    ("evaluate", ["--real", ".", "--out", "o"], "holds no scan of which anything is known"),
    ("evaluate", ["--real", ".", "--cohort", ".", "--out", "o"], "not allowed with argument --real"),
    ("train", ["--workspace", "nowhere"], "run jobs/prepare.py"),
    ("train", ["--workspace", "w", "--set", "train.batch=0"], "train.batch 0"),
    ("tune", ["--workspace", "nowhere", "--trials", "0"], "--trials 0"),
    ("phantom", ["--out", "o", "--into", "none.nii.gz"], "--into none.nii.gz: there is no scan"),
    ("generate", ["--model", "nowhere", "--out", "o"], "no model folder at nowhere"),
    ("generate", ["--model", "models:/diffseglung@best", "--out", "o"], "no model 'diffseglung'"),
    ("generate", ["--model", "MODEL", "--out", "o", "--workspace", "nowhere"], "run jobs/prepare.py"),
]


@pytest.mark.parametrize(("name", "words", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_ends_2_with_one_line(
    name: str, words: list[str], said: str, cohort: Path, model: Path, tmp_path: Path
) -> None:
    real = {"COHORT": str(cohort), "MODEL": str(model)}
    ended = call_job(name, *(real.get(word, word) for word in words), cwd=tmp_path)
    assert ended.returncode == 2
    assert said in only_line(ended.stderr)
    assert ended.stdout == ""
    assert not {"w", "o"} & {path.name for path in tmp_path.iterdir()}


def test_in_a_submitted_job_what_would_vanish_is_refused(cohort: Path, tmp_path: Path) -> None:
    submitted = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    ended = call_job("prepare", "--cohort", cohort, "--workspace", "w", cwd=tmp_path, **submitted)
    assert ended.returncode == 2
    assert "--workspace w is a relative path" in only_line(ended.stderr)
    words = ["--cohort", cohort, "--model", "models:/diffseglung@champion", "--out", tmp_path / "o"]
    ended = call_job("segment", *words, cwd=tmp_path, **submitted)
    assert ended.returncode == 2
    assert "needs MLFLOW_TRACKING_URI" in only_line(ended.stderr)
