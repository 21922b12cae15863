"""Refinement: borders settle on the edges that the CT shows, and nothing else moves."""

import time

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from diffseglung.labels import Tissue
from diffseglung.refine import (
    OFF,
    RefineConfig,
    Voxels,
    by_density,
    conductance,
    fuse,
    lung_box,
    sobel_diffusion,
    sobel_edges,
    steps,
    temper,
    without_artefacts,
    without_crumbs,
)

ISOTROPIC = (2.0, 2.0, 2.0)


def two_tissues(shape=(24, 32, 48), edge=24, noise_hu=20.0, seed=0):
    """HU of a lung whose tissue changes by 250 HU at plane x = edge; the lung fills the volume."""
    hu = np.random.default_rng(seed).normal(-850, noise_hu, shape)
    hu[..., edge:] += 250
    return hu.astype(np.int16), np.ones(shape, bool)


def two_maps(second: np.ndarray) -> np.ndarray:
    return np.stack([1 - second, second]).astype(np.float32)


def error_vox(posterior: np.ndarray, edge: int) -> float:
    """How far, on average over rows, the border of class 1 lies from plane x = edge."""
    return float(np.abs((posterior[1] <= posterior[0]).sum(axis=-1) - edge).mean())


@pytest.mark.parametrize("shift", [-3, 3])
def test_a_blurred_border_moves_onto_the_step_edge(shift):
    """Belief that is 6 mm off and blurred by 8 mm; the CT, noisy by 20 HU, shows the edge."""
    hu, lungs = two_tissues()
    second = ndimage.gaussian_filter1d((np.arange(48) >= 24 + shift).astype(float), 4.0)
    blurred = two_maps(np.broadcast_to(second, hu.shape))
    tempered = temper(blurred, hu, [(-850, 100), (-600, 100)], 0.35)
    assert error_vox(blurred, 24) == 3
    assert error_vox(sobel_diffusion(blurred, hu, lungs, ISOTROPIC, RefineConfig()), 24) <= 2
    assert error_vox(sobel_diffusion(tempered, hu, lungs, ISOTROPIC, RefineConfig()), 24) < 0.1


def test_density_and_flow_together_beat_either_alone_in_noise():
    """At 60 HU of noise density alone leaves specks, flow alone stops short of the edge."""
    hu, lungs = two_tissues(noise_hu=60.0)
    second = ndimage.gaussian_filter1d((np.arange(48) >= 27).astype(float), 4.0)
    truth = np.arange(48) >= 24

    def wrong(posterior: np.ndarray) -> float:
        return float(((posterior[1] > posterior[0]) != truth).mean())

    blurred = two_maps(np.broadcast_to(second, hu.shape))
    tempered = temper(blurred, hu, [(-850, 100), (-600, 100)], 0.35)
    flowed = sobel_diffusion(blurred, hu, lungs, ISOTROPIC, RefineConfig())
    fused = sobel_diffusion(tempered, hu, lungs, ISOTROPIC, RefineConfig())
    assert wrong(fused) < 0.5 * min(wrong(tempered), wrong(flowed))


def test_a_border_does_not_move_where_the_ct_shows_no_edge():
    hu, lungs = two_tissues(edge=48)
    blurred = two_maps(np.broadcast_to(ndimage.gaussian_filter1d((np.arange(48) >= 24) * 1.0, 4.0), hu.shape))
    refined = sobel_diffusion(blurred, hu, lungs, ISOTROPIC, RefineConfig())
    assert error_vox(refined, 24) < 0.5


def test_a_clean_case_keeps_its_pieces_and_its_volumes():
    shape = (48, 48, 48)
    z, y, x = np.indices(shape)
    ball = (z - 24) ** 2 + (y - 24) ** 2 + (x - 24) ** 2 < 12**2
    hu = np.where(ball, -600, -850).astype(np.int16)
    clean = two_maps(np.where(ball, 0.9, 0.1))
    refined = sobel_diffusion(clean, hu, np.ones(shape, bool), ISOTROPIC, RefineConfig())
    found = refined[1] > refined[0]
    assert cc3d.connected_components(found).max() == 1
    assert cc3d.connected_components(~found).max() == 1
    assert found.sum() == pytest.approx(ball.sum(), rel=0.02)


