"""The teacher against pyradiomics' own baselines: real organs, numbers published by others."""

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffseglung.teacher import TEACHER, TeacherConfig, describe_patches
from diffseglung_ray.public_scans import PACKAGE, VERSION, NotFetched, download_archive

CASES = ("lung1", "lung2", "brain1", "breast1")
# Ours: table, name in it, and what to do to it.
SHARED = {
    "hu_mean": ("firstorder", "Mean"),
    "hu_sd": ("firstorder", "Variance"),
    "hu_skewness": ("firstorder", "Skewness"),
    "hu_kurtosis": ("firstorder", "Kurtosis"),
    "hu_entropy": ("firstorder", "Entropy"),
    "glcm_contrast": ("glcm", "Contrast"),
    "glcm_dissimilarity": ("glcm", "DifferenceAverage"),
    "glcm_homogeneity": ("glcm", "Idm"),
    "glcm_energy": ("glcm", "JointEnergy"),
    "glcm_correlation": ("glcm", "Correlation"),
    "glcm_asm": ("glcm", "JointEnergy"),
}
ROOTS = ("hu_sd", "glcm_energy")
BIN_HU = 25


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    try:
        archive = download_archive(folder)
    except NotFetched as error:
        pytest.skip(str(error))
    names = [f"{case}_{kind}.nrrd" for case in CASES for kind in ("image", "label")]
    names += [f"baseline/baseline_{kind}.csv" for kind in ("firstorder", "glcm")]
    (folder / "baseline").mkdir()
    with tarfile.open(archive) as packed:
        for name in names:
            file = packed.extractfile(f"{PACKAGE.replace('-', '_')}-{VERSION}/data/{name}")
            assert file, name
            (folder / name).write_bytes(file.read())
    return folder


def table(data: Path, kind: str) -> dict[str, dict[str, str]]:
    with (data / "baseline" / f"baseline_{kind}.csv").open() as file:
        return {row["featureName"]: row for row in csv.DictReader(file)}


def region(data: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    """The image and the labelled region, cut to its box."""
    image, label = (sitk.ReadImage(str(data / f"{case}_{kind}.nrrd")) for kind in ("image", "label"))
    values, inside = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label) == 1
    box = tuple(slice(along.min(), along.max() + 1) for along in np.nonzero(inside))
    return values[box], inside[box]


@pytest.mark.parametrize("backend", ["batched", "pyradiomics"])
def test_the_baselines_of_pyradiomics_are_met(data, backend, record_property):
    tables = {kind: table(data, kind) for kind in ("firstorder", "glcm")}
    errors = {}
    for case in CASES:
        values, inside = region(data, case)
        assert np.array_equal(values, values.astype(np.int16))
        low, high = (int(f(values[inside]) // BIN_HU * BIN_HU) for f in (np.min, np.max))
        config = TeacherConfig(
            clip_hu=(low, high + BIN_HU),
            entropy_bins=(high + BIN_HU - low) // BIN_HU,
            bin_width_hu=BIN_HU,
            bin_origin_hu=low,
        )
        row = describe_patches(values.astype(np.int16)[None], inside[None], config, backend=backend)[0]
        for name, (kind, theirs) in SHARED.items():
            baseline = float(tables[kind][f"original_{kind}_{theirs}"][case])
            baseline = np.sqrt(baseline) if name in ROOTS else baseline
            errors[case, name] = abs(row[TEACHER.names.index(name)] / baseline - 1)
    worst = max(errors, key=errors.__getitem__)
    said = f"{backend}: {len(errors)} baseline values, worst {' '.join(worst)}, off by {errors[worst]:.1e}"
    record_property("measured", said)
    assert len(errors) == len(CASES) * len(SHARED)
    # float32 rows.
    assert errors[worst] < 1e-6
