"""Pleural fluid is no lung, though dense lung lies beside it."""

import numpy as np
import pytest
from chest import SPACING_MM, Chest, make_chest

from diffseglung.anatomy import AnatomyConfig, find_anatomy
from diffseglung.anatomy.fluid import muscle_hu, without_fluid
from diffseglung.labels import Tissue
from diffseglung.phantom import Effusion, PhantomConfig, make_phantom
from diffseglung.volume import Volume

COARSE = AnatomyConfig(working_mm=3.0)  # for speed
SPACING = (2.0, 2.0, 2.0)
Z, Y, X = np.mgrid[0:30, 0:40, 0:40] * 2.0
LUNG, BODY = Y < 20, (Y >= 20) & (Y < 50)
FLUID = BODY & (X < 40)


def share(part: np.ndarray, of: np.ndarray) -> float:
    return float((part & of).sum() / of.sum())


def kept(
    fluid_hu: float = 10.0, dense_hu: float = 42.0, noise_hu: float = 25.0, **spots: float
) -> np.ndarray:
    """What is kept of a body between lung (low y) and muscle: the half at low x is fluid, the other dense lung.

    Next to the lung 4 mm of it are half aerated.
    """
    hu = np.where(LUNG, -850.0, np.where(FLUID, fluid_hu, np.where(BODY, dense_hu, 52.0)))
    hu[BODY & (Y < 24)] = -300
    hu += np.random.default_rng(0).normal(0, noise_hu, hu.shape)
    if "bronchus" in spots:
        hu[(np.abs(X - spots["bronchus"]) < 2) & (np.abs(Y - 36) < 2)] = -800
    return without_fluid(BODY, hu.astype(np.float32), LUNG, SPACING)


def test_fluid_and_dense_lung_in_one_body_are_divided():
    body = kept()
    assert share(body, FLUID) < 0.1
    assert share(body, BODY & ~FLUID) > 0.9


@pytest.mark.parametrize("fluid_hu", [0.0, 20.0])
def test_a_transudate_is_fluid_and_so_is_an_exudate(fluid_hu):
    assert share(kept(fluid_hu, noise_hu=10), FLUID) < 0.2


def test_lung_as_light_as_fluid_is_kept_around_an_open_bronchus():
    at_bronchus = FLUID & (np.hypot(X - 10, Y - 36) < 10)
    assert share(kept(bronchus=10.0), at_bronchus) > 0.95
    assert share(kept(), at_bronchus) < 0.05


def test_squeezed_lung_at_a_fluids_border_is_no_open_bronchus():
    """It is as light as one, and lies along all of the fluid."""
    everywhere = kept(dense_hu=10.0)
    assert share(everywhere, BODY) < 0.05


def test_a_little_of_a_dense_body_may_be_as_light_as_fluid():
    """Dead tissue in a mass: 3 ml are more than a third of this corner."""
    corner = BODY & (X < 14) & (Z < 14) & (Y > 36)
    hu = np.where(LUNG, -850.0, np.where(corner, 10.0, 48.0)).astype(np.float32)
    assert without_fluid(BODY, hu, LUNG, SPACING)[corner].all()


def test_muscle_is_measured_in_the_scan_whatever_its_calibration():
    hu = np.where(LUNG, -850, 61).astype(np.float32)
    assert muscle_hu(hu, LUNG) == 61
    assert muscle_hu(hu, np.ones_like(LUNG)) == 50


def lungs_of(chest: Chest) -> np.ndarray:
    return find_anatomy(Volume.from_array(chest.hu, SPACING_MM), COARSE).lungs


def test_fluid_beside_consolidation_stays_out_and_consolidation_comes_in():
    chest = make_chest(effusion=True, consolidation=True)
    lungs = lungs_of(chest)
    # Judged as one body, .62 of the fluid was lung.
    assert share(lungs, chest.parts["effusion"]) < 0.2
    assert share(lungs, chest.parts["consolidation"]) > 0.9


def test_fluid_that_bulges_into_the_lung_like_a_mass_is_none():
    chest = make_chest(mass=True)
    mass = chest.parts["mass"]
    assert share(lungs_of(chest), mass) > 0.85
    chest.hu[mass] -= 37  # 8 HU: encapsulated fluid
    assert share(lungs_of(chest), mass) < 0.15


def test_a_phantoms_effusion_stays_out():
    config = PhantomConfig(size_vox=(60, 100, 100), spacing_mm=(4.0, 3.2, 3.2))
    effusion = Effusion(right_ml=250, left_ml=250, hu=8)
    phantom = make_phantom(3, config, kinds=(Tissue.CONSOLIDATION,), effusion=effusion)
    anatomy = find_anatomy(Volume.from_array(phantom.hu, phantom.spacing_mm), COARSE)
    assert share(anatomy.lungs, phantom.effusion) < 0.05