def test_specks_of_wrong_belief_dissolve():
    hu, lungs = two_tissues(edge=48)
    specks = np.random.default_rng(1).random(hu.shape) > 0.97
    refined = sobel_diffusion(two_maps(np.where(specks, 0.8, 0.2)), hu, lungs, ISOTROPIC, RefineConfig())
    assert specks.sum() > 900
    assert (refined[1] > refined[0]).sum() == 0


def test_probabilities_stay_probabilities_and_nothing_leaks_across_the_pleura():
    rng = np.random.default_rng(2)
    hu = rng.normal(-700, 200, (20, 22, 70)).astype(np.int16)
    lungs = rng.random(hu.shape) > 0.3
    lungs[..., 33:37] = False
    posterior = rng.dirichlet(np.ones(6), hu.shape).transpose(3, 0, 1, 2).astype(np.float32)
    refined = sobel_diffusion(posterior, hu, lungs, (1.0, 0.7, 0.7), RefineConfig())
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=2e-6)  # float32
    assert refined.min() >= 0
    np.testing.assert_array_equal(refined[:, ~lungs], posterior[:, ~lungs])
    other_side = posterior.copy()
    other_side[:, :, :, 37:] = np.roll(other_side[:, :, :, 37:], 1, axis=0)
    again = sobel_diffusion(other_side, hu, lungs, (1.0, 0.7, 0.7), RefineConfig())
    np.testing.assert_array_equal(again[..., :33], refined[..., :33])


def explicit(u0: np.ndarray, g: np.ndarray, spacing: tuple, pull: float, taus: np.ndarray) -> np.ndarray:
    """The equation written as it stands, in float64, by explicit steps of those lengths; u0 (k, z, y, x)."""
    g = np.pad(g.astype(float), 1)
    u0 = np.pad(u0.astype(float), ((0, 0), (1, 1), (1, 1), (1, 1)))
    u = u0
    for tau in taus:
        change = pull * (u0 - u)
        for axis, mm in enumerate(spacing):
            for way in (-1, 1):
                beside = np.roll(g, way, axis)
                face = (g + beside) / 2 * (g > 0) * (beside > 0)
                change += (min(spacing) / mm) ** 2 * face * (np.roll(u, way, axis + 1) - u)
        u = u + tau * change
    return u[:, 1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_the_fast_kernel_takes_the_published_steps(n):
    """Fast Explicit Diffusion as in the paper, two cycles of n varied steps, over a lung with holes and gaps."""
    rng = np.random.default_rng(3)
    spacing = (3.0, 1.0, 1.5)
    hu = rng.normal(-700, 150, (9, 14, 150)).astype(np.int16)
    lungs = ndimage.binary_opening(rng.random(hu.shape) > 0.2)
    lungs[..., 40:120] = False
    posterior = rng.random((2, *hu.shape)).astype(np.float32)
    fastest = 4 * (1 / 9 + 1 + 1 / 2.25)
    limit = 2 / (fastest + RefineConfig().pull)
    config = RefineConfig(flow_time=2 * limit * (n * n + n) / 3 * 0.99)
    taus = 0.99 * limit / (2 * np.cos(np.pi * (2 * np.arange(n) + 1) / (4 * n + 2)) ** 2)
    planned = steps(config.flow_time, config.pull, fastest)
    assert len(planned) == 2 * n
    assert 2 * taus.sum() == pytest.approx(config.flow_time)
    u = explicit(posterior, conductance(hu, lungs, spacing, config), spacing, config.pull, np.tile(taus, 2))
    refined = sobel_diffusion(posterior, hu, lungs, spacing, config)
    expected = np.where(lungs, np.maximum(u, 0), posterior)
    np.testing.assert_allclose(refined, expected, atol=2e-6)  # float32; 2e-7 a step


def test_few_long_steps_end_where_many_short_ones_do():
    """Density that leans on belief in noise: 18 steps beside 210 of a third of the explicit limit."""
    hu, lungs = two_tissues(noise_hu=60.0)
    blurred = two_maps(np.broadcast_to(ndimage.gaussian_filter1d((np.arange(48) >= 27) * 1.0, 4.0), hu.shape))
    tempered = temper(blurred, hu, [(-850, 100), (-600, 100)], 0.35)
    config = RefineConfig()
    flow = conductance(hu, lungs, ISOTROPIC, config)
    settled = explicit(tempered, flow, ISOTROPIC, config.pull, np.full(210, config.flow_time / 210))
    error = np.abs(sobel_diffusion(tempered, hu, lungs, ISOTROPIC, config) - settled)
    assert len(steps(config.flow_time, config.pull, 12.0)) == 18
    assert error.max() < 0.05
    assert error.mean() < 2e-3
    assert np.abs(tempered - settled).max() > 0.3


def test_rounding_does_not_grow_in_long_cycles():
    hu, lungs = two_tissues((12, 16, 24), edge=24)
    posterior = np.full((1, *hu.shape), 0.7, np.float32)
    refined = sobel_diffusion(posterior, hu, lungs, ISOTROPIC, RefineConfig(flow_time=1000.0))
    np.testing.assert_allclose(
        refined, 0.7, atol=1e-5
    )  # 190 steps, the longest 1800 times the explicit limit


def test_two_runs_and_two_threads_agree_to_the_bit():
    rng = np.random.default_rng(4)
    hu, lungs = two_tissues()
    posterior = rng.random((6, *hu.shape)).astype(np.float32)
    one = sobel_diffusion(posterior, hu, lungs, ISOTROPIC, RefineConfig())
    two = sobel_diffusion(posterior, hu, lungs, ISOTROPIC, RefineConfig(), threads=2)
    np.testing.assert_array_equal(one, two)


def test_thick_slices_borrow_less_from_their_neighbours():
    hu, lungs = two_tissues(edge=48)
    speck = np.zeros(hu.shape)
    speck[12, 16, 24] = 1.0
    config = RefineConfig(flow_time=2.8)
    even = sobel_diffusion(two_maps(speck), hu, lungs, (1.0, 1.0, 1.0), config)[1]
    thick = sobel_diffusion(two_maps(speck), hu, lungs, (5.0, 1.0, 1.0), config)[1]
    assert even[13, 16, 24] == pytest.approx(even[12, 17, 24], rel=0.3)
    assert thick[13, 16, 24] < 0.25 * thick[12, 17, 24]


def test_an_edge_is_as_strong_on_every_grid():
    """A ramp of 15 HU per mm is 60 HU over 4 mm, whatever the voxels are."""
    for spacing in [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7)]:
        x_mm = np.arange(60) * spacing[2]
        hu = np.broadcast_to(-900 + 15 * x_mm, (12, 40, 60)).astype(np.float32)
        edges = sobel_edges(hu, np.ones(hu.shape, bool), spacing, RefineConfig())
        assert edges[6, 20, 30] == pytest.approx(60, rel=0.01)


