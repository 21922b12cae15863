"""Dense lung out to the pleura: the other lung, mirrored, says how far."""

import numpy as np
import pytest

from diffseglung.anatomy.morphology import dilate
from diffseglung.anatomy.symmetry import dense_as_mirrored, middle, mirrored

SPACING = (2.0, 2.0, 2.0)
SHAPE = (60, 60, 100)


def egg(x_mm: float, lift_mm: float = 0.0) -> np.ndarray:
    """A lung's worth of space whose middle lies `x_mm` from the left of the picture."""
    z, y, x = (
        2.0 * np.arange(n).reshape([-1 if a == k else 1 for a in range(3)]) for k, n in enumerate(SHAPE)
    )
    return ((z - 60 - lift_mm) / 48) ** 2 + ((y - 60) / 46) ** 2 + ((x - x_mm) / 36) ** 2 < 1


def chest(lift_mm: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True lungs; the right one's consolidated top, which also lies on what is no lung; HU."""
    true = np.where(egg(54), 1, 0).astype(np.uint8)
    true[egg(146, lift_mm)] = 2
    z, y, x = np.indices(SHAPE)
    dense = (z > 36) & (x < 30) & (y > 20)
    hu = np.where((true > 0) & ~dense, -850, 40).astype(np.float32)
    return true, dense & (true == 1), hu


def known_of(true: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """The lungs as a chord leaves them: the dense body's outer shell is missing."""
    known = true.copy()
    z, y, x = np.indices(SHAPE)
    outer = ((z - 30) / 24) ** 2 + ((y - 30) / 23) ** 2 + ((x - 27) / 18) ** 2 > 0.66
    known[dense & outer] = 0
    return known


@pytest.mark.parametrize("lift_mm", [0.0, 6.0])  # lungs of one height, and not
def test_a_consolidated_shell_is_lung_as_far_as_the_mirror_shows(lift_mm):
    true, dense, hu = chest(lift_mm)
    known = known_of(true, dense)
    missing = (true == 1) & (known == 0)
    assert missing.sum() * 0.008 > 8  # ml
    found = dense_as_mirrored(known, 1, hu, np.zeros(SHAPE, bool), SPACING)
    assert (found & missing).sum() > 0.6 * missing.sum()
    assert (found & (true == 0)).sum() < 0.1 * missing.sum()


def test_nothing_is_added_where_no_dense_body_is_or_something_else_surely_is():
    true, dense, hu = chest()
    known = known_of(true, dense)
    nowhere = np.zeros(SHAPE, bool)
    assert not dense_as_mirrored(known, 2, hu, nowhere, SPACING).any()
    assert not dense_as_mirrored(known, 1, hu, ~nowhere, SPACING).any()
    aired = np.where(
        known == 1, np.float32(-850), hu
    )  # the shell is wall where the lung beside it is healthy
    assert not dense_as_mirrored(known, 1, aired, nowhere, SPACING).any()
    assert not dense_as_mirrored(np.where(known == 1, known, 0), 1, hu, nowhere, SPACING).any()  # one lung


def test_what_air_parts_from_the_body_is_none_of_it():
    """A fold of lung runs between the body and what would be its shell."""
    true, dense, hu = chest()
    known = known_of(true, dense)
    missing = (true == 1) & (known == 0)
    fold = missing & dilate(known == 1, 2.0, SPACING)
    assert (missing & ~fold).any()
    parted = np.where(fold, np.float32(-850), hu)
    found = dense_as_mirrored(known, 1, parted, np.zeros(SHAPE, bool), SPACING)
    assert (found & missing & ~fold).sum() < 0.02 * missing.sum()


def test_below_the_lung_lies_the_liver():
    """The same shell at the lung's base stays out: nothing below it is lung."""
    true, dense, hu = (a[::-1] for a in chest())
    known = known_of(true[::-1], dense[::-1])[::-1]
    found = dense_as_mirrored(known, 1, hu, np.zeros(SHAPE, bool), SPACING)
    missing = (true == 1) & (known == 0)
    assert (found & missing).sum() < 0.35 * missing.sum()


def test_the_middle_is_where_the_mirror_fits():
    true, _, _ = chest()
    assert abs(middle(true) - 100) <= 1
    twice = mirrored(mirrored(true, 100), 100)
    np.testing.assert_array_equal(twice[..., 2:-2], true[..., 2:-2])
    np.testing.assert_array_equal(mirrored(np.arange(4), 4), [0, 3, 2, 1])
