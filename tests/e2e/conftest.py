"""Jobs are run as a user runs them: as programs of their own, each with a small Ray of its own."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_model import make_cohort, make_model

ROOT = Path(__file__).parents[2]
SMALL = [
    "--set",
    "resources.local_cpus=2",
    "--set",
    "resources.workers=2",
    "--set",
    "resources.object_store_mb=200",
]
Job = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_job(tmp_path: Path) -> Job:
    """`run_job("segment", "--out", ...)` from an empty folder."""

    def run(name: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, words), *SMALL]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        return subprocess.run(
            command, cwd=tmp_path, env=clean | env, capture_output=True, text=True, timeout=280, check=False
        )

    return run


@pytest.fixture
def call_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Job:
    """As `run_job`, inside this process: for what ends before Ray starts, where a new program mostly imports."""

    def call(name: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "jobs" / f"{name}.py")
        monkeypatch.chdir(tmp_path)
        for key in [key for key in os.environ if key.startswith(("RAY_", "MLFLOW_"))]:
            monkeypatch.delenv(key)
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        said = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of two phantoms and one broken file."""
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model."""
    return make_model(
        cohort.parent / "images" / "phantom-0000.nii.gz", tmp_path_factory.mktemp("model") / "m"
    )
