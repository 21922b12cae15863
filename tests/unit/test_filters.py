"""Whole-scan filters against scipy's, which hold the scan several times in memory."""

import numpy as np
import pytest
from scipy import ndimage

from diffseglung.filters import correlated, eroded_by_box, smoothed_below

SHAPES = [(7, 9, 11), (20, 30, 40), (3, 50, 2), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [(1.2, 0.8, 0.5), (2.0, 0.1, 1.5), (0.0, 0.0, 3.0)])
def test_smoothing_is_scipys(shape, sigma):
    rng = np.random.default_rng(0)
    hu = rng.normal(-800, 200, shape).astype(np.int16)
    where = rng.random(shape) > 0.2
    smooth = ndimage.gaussian_filter(hu.astype(np.float64), sigma)
    limits = (-900, -800, -700)
    found = smoothed_below(hu, sigma, limits, where)
    assert not found[~where].any()
    # float32 may fall on either side of a limit itself
    clear = where & np.all([np.abs(smooth - limit) > 1e-2 for limit in limits], axis=0)
    expected = np.sum([smooth < limit for limit in limits], axis=0)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert clear.sum() > 0.95 * where.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_correlation_is_scipys_along_each_axis(shape):
    rng = np.random.default_rng(2)
    volume = rng.normal(size=shape).astype(np.float32)
    weights = [rng.normal(size=length).astype(np.float32) for length in (3, 1, 9)]
    expected = volume
    for axis, along in enumerate(weights):
        expected = ndimage.correlate1d(expected, along, axis=axis, mode="reflect")
    np.testing.assert_allclose(correlated(volume, *weights), expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [(3, 3, 3), (1, 5, 3), (3, 1, 7), (1, 1, 1)])
def test_erosion_is_scipys_and_the_outside_is_no_mask(shape, width):
    mask = np.random.default_rng(1).random(shape) > 0.05
    expected = ndimage.minimum_filter(mask.view(np.uint8), width, mode="constant").view(bool)
    np.testing.assert_array_equal(eroded_by_box(mask, width), expected)


def test_long_runs_are_counted_as_far_as_anybody_asks():
    mask = np.ones((1, 2, 600), bool)
    mask[0, 1, 300] = False
    found = eroded_by_box(mask, (1, 1, 253))
    assert found[0, 0].sum() == 600 - 252
    assert found[0, 1].sum() == (300 - 252) + (299 - 252)
    assert eroded_by_box(np.moveaxis(mask, 2, 0), (253, 1, 1)).sum() == found.sum()


@pytest.mark.parametrize("width", [(2, 3, 3), (3, 3, 255)])
def test_a_box_that_has_no_middle_or_no_end_is_refused(width):
    with pytest.raises(ValueError, match="odd and at most 254"):
        eroded_by_box(np.ones((4, 4, 4), bool), width)