def test_the_chest_wall_is_not_taken_for_a_tissue_border():
    hu = np.full((20, 20, 40), -850, np.int16)
    hu[..., 20:] = 50
    lungs = np.zeros(hu.shape, bool)
    lungs[..., :20] = True
    flow = conductance(hu, lungs, ISOTROPIC, RefineConfig())
    assert flow[lungs].min() > 0.99
    assert flow[~lungs].max() == 0


def test_feature_edges_stop_the_flow_by_their_weight():
    hu, lungs = two_tissues(edge=48, noise_hu=0)
    edges = np.zeros(hu.shape, np.float32)
    edges[..., 24] = 10
    closed = conductance(hu, lungs, ISOTROPIC, RefineConfig(feature_weight=1.0), edges)
    ignored = conductance(hu, lungs, ISOTROPIC, RefineConfig(feature_weight=0.0), edges)
    assert closed[0, 0, 24] == pytest.approx(1 / 101)
    assert ignored.min() == pytest.approx(1)


def test_tempering_leans_on_density_without_overruling_belief():
    posterior = np.full((2, 1, 1, 3), 0.5, np.float32)
    posterior[:, 0, 0, 2] = 0.999, 0.001
    hu = np.array([[[-850, -600, -600]]], np.int16)
    u0 = temper(posterior, hu, [(-850, 60), (-600, 60)], 0.35)
    assert u0[0, 0, 0, 0] > 0.9
    assert u0[1, 0, 0, 1] > 0.9
    assert u0[0, 0, 0, 2] > 0.95
    np.testing.assert_allclose(u0.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(temper(posterior, hu, [(0, 1), (0, 1)], 0.0), posterior)


def test_an_empty_lung_changes_nothing():
    hu, lungs = two_tissues()
    posterior = np.random.default_rng(5).random((2, *hu.shape)).astype(np.float32)
    assert lung_box(~lungs) is None
    np.testing.assert_array_equal(
        sobel_diffusion(posterior, hu, ~lungs, ISOTROPIC, RefineConfig()), posterior
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flow_time": -1.0}, "flow_time is -1.0"),
        ({"flow_time": float("inf")}, "flow_time"),
        ({"pull": -0.1}, "pull -0.1"),
        ({"edge_hu": 0.0}, "edge_hu"),
        ({"feature_weight": 2.0}, "between 0 and 1"),
        ({"evident_solid": 1.5}, "evident_solid is 1.5"),
        ({"hu_power": -0.1}, "hu_power"),
    ],
)
def test_settings_without_meaning_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        RefineConfig(**settings)


