"""Dense lung lies on ribs; below the last one muscle and the spine's processes are not taken for it."""

import numpy as np
import pytest

from diffseglung.anatomy.wall import dense_at_ribs

SPACING_MM = (2.0, 2.0, 2.0)
Z, Y, X = np.mgrid[0:60, -45:46, -45:46] * 2.0
RADIUS_MM = np.hypot(Y, X)
DEGREES = np.rad2deg(np.arctan2(Y, -X))  # a right lung's: from straight sideways, out, to the back
LUNG = (RADIUS_MM <= 50) & (Z >= 20)
LOW, BACK = Z < 80, DEGREES > 98


def seen(bone: np.ndarray) -> float:
    """ml of dense lung that are found between a lung's air and this bone, all else muscle."""
    hu = np.where(bone, 600.0, np.where(LUNG, -860.0, 50.0)).astype(np.float32)
    nothing = np.zeros(LUNG.shape, bool)
    found = dense_at_ribs(LUNG.astype(np.uint8), 1, hu, nothing, SPACING_MM)
    return float(found.sum() * np.prod(SPACING_MM) / 1000)


@pytest.fixture(scope="module")
def ribs() -> np.ndarray:
    """A cage close to the air, that leaves out the back of the lung's base."""
    return (RADIUS_MM > 54) & (RADIUS_MM < 60) & ~(LOW & BACK)


def test_what_is_dense_before_ribs_is_diseased_lung(ribs):
    assert seen(ribs | ((RADIUS_MM > 66) & (RADIUS_MM < 72) & LOW & BACK)) > 10


def test_muscle_between_the_last_rib_and_the_spines_processes_is_no_lung(ribs):
    processes = (RADIUS_MM > 66) & (RADIUS_MM < 72) & LOW & (DEGREES > 122)
    assert seen(ribs | processes) == 0
