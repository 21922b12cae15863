"""A bronchus is a tube, dilated or not; a cavity that opens into it is none, and neither is a hole without a wall."""

import numpy as np

from diffseglung.anatomy.airways import add_small_bronchi, grow_airways, oesophageal_gas

SPACING_MM = (2.0, 2.0, 2.0)
Z, Y, X = np.mgrid[-25:26, -30:31, -30:31] * 2.0
TRACHEA = (Y**2 + X**2 <= 8**2) & (Z > 10)


def along_x(radius_mm: float, start_mm: float, end_mm: float, y_mm: float = 0.0) -> np.ndarray:
    return ((Y - y_mm) ** 2 + (Z - 12) ** 2 <= radius_mm**2) & (start_mm <= X) & (end_mm >= X)


def scan(lumen: np.ndarray) -> np.ndarray:
    """Air in soft tissue: a chest without lungs."""
    return np.where(lumen, -990.0, 30.0).astype(np.float32)


def test_a_dilated_bronchus_is_airway_and_the_cavity_behind_it_is_not():
    bronchus = along_x(6.0, 0, 44)
    cavity = (X + 38) ** 2 + Y**2 + (Z - 8) ** 2 <= 17**2
    hu = scan(TRACHEA | bronchus | along_x(3.0, -40, 0) | cavity)
    found = grow_airways(hu, hu < -400, TRACHEA, SPACING_MM)
    assert found[bronchus].mean() > 0.99
    assert found[cavity].mean() < 0.01


def test_a_small_bronchus_joins_by_its_wall_and_an_emphysematous_hole_does_not():
    bronchus, hole = along_x(2.1, 8, 40), along_x(2.1, -40, -8)
    hu = np.full(Z.shape, -870.0, np.float32)
    hu[along_x(4.3, 8, 42)] = -250.0
    hu[hole] = -990.0
    hu[bronchus] = -820.0
    hu[TRACHEA] = -990.0
    found = add_small_bronchi(hu, TRACHEA, SPACING_MM)
    assert found[bronchus].mean() > 0.95
    assert not found[hole & ~TRACHEA].any()
    assert (found & ~TRACHEA & ~bronchus).sum() < 0.2 * bronchus.sum()


def test_lung_between_septa_that_joins_in_lumps_is_no_bronchus():
    block = (np.abs(X - 24) < 19) & (np.abs(Y) < 15) & (np.abs(Z) < 15) & ~TRACHEA
    hu = np.full(Z.shape, -870.0, np.float32)
    hu[block & ((X % 6 == 0) | (Y % 6 == 0)) & (Z % 6 != 0)] = -420.0
    hu[TRACHEA] = -990.0
    found = add_small_bronchi(hu, TRACHEA, SPACING_MM) & ~TRACHEA
    assert (found & block).sum() < 0.02 * (block & (hu < -650)).sum()


def tube(y_mm: float, x_mm: float, radius_mm: float = 5.0) -> np.ndarray:
    """An upright one beside the trachea."""
    return ((Y - y_mm) ** 2 + (X - x_mm) ** 2 <= radius_mm**2) & (Z > 14) & (Z < 46)


def test_gas_of_the_oesophagus_is_a_tube_behind_the_trachea_as_empty_as_that():
    gas = tube(20, 2)
    hu = scan(TRACHEA | gas)
    assert np.array_equal(oesophageal_gas(hu, hu < -400, TRACHEA, TRACHEA, SPACING_MM), gas)


def test_lung_behind_the_trachea_and_a_bulla_beside_it_are_no_oesophagus():
    recess, bulla, bubble = tube(20, 2), tube(6, 24), tube(40, 0) & (Z > 36)
    hu = scan(TRACHEA | bulla | bubble)
    hu[recess] = -860
    assert not oesophageal_gas(hu, hu < -400, TRACHEA, TRACHEA, SPACING_MM).any()
    lung = (Y > 12) & (Z < 46)
    hu = scan(TRACHEA)
    hu[lung] = -860
    hu[tube(24, 0)] = -990  # a bulla, in lung on all sides
    assert not oesophageal_gas(hu, hu < -400, TRACHEA, TRACHEA, SPACING_MM).any()


def test_without_a_trachea_there_are_no_airways():
    nothing = np.zeros(Z.shape, bool)
    assert not add_small_bronchi(scan(TRACHEA), nothing, SPACING_MM).any()
    assert not grow_airways(scan(TRACHEA), TRACHEA, nothing, SPACING_MM).any()