def test_maps_on_another_grid_are_refused_in_words():
    hu, lungs = two_tissues()
    with pytest.raises(ValueError, match="not on one grid"):
        sobel_diffusion(np.zeros((2, 3, 3, 3), np.float32), hu, lungs, ISOTROPIC, RefineConfig())
    with pytest.raises(ValueError, match="no feature_edges"):
        sobel_diffusion(
            np.zeros((2, *hu.shape), np.float32), hu, lungs, ISOTROPIC, RefineConfig(feature_weight=0.5)
        )


def test_a_whole_chest_at_2_mm_takes_seconds():
    shape = (100, 100, 120)
    rng = np.random.default_rng(6)
    hu = rng.normal(-850, 30, shape).astype(np.int16)
    posterior = rng.random((6, *shape)).astype(np.float32)
    sobel_diffusion(
        posterior[:, :8, :8, :8], hu[:8, :8, :8], np.ones((8, 8, 8), bool), ISOTROPIC, RefineConfig()
    )
    begun = time.process_time()
    sobel_diffusion(posterior, hu, np.ones(shape, bool), ISOTROPIC, RefineConfig())
    assert time.process_time() - begun < 3  # .3 s measured on one core; a scalar loop takes 3 or more


def even_lung(hu: int, shape: tuple[int, int, int] = (4, 4, 4), **voxels: object) -> Voxels:
    """A lung of one density."""
    lungs = np.ones(shape, bool)
    even = Voxels(np.full(shape, hu, np.int16), lungs, ~lungs, lungs, -860.0, ISOTROPIC)
    return even._replace(**voxels)


def sure(tissue: Tissue, share: float, shape: tuple[int, int, int] = (4, 4, 4)) -> np.ndarray:
    """A mixture that is that sure of a tissue in every voxel of it, and of healthy lung otherwise."""
    posterior = np.zeros((6, *shape), np.float32)
    posterior[tissue - 1], posterior[0] = share, 1 - share
    return posterior


def test_healthy_voxels_are_as_dense_as_the_lungs_are_at_that_breath():
    """Breathed out, a healthy lung has the density of ground glass at full inspiration."""
    shape = (8, 8, 8)  # large enough to be a lesion
    posterior, out = sure(Tissue.GROUND_GLASS, 0.45, shape), even_lung(-700, shape, mode_hu=-710.0)
    healthy = by_density(posterior, out, RefineConfig())[0]
    assert (healthy > 0.5).all()
    assert (by_density(posterior, even_lung(-700, shape), RefineConfig())[0] < 0.5).all()
    by_plane = out._replace(mode_hu=np.full((8, 1, 1), -710.0))
    np.testing.assert_array_equal(by_density(posterior, by_plane, RefineConfig())[0], healthy)


@pytest.mark.parametrize(("share", "stays"), [(0.6, True), (0.4, False)])
def test_a_vessel_in_a_lesion_is_the_lesions_and_one_in_healthy_lung_may_be_one(share, stays):
    """Where the mixture sees emphysema a known vessel is emphysema; where it does not, density has its say."""
    posterior, solid = sure(Tissue.EMPHYSEMA, share), even_lung(-600)
    known = solid._replace(vessels=solid.lungs)
    assert (by_density(posterior, solid, RefineConfig())[1] < 0.5).all()
    assert ((by_density(posterior, known, RefineConfig())[1] > 0.5) == stays).all()


@pytest.mark.parametrize("contrast_hu", [130, 300])
def test_contrast_and_what_it_blurs_into_says_nothing(contrast_hu):
    """A consolidation that cells half see: the vessel in it would decide for it, and so would the vessel's border."""
    shape = (12, 12, 12)
    posterior, voxels = sure(Tissue.CONSOLIDATION, 0.4, shape), even_lung(-20, shape)
    voxels.hu[6, 6] = contrast_hu
    leaned = by_density(posterior, voxels, RefineConfig())
    as_before = (leaned == posterior).all(axis=0)
    beside = np.zeros(shape, bool)
    beside[5:8, 6] = beside[6, 5:8] = True
    np.testing.assert_array_equal(as_before, beside & (contrast_hu == 300))


