"""Balls in millimetres on grids of any spacing."""

import numpy as np
import pytest

from diffseglung.anatomy.morphology import (
    bounding_box,
    closing,
    components,
    dilate,
    distance_mm,
    erode,
    opening,
)

SPACING_MM = (3.0, 1.0, 2.0)


def test_distances_are_in_millimetres_along_every_axis():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    away = distance_mm(mask, SPACING_MM)
    assert away[4, 4, 4] == 0
    assert away[6, 4, 4] == pytest.approx(6)
    assert away[4, 7, 4] == pytest.approx(3)
    assert away[4, 7, 6] == pytest.approx(5)


@pytest.mark.parametrize("spacing_mm", [(2.0, 2.0, 2.0), (5.0, 0.7, 0.71), (0.5, 2.3, 0.3)])
@pytest.mark.parametrize("radius_mm", [0.0, 1.1, 4.3, 11.0])
def test_within_a_radius_is_what_the_distances_say(spacing_mm, radius_mm):
    rng = np.random.default_rng(0)
    for share in (0.0005, 0.02, 0.5):
        mask = rng.random((14, 18, 22)) < share
        np.testing.assert_array_equal(
            dilate(mask, radius_mm, spacing_mm), distance_mm(mask, spacing_mm) <= radius_mm
        )


def test_a_neighbour_is_within_its_own_spacing():
    mask = np.zeros((3, 3, 30), bool)
    mask[1, 1, 15] = True
    for mm in (0.1, 0.3, 0.4, 0.67075, 0.7):
        for steps in range(1, 10):
            found = dilate(mask, steps * mm, (9.0, 9.0, mm))
            assert np.flatnonzero(found[1, 1]).tolist() == list(range(15 - steps, 16 + steps))


def test_nothing_is_infinitely_far():
    assert np.isinf(distance_mm(np.zeros((3, 3, 3), bool), SPACING_MM)).all()


def test_opening_takes_the_thin_and_keeps_the_thick():
    mask = np.zeros((30, 30, 30), bool)
    mask[5:20, 5:20, 5:20] = True
    mask[10, 10, 20:28] = True
    opened = opening(mask, 2.0, (1.0, 1.0, 1.0))
    assert not opened[10, 10, 24]
    assert opened[12, 12, 12]
    assert not (opened & ~mask).any()


def test_closing_fills_a_notch_and_not_a_bay_even_at_the_border():
    mask = np.ones((20, 40, 40), bool)
    mask[:, 0:6, 5:7] = False
    mask[:, 0:12, 20:36] = False
    closed = closing(mask, 3.0, (1.0, 1.0, 1.0))
    assert closed[10, 4, 5]
    assert not closed[10, 2, 28]


def test_eroding_and_dilating_are_each_others_complement():
    mask = np.random.default_rng(0).random((12, 14, 16)) > 0.2
    assert np.array_equal(erode(mask, 2.0, SPACING_MM), ~dilate(~mask, 2.0, SPACING_MM))


def test_components_come_largest_first():
    mask = np.zeros((4, 4, 20), bool)
    mask[0, 0, 0] = mask[2, 2, 5:9] = mask[1, 1, 12:14] = True
    parts, sizes = components(mask)
    assert sizes.tolist() == [0, 4, 2, 1]
    assert parts[2, 2, 5] == 1
    assert parts[0, 0, 0] == 3


def test_single_voxels_in_a_row_are_parts_too():
    mask = np.zeros((4, 4, 20), bool)
    mask[1, 2, 3:9:2] = True
    parts, sizes = components(mask, connectivity=26)
    assert sizes.tolist() == [0, 1, 1, 1]
    assert parts[1, 2, 3:9].tolist() == [1, 0, 2, 0, 3, 0]


def test_a_box_holds_mask_and_margin_inside_the_array():
    mask = np.zeros((10, 20, 20), bool)
    mask[4, 1, 10] = True
    assert bounding_box(mask, 4.0, SPACING_MM) == (slice(2, 7), slice(0, 6), slice(8, 13))
