"""From the working grid to the scan's own: one pass decides what maps on the fine grid would."""

import numpy as np
import pytest
from scipy import ndimage

from diffseglung.anatomy.full_grid import TOUCHED, to_full_grid
from diffseglung.grid import Grid, respace, respaced_grid
from diffseglung.labels import Structure


def grid(shape, spacing_mm):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing_mm)[::-1]
    return Grid(shape, affine)


@pytest.fixture(params=[(0.71, 0.83, 0.9), (5.0, 0.8, 0.7), (2.0, 2.0, 2.0), (1.1, 3.3, 2.9)])
def found(request):
    """Blobs on a working grid, and the scan's grid beside it."""
    rng = np.random.default_rng(0)
    source = grid((24, 30, 36), (2.0, 2.0, 2.0))
    target = respaced_grid(source, request.param)

    def blobs(limit):
        return ndimage.gaussian_filter(rng.normal(size=source.shape), 2) > limit

    side = np.where(blobs(0.0), np.where(np.arange(36) < 18, 1, 2), 0).astype(np.uint8)
    side[:, :8] = 0
    airways, vessels = blobs(0.06), blobs(0.03) & (side > 0)
    rim_hu = rng.normal(-700, 50, source.shape).astype(np.float32)
    hu = rng.integers(-900, -400, target.shape).astype(np.int16)
    return side, airways, vessels, rim_hu, source, hu, target


def test_shares_are_cut_at_one_half(found):
    side, airways, vessels, rim_hu, source, hu, target = found
    maps = (side == 1, side == 2, airways, vessels, rim_hu)
    right, left, airway, vessel, rim = (respace(m, source, target) for m in maps)
    inside = (right + left > 0.5) & (airway <= 0.5)
    expected_side = np.where(right >= left, 1, 2) * inside
    expected = expected_side.copy()
    expected[(airway > 0.5) & ~inside] = Structure.AIRWAY
    expected[inside & ((vessel > 0.5) | ((vessel > TOUCHED) & (hu > rim)))] = Structure.VESSEL
    labels, full_side = to_full_grid(*found)
    # The order of sums differs, and with it the last bit of what lies on the cut itself.
    assert (labels != expected).mean() < 2e-3
    assert (full_side != expected_side).mean() < 2e-3
    assert {*np.unique(expected)} == {0, 1, 2, Structure.AIRWAY, Structure.VESSEL}


def test_given_lungs_are_kept_to_the_voxel(found):
    hu, target = found[5:]
    lungs = np.random.default_rng(1).random(target.shape) > 0.5
    labels, side = to_full_grid(*found, lungs)
    np.testing.assert_array_equal(side > 0, lungs)
    assert set(np.unique(labels[lungs])) <= {1, 2, Structure.VESSEL}
    assert set(np.unique(labels[~lungs])) <= {0, Structure.AIRWAY}
    assert (labels[lungs & (hu > -500)] == Structure.VESSEL).any()
