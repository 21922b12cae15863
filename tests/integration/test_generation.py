"""Generated patches lie on the recipe's grid and are measured beside real ones."""

import json
from pathlib import Path

import nibabel as nib
import pytest
from made_jobs import call_job
from made_workspace import made_workspace

from diffseglung.config import recipe


def test_patches_are_drawn_and_measured(cohort: Path, model: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--out", "made", "--count", "3", "--workspace", made_workspace(cohort))
    ended = call_job("generate", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    samples = sorted((tmp_path / "made" / "samples").iterdir())
    assert [p.name for p in samples] == [f"sample-{i:04d}.nii.gz" for i in range(3)]
    config = recipe("smoke").patches
    assert nib.load(samples[0]).shape == config.size_vox[::-1]
    assert nib.load(samples[0]).header.get_zooms() == pytest.approx(config.spacing_mm[::-1])
    measured = json.loads((tmp_path / "made" / "fidelity.json").read_text())
    assert measured["count"] == 3
    assert measured["hu_wasserstein"] > measured["hu_wasserstein_floor"] > 0
    assert {"frechet", "mmd", "ssim", "psnr_db", "ssim_floor"} <= set(measured)
    assert f"{measured['hu_wasserstein']:.3g}" in (tmp_path / "made" / "fidelity.md").read_text()


def test_a_sampler_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    ended = call_job("generate", "--model", model, "--out", "made", "--sampler", "euler", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--sampler euler is none of: ddpm, ddim, dpm++2, dpm++3" in ended.stderr
