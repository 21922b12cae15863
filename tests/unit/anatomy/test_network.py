"""lungmask is used where it and its weights are on the machine, and asked for in words where they are not."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from diffseglung import __main__ as command
from diffseglung.anatomy import AnatomyConfig, find_anatomy
from diffseglung.anatomy.network import WEIGHTS, NoNetwork, find_weights, lungs_by_network
from diffseglung.volume import Volume
from diffseglung_ray.cohort import check_lungs
from diffseglung_ray.config import WrongArgument


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A stand-in with lungmask's interface: right lung where the scan is below -700 HU, left below -900."""

    class LMInferer:
        def __init__(self, modelpath: str, tqdm_disable: bool) -> None:
            assert modelpath.endswith(WEIGHTS)

        def apply(self, image) -> np.ndarray:
            import SimpleITK as sitk

            assert image.GetSpacing() == (1.0, 2.0, 3.0)
            hu = sitk.GetArrayFromImage(image)
            return (hu < -700).astype(np.uint8) + (hu < -900)

    stand_in = ModuleType("lungmask")
    stand_in.LMInferer = LMInferer
    monkeypatch.setitem(sys.modules, "lungmask", stand_in)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_without_the_package_the_reason_is_given(no_package):
    with pytest.raises(NoNetwork, match="not installed"):
        find_weights()


def test_nothing_is_downloaded(package):
    with pytest.raises(NoNetwork, match=f"{WEIGHTS}, and nothing is downloaded"):
        find_weights()


def test_both_of_its_lungs_are_lung(package):
    package.mkdir()
    (package / WEIGHTS).touch()
    hu = np.random.default_rng(0).integers(-1000, 100, (4, 5, 6)).astype(np.int16)
    found = lungs_by_network(Volume.from_array(hu, (3.0, 2.0, 1.0)))
    assert np.array_equal(found, hu < -700)


def test_the_command_refuses_before_it_starts(no_package, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command.parse(
            ["segment", str(tmp_path), "--model", str(tmp_path), "--out", "o", "--lungs", "lungmask"]
        )
    assert end.value.code == 2
    assert "not installed" in capsys.readouterr().err


def test_settings_ask_for_it(package):
    package.mkdir()
    (package / WEIGHTS).touch()
    hu = np.full((12, 30, 30), 40, np.int16)
    hu[2:10, 4:26, 4:13] = hu[2:10, 4:26, 17:26] = -850
    volume = Volume.from_array(hu, (3.0, 2.0, 1.0))
    found = find_anatomy(volume, AnatomyConfig(lungs="lungmask"))
    assert np.array_equal(found.lungs, hu < -700)


def test_a_way_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"anatomy\.lungs is one of shape, lungmask, not guess"):
        AnatomyConfig(lungs="guess")


def test_a_job_refuses_before_it_reads_a_scan(no_package):
    check_lungs(AnatomyConfig())
    with pytest.raises(WrongArgument, match="not installed"):
        check_lungs(AnatomyConfig(lungs="lungmask"))
