"""The plain ways to beat do what their one line says."""

import numpy as np
import pytest
from scipy import ndimage

from diffseglung.baselines import (
    BASELINES,
    hu_mixture,
    hu_texture_rule,
    hu_thresholds,
    hu_thresholds_enclosure,
    median_ground_glass,
    radiomic_kmeans,
)
from diffseglung.evaluate import score_case
from diffseglung.labels import Tissue
from diffseglung.phantom import PhantomConfig, make_phantom

SPACING = (2.0, 2.0, 2.0)
LAYERS = {
    Tissue.EMPHYSEMA: -985,
    Tissue.HEALTHY: -850,
    Tissue.GROUND_GLASS: -620,
    Tissue.FIBROSIS: -340,
    Tissue.CONSOLIDATION: 20,
}


def layered(noise_hu=12.0, depth=12):
    """A lung of five even layers along z, 2 voxels inside a wall of 40 HU; and the tissue of each voxel."""
    truth = np.repeat(np.array(list(LAYERS), np.uint8), depth)[:, None, None] * np.ones((1, 36, 40), np.uint8)
    hu = np.random.default_rng(0).normal(0, noise_hu, truth.shape)
    for tissue, level in LAYERS.items():
        hu[truth == tissue] += level
    lungs = np.zeros(truth.shape, bool)
    lungs[2:-2, 2:-2, 2:-2] = True
    hu[~lungs] = 40
    return hu.astype(np.int16), lungs, truth * lungs


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_labels_the_lung_all_of_it_and_nothing_else(name):
    hu, lungs, _ = layered()
    for mask in (lungs, lungs.astype(np.uint8)):
        labels = BASELINES[name](hu, mask, np.zeros_like(lungs), SPACING)
        assert labels.dtype == np.uint8
        assert (labels > 0).tolist() == lungs.tolist()
        assert labels.max() <= Tissue.CAVITY


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_says_the_same_twice_and_nothing_without_a_lung(name):
    hu, lungs, _ = layered()
    once, twice = (BASELINES[name](hu, lungs, np.zeros_like(lungs), SPACING) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert BASELINES[name](hu, np.zeros_like(lungs), np.zeros_like(lungs), SPACING).max() == 0


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_says_where_its_numbers_come_from(name):
    assert "HU" in BASELINES[name].__doc__


@pytest.mark.parametrize("name", BASELINES)
def test_a_lung_of_a_few_voxels_is_no_error(name):
    hu, lungs, _ = layered()
    tiny = np.zeros_like(lungs)
    tiny[10, 10, 10:13] = True
    labels = BASELINES[name](hu, tiny, np.zeros_like(lungs), SPACING)
    assert (labels > 0).sum() == 3


def test_thresholds_read_off_even_layers():
    hu, lungs, truth = layered(noise_hu=5.0)
    np.testing.assert_array_equal(hu_thresholds(hu, lungs, lungs * 0, SPACING), truth)


def test_a_mixture_finds_even_layers_by_itself():
    hu, lungs, truth = layered()
    labels = hu_mixture(hu, lungs, lungs * 0, SPACING)
    assert (labels == truth)[lungs].mean() > 0.999


def test_kmeans_names_two_halves_by_their_density():
    """Five clusters share two tissues; windows of 24 mm see both sides of the border."""
    hu, lungs, truth = layered(depth=24)
    hu, lungs, truth = (a[24:72] for a in (hu, lungs, truth))
    labels = radiomic_kmeans(hu, lungs, lungs * 0, SPACING)
    away = np.ones(truth.shape, bool)
    away[18:30] = False
    assert (labels == truth)[lungs & away].mean() > 0.95


def test_enclosure_adds_the_cavity_that_thresholds_call_emphysema():
    hu = np.full((40, 40, 40), -850, np.int16)
    lungs = np.zeros(hu.shape, bool)
    lungs[1:-1, 1:-1, 1:-1] = True
    z, y, x = np.indices(hu.shape)
    r_mm = 2 * np.sqrt((z - 20.0) ** 2 + (y - 20.0) ** 2 + (x - 20.0) ** 2)
    hu[r_mm < 18] = 20
    hu[r_mm < 13] = -990
    plain = hu_thresholds(hu, lungs, lungs * 0, SPACING)
    enclosed = BASELINES["hu_thresholds_enclosure"](hu, lungs, lungs * 0, SPACING)
    assert (plain[r_mm < 13] == Tissue.EMPHYSEMA).all()
    assert (enclosed[r_mm < 13] == Tissue.CAVITY).all()
    np.testing.assert_array_equal(plain[r_mm > 26], enclosed[r_mm > 26])


def test_the_median_line_is_a_median_of_5x5x5_lung_voxels_of_2_mm():
    rng = np.random.default_rng(1)
    hu = ndimage.gaussian_filter(rng.normal(0, 1500, (20, 24, 26)), 1.5).astype(np.int16) - 720
    lungs = np.zeros(hu.shape, bool)
    lungs[6:14, 5:20, 1:26] = True  # touches a border of the volume
    expected = np.zeros(hu.shape, bool)
    for z, y, x in np.argwhere(lungs):
        window = tuple(slice(max(0, i - 2), i + 3) for i in (z, y, x))
        seen = np.sort(hu[window][lungs[window]])
        expected[z, y, x] = seen[(len(seen) - 1) // 2] > -720  # of an even number, the lower middle
    labels = median_ground_glass(hu, lungs, lungs * 0, SPACING)
    np.testing.assert_array_equal(labels[lungs] == Tissue.GROUND_GLASS, expected[lungs])
    assert 0.2 < expected[lungs].mean() < 0.8


@pytest.mark.parametrize("mode_hu", [-880, -830, -770])
def test_the_rule_calls_healthy_lung_so_at_any_depth_of_breath(mode_hu):
    """Thresholds call a quarter and more of a shallow breath ground glass, which the last planes are in any breath."""
    rng = np.random.default_rng(2)
    lungs = np.zeros((44, 40, 40), bool)
    lungs[2:-2, 2:-2, 2:-2] = True
    hu = np.where(lungs, mode_hu + ndimage.gaussian_filter(rng.normal(0, 300, lungs.shape), 1), 40)
    hu[30:42] += (-600 - mode_hu) * lungs[30:42]
    hu = hu.astype(np.int16)
    ruled, by_density = (f(hu, lungs, lungs * 0, SPACING) for f in (hu_texture_rule, hu_thresholds))
    healthy = lungs[2:28]
    assert (ruled[2:28][healthy] == Tissue.HEALTHY).mean() > 0.99
    assert (ruled[33:][lungs[33:]] == Tissue.GROUND_GLASS).mean() > 0.95
    if mode_hu > -800:
        assert (by_density[2:28][healthy] == Tissue.GROUND_GLASS).mean() > 0.25


def test_the_rule_beats_thresholds_with_enclosure_on_a_grid_that_is_not_its_own():
    phantom = make_phantom(3, PhantomConfig(size_vox=(80, 128, 128), spacing_mm=(3.0, 2.5, 2.5)))
    ruled, by_density = (
        score_case("one", "one", phantom.truth, labels, phantom.spacing_mm)
        for f in (hu_texture_rule, hu_thresholds_enclosure)
        for labels in [f(phantom.hu, phantom.lungs, phantom.airways, phantom.spacing_mm)]
    )
    dice = {
        str(one["tissue"]): (float(one["dice"]), float(other["dice"]))
        for one, other in zip(ruled, by_density, strict=True)
    }
    for tissue in (Tissue.EMPHYSEMA, Tissue.GROUND_GLASS, Tissue.CONSOLIDATION):
        assert dice[tissue.key][0] > dice[tissue.key][1] + 0.08, tissue
    assert dice[Tissue.CAVITY.key][0] == dice[Tissue.CAVITY.key][1] > 0.9


def test_masks_on_another_grid_are_refused_in_words():
    hu, lungs, _ = layered()
    with pytest.raises(ValueError, match="not on one grid"):
        hu_thresholds(hu, lungs[1:], lungs[1:], SPACING)
