"""The jobs as a user runs them: train, tune, generate, each a process of its own that starts its own Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pyarrow.parquet as pq
import pytest
from made_model import make_cohort

from diffseglung.config import recipe
from diffseglung.schemas import patches_schema

pytestmark = pytest.mark.timeout(900)  # each job starts a Ray of its own

JOBS = Path(__file__).parents[2] / "jobs"
SMALL = ("--recipe", "smoke", "--set", "resources.local_cpus=2", "--set", "resources.object_store_mb=200")


def run(job: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, str(JOBS / f"{job}.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a prepared workspace `work`."""
    folder = tmp_path_factory.mktemp("home")
    make_cohort(folder / "cohort")
    done = run(
        "prepare",
        "--cohort",
        "cohort/manifest.csv",
        "--workspace",
        "work",
        "--max-failed",
        "0.5",
        *SMALL,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    done = run("train", "--workspace", "work", *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "models:/diffseglung/1 is now models:/diffseglung@candidate"
    return home


def test_train_leaves_its_runs_and_models_beside_the_workspace(trained: Path) -> None:
    assert (trained / "mlflow.db").is_file()
    assert list((trained / "mlartifacts" / "models").rglob("student.safetensors"))
    schema = pq.read_schema(next((trained / "work" / "patches").glob("part-*.parquet")))
    assert schema.names == patches_schema(recipe("smoke").patches, recipe("smoke").student).names


def test_generate_draws_patches_and_measures_them(trained: Path) -> None:
    arguments = (
        "--model",
        "models:/diffseglung@candidate",
        "--out",
        "made",
        "--count",
        "3",
        "--workspace",
        "work",
    )
    done = run("generate", *arguments, *SMALL[2:], cwd=trained)
    assert done.returncode == 0, done.stderr
    samples = sorted((trained / "made" / "samples").iterdir())
    assert [p.name for p in samples] == [f"sample-{i:04d}.nii.gz" for i in range(3)]
    config = recipe("smoke").patches
    assert nib.load(samples[0]).shape == config.size_vox[::-1]
    assert nib.load(samples[0]).header.get_zooms() == pytest.approx(config.spacing_mm[::-1])
    measured = json.loads((trained / "made" / "fidelity.json").read_text())
    assert measured["count"] == 3
    assert measured["hu_wasserstein"] > measured["hu_wasserstein_floor"] > 0


def test_tune_leaves_a_table_and_an_alias(trained: Path) -> None:
    done = run("tune", "--workspace", "work", "--trials", "1", *SMALL, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "models:/diffseglung@tuned" in done.stdout
    assert pq.read_table(trained / "work" / "sweep.parquet").num_rows >= 1