def test_switched_off_nothing_changes_and_nothing_is_shared():
    posterior, solid = sure(Tissue.EMPHYSEMA, 0.6), even_lung(-600)
    off = by_density(posterior, solid, OFF)
    np.testing.assert_array_equal(fuse(off, solid, OFF), posterior)
    assert not np.shares_memory(off, posterior)


LESIONS = {"known": np.s_[1:4, 1:4, 1:4], "small": np.s_[1:4, 1:4, 8:11], "large": np.s_[2:10, 6:12, 14:24]}


def lesions(tissue: Tissue) -> tuple[np.ndarray, np.ndarray]:
    """What density says of a lung with three lesions of a tissue, and the mixture, which knew one of them."""
    posterior = np.zeros((6, 12, 12, 24), np.float32)
    posterior[0] = 1
    leaned = posterior.copy()
    for place in LESIONS.values():
        leaned[(0, *place)], leaned[(tissue - 1, *place)] = 0.2, 0.8
    known = LESIONS["known"]
    posterior[(0, *known)], posterior[(tissue - 1, *known)] = 0.4, 0.6
    leaned[:, 0] = posterior[:, 0] = 0  # outside the lung
    return leaned, posterior


@pytest.mark.parametrize(
    ("tissue", "unseen", "gone"),
    [
        (Tissue.GROUND_GLASS, None, {"small"}),
        (Tissue.CONSOLIDATION, None, {"small"}),
        (Tissue.GROUND_GLASS, np.s_[2:8], {"small", "large"}),  # most of it vessel
        (Tissue.GROUND_GLASS, np.s_[2:7], {"small"}),
        (Tissue.CONSOLIDATION, np.s_[2:7], {"small", "large"}),  # vessels are as dense: half is needed
        (Tissue.CONSOLIDATION, np.s_[2:6], {"small"}),
        (Tissue.FIBROSIS, None, {"small", "large"}),
    ],
)
def test_a_lesion_that_the_mixture_did_not_know_must_be_large_evident_and_no_texture(tissue, unseen, gone):
    leaned, posterior = lesions(tissue)
    voxels = even_lung(-600, leaned.shape[1:])
    voxels.lungs[0] = False
    evident = voxels.lungs.copy()
    if unseen:
        evident[unseen] = False
    left = without_artefacts(
        leaned.copy(), posterior, voxels._replace(evident=evident), RefineConfig(speck_ml=0.48)
    )
    for name, place in LESIONS.items():
        kept = posterior if name in gone else leaned
        np.testing.assert_array_equal(left[(slice(None), *place)], kept[(slice(None), *place)])
    assert not left[:, 0].any()


@pytest.mark.parametrize(
    ("contrast_hu", "beside", "stays"), [(90, 8, True), (250, 8, False), (250, 3, False)]
)
def test_a_vessel_full_of_contrast_is_no_consolidation(contrast_hu, beside, stays):
    """Nor is one whose border, of which it shows half as much, is no denser than tissue: 3 of 8 rows are vessel."""
    leaned, posterior = lesions(Tissue.CONSOLIDATION)
    voxels = even_lung(60, leaned.shape[1:])
    voxels.hu[2 : 2 + beside] = contrast_hu
    evident = voxels.lungs.copy()
    evident[5:] = beside == 8
    left = without_artefacts(
        leaned.copy(), posterior, voxels._replace(evident=evident), RefineConfig(speck_ml=0.48)
    )
    place = (slice(None), *LESIONS["large"])
    np.testing.assert_array_equal(left[place], (leaned if stays else posterior)[place])


@pytest.mark.parametrize(
    ("tissue", "thick_vox", "stays"),
    [(Tissue.GROUND_GLASS, 1, False), (Tissue.GROUND_GLASS, 2, True), (Tissue.CONSOLIDATION, 1, True)],
)
def test_a_layer_of_one_voxel_is_a_border_and_no_ground_glass(tissue, thick_vox, stays):
    """Density lays a layer along a lesion that the mixture knew, 2 mm a voxel."""
    posterior = sure(tissue, 0.0, (12, 12, 24))
    known, layer = np.s_[2:10, 2:10, 2:6], np.s_[2:10, 2 : 2 + thick_vox, 6:22]
    posterior[(0, *known)], posterior[(tissue - 1, *known)] = 0.3, 0.7
    leaned = posterior.copy()
    leaned[(0, *layer)], leaned[(tissue - 1, *layer)] = 0.3, 0.7
    left = without_artefacts(leaned, posterior, even_lung(-500, (12, 12, 24)), RefineConfig())
    assert ((left[(tissue - 1, *layer)] > 0.5) == stays).all()
    assert (left[(tissue - 1, *known)] > 0.5).all()


