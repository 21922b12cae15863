"""One small phantom and one small model for all tests of what comes after the anatomy."""

from pathlib import Path

import pytest
from made_model import SMALL, make_model

from diffseglung.look import Observation
from diffseglung.model import Model
from diffseglung.phantom import write_cohort
from diffseglung.segment import Segmentation, decide, observe
from diffseglung.volume import Volume, read_volume


@pytest.fixture(scope="session")
def scan_path(tmp_path_factory) -> Path:
    """A phantom as an ordinary file."""
    folder = tmp_path_factory.mktemp("scan")
    return folder / write_cohort(folder, 1, seed=1, config=SMALL)[0]["image"]


@pytest.fixture(scope="session")
def volume(scan_path) -> Volume:
    return read_volume(scan_path)


@pytest.fixture(scope="session")
def model_folder(scan_path, tmp_path_factory) -> Path:
    return make_model(scan_path, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_folder) -> Model:
    return Model.load(model_folder)


@pytest.fixture(scope="session")
def observation(volume, model) -> Observation:
    return observe(volume, model)


@pytest.fixture(scope="session")
def segmentation(observation, model) -> Segmentation:
    return decide(observation, model)
