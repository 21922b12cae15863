"""One look at a scan gives the figures that many looks gave."""

import numpy as np
import pytest

from diffseglung.densities import HU, Densities, voxels_of


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    hu = rng.integers(-1100, 400, (9, 20, 30)).astype(np.int16)
    labels = rng.integers(0, 7, hu.shape).astype(np.uint8)
    hu[0, 0, :3], labels[0, 0, :3] = (-(2**15), 2**15 - 1, -5000), 0
    return hu, labels


def test_figures_are_those_of_the_voxels(scan):
    hu, labels = scan
    seen = Densities.of(hu, labels)
    assert seen.counts.sum() == hu.size
    assert seen.voxels.tolist() == voxels_of(labels).tolist() == np.bincount(labels.ravel()).tolist()
    inside = hu[labels > 0]
    assert seen.mean_hu() == pytest.approx(inside.mean())
    assert seen.share_below(-950) == pytest.approx((inside < -950).mean())
    assert seen.of_lungs[HU == -950] == (inside == -950).sum()


def test_bins_hold_what_lies_between_their_edges_and_the_end_bins_the_rest(scan):
    hu, labels = scan
    edges = (-1000, -900, -300, 0)
    expected = [
        np.histogram(np.clip(hu[labels == n], edges[0], edges[-1] - 1), edges)[0].tolist() for n in range(7)
    ]
    assert Densities.of(hu, labels).in_bins(edges).tolist() == expected


def test_a_box_of_a_scan_counts_like_its_copy(scan):
    hu, labels = (array[2:, 3:-1, ::2] for array in scan)
    assert (Densities.of(hu, labels).counts == Densities.of(hu.copy(), labels.copy()).counts).all()


def test_without_lungs_there_is_no_mean():
    seen = Densities.of(np.zeros((2, 2, 2), np.int16), np.zeros((2, 2, 2), np.uint8))
    assert np.isnan(seen.mean_hu())
    assert np.isnan(seen.share_below(0))