@pytest.mark.parametrize(("tissue", "reach_vox"), [(Tissue.FIBROSIS, 2), (Tissue.CONSOLIDATION, 8)])
def test_fibrosis_follows_no_vessel_away_from_where_cells_show_it(tissue, reach_vox):
    """A known lesion from which density draws a strand of 8 voxels of 2 mm; fibrosis gets half a cell of it."""
    posterior = sure(tissue, 0.0, (12, 12, 24))
    known, strand = np.s_[2:10, 2:10, 2:10], np.s_[5:7, 5:7, 10:18]
    posterior[(0, *known)], posterior[(tissue - 1, *known)] = 0.3, 0.7
    leaned = posterior.copy()
    leaned[(0, *strand)], leaned[(tissue - 1, *strand)] = 0.3, 0.7
    left = without_artefacts(leaned, posterior, even_lung(-500, (12, 12, 24)), RefineConfig())
    kept = left[(tissue - 1, *strand)] > 0.5
    assert kept[..., :reach_vox].all()
    assert not kept[..., reach_vox:].any()


def test_fusion_moves_borders_keeps_volumes_and_makes_no_lesion():
    """A border that the density moves outwards, a lesion that density makes, and what fusion may do of both."""
    hu, lungs = two_tissues((16, 24, 48), edge=40, noise_hu=40.0)
    hu[4:12, 6:14, 8:16] = -600
    seen = np.zeros(hu.shape, np.float32)
    seen[..., 42:] = 1
    posterior = np.zeros((6, *hu.shape), np.float32)
    posterior[2] = ndimage.gaussian_filter(seen, 2.0)
    posterior[2, 4:12, 6:14, 8:16] = 0.4
    posterior[0] = 1 - posterior[2]
    voxels = Voxels(hu, lungs, ~lungs, lungs, -850.0, ISOTROPIC)
    believed = by_density(posterior, voxels, RefineConfig())
    glass = {}
    for name, u in {"mixture": posterior, "density": believed}.items():
        fused = fuse(u, voxels, RefineConfig())
        np.testing.assert_allclose(fused.sum(axis=0), 1, atol=1e-5)
        before, glass[name] = (maps.argmax(axis=0) == 2 for maps in (u, fused))
        assert glass[name].sum() == pytest.approx(before.sum(), rel=0.02)
        assert (glass[name] != before).any(), "borders move"
        bodies = cc3d.connected_components(glass[name])
        assert set(np.unique(bodies[glass[name]])) == set(np.unique(bodies[glass[name] & before]))
    assert not glass["mixture"][..., :30].any()
    assert glass["density"][6:10, 8:12, 10:14].all()


def test_a_crumb_is_called_what_lies_around_it():
    labels = np.ones((8, 8, 20), np.uint8)
    labels[0] = 0
    labels[:, :, 10:] = Tissue.FIBROSIS
    labels[4, 4, 4] = labels[3:5, 4, 14] = Tissue.CONSOLIDATION
    labels[5:7, 5:7, 17:19] = labels[1:3, 0:2, 0:2] = Tissue.EMPHYSEMA  # eight voxels: enough
    labels[5:8, 0:3, 1:4] = Tissue.CAVITY
    labels[6, 1, 2] = labels[3, 6, 6] = Tissue.CONSOLIDATION  # what is left in a wall, and beside one
    labels[3, 6, 7] = Tissue.CAVITY
    expected = labels.copy()
    expected[4, 4, 4], expected[3:5, 4, 14] = Tissue.HEALTHY, Tissue.FIBROSIS
    expected[6, 1, 2], expected[3, 6, 6] = Tissue.CAVITY, Tissue.HEALTHY
    np.testing.assert_array_equal(without_crumbs(labels.copy(), fewest_vox=8), expected)
    np.testing.assert_array_equal(without_crumbs(labels.copy(), fewest_vox=0), labels)
    healthy = np.ones((4, 4, 4), np.uint8)
    np.testing.assert_array_equal(without_crumbs(healthy.copy(), fewest_vox=100), healthy)
