"""Enclosure: a cavity is air behind a dense wall, and neither a bulla nor a bronchus."""

import numpy as np
import pytest
from scipy import ndimage

from diffseglung.cavity import CavityConfig, enclosed_share, find_cavities

SPACING = (2.0, 2.0, 2.0)
CENTRE_MM = (60.0, 60.0, 60.0)


def lung(spacing_mm=SPACING, size_mm=120.0, noise_hu=25.0):
    """A block of lung at -830 HU, its mask one voxel inside, and the distance of each voxel to the centre in mm."""
    shape = tuple(round(size_mm / mm) for mm in spacing_mm)
    hu = np.random.default_rng(0).normal(-830, noise_hu, shape)
    lungs = np.zeros(shape, bool)
    lungs[1:-1, 1:-1, 1:-1] = True
    grid = np.indices(shape) * np.reshape(spacing_mm, (3, 1, 1, 1)) - np.reshape(CENTRE_MM, (3, 1, 1, 1))
    return hu, lungs, grid


def radius(grid):
    return np.sqrt((grid**2).sum(axis=0))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("spacing_mm", [SPACING, (2.5, 1.0, 1.0), (5.0, 1.5, 1.5)])
def test_a_hole_behind_a_wall_is_found_with_its_wall(spacing_mm):
    hu, lungs, grid = lung(spacing_mm)
    r = radius(grid)
    hu[r < 16] = 0
    hu[r < 12] = -980
    cavity = find_cavities(hu, lungs, np.zeros_like(lungs), spacing_mm, CavityConfig())
    assert dice(cavity, r < 16) > 0.9


def test_healthy_lung_inside_the_mask_holds_no_cavity():
    hu, lungs, _ = lung()
    hu[:] -= 30  # at -860 HU all of it is "air"
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()


def test_a_small_lumen_in_a_thick_wall_is_found_though_blur_mixes_its_air_with_the_wall():
    hu, lungs, grid = lung()
    r = radius(grid)
    hu[r < 15] = 30
    hu[r < 8] = -960
    hu = ndimage.gaussian_filter(hu, 1.2)
    assert (hu[r < 8] < -850).mean() < 0.3
    cavity = find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig())
    assert dice(cavity, r < 15) > 0.85


def test_a_lumen_of_less_than_a_millilitre_must_be_shut_in_all_round():
    """As a honeycomb's cyst is not, which lies in fibrosis."""
    hu, lungs, grid = lung()
    r = radius(grid)
    hu[r < 13] = 30
    hu[r < 6] = -960
    assert 0.5 < (r < 6).sum() * 0.008 < 1
    nowhere = np.zeros_like(lungs)
    assert dice(find_cavities(hu, lungs, nowhere, SPACING, CavityConfig()), r < 13) > 0.85
    hu[(r >= 6) & (grid[2] > 2)] = -400  # a third of the wall is no wall
    assert not find_cavities(hu, lungs, nowhere, SPACING, CavityConfig()).any()
    assert find_cavities(hu, lungs, nowhere, SPACING, CavityConfig(small_shell=0.65)).any()


def test_lung_that_dense_tissue_shuts_in_is_no_cavity():
    """As between lobules of a pneumonia: enclosed as a lumen is, and no darker than the lung around it."""
    hu, lungs, grid = lung()
    r = radius(grid)
    hu[(r < 16) & (r >= 12)] = 30
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()
    assert find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig(dark=0.0)).any()


def test_the_tip_of_a_lung_between_heart_and_ribs_is_no_cavity_however_empty():
    hu, lungs, grid = lung()
    r = radius(grid)
    tip = r < 12
    lungs &= tip | (grid[2] < -30)
    hu[~lungs] = 40
    hu[tip] = -960
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()
    assert find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig(own=0.0)).any()


def test_an_emphysema_hole_is_no_cavity():
    hu, lungs, grid = lung()
    hu[radius(grid) < 14] = -980
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()


def test_a_bulla_at_the_chest_wall_is_no_cavity():
    """Half of its surface is chest wall, half is lung."""
    hu, lungs, grid = lung()
    lungs[:, :, 30:] = False
    hu[:, :, 30:] = 40
    hu[(radius(grid) < 14) & lungs] = -980
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()


def test_a_bronchus_in_dense_lung_is_no_cavity_whether_the_airway_tree_knows_it_or_not():
    hu, lungs, grid = lung()
    across = np.hypot(grid[1], grid[2])
    hu[across < 14] = 0
    tube = (across < 4) & (np.abs(grid[0]) < 50)
    hu[tube] = -990
    unknown = np.zeros_like(lungs)
    assert not find_cavities(hu, lungs, unknown, SPACING, CavityConfig()).any()
    half_known = tube & (grid[0] < 0)
    hu[radius(grid) < 10] = -990  # bulging, so that shape alone would let it pass
    assert find_cavities(hu, lungs, unknown, SPACING, CavityConfig(compact=0.0)).any()
    assert not find_cavities(hu, lungs, half_known, SPACING, CavityConfig(compact=0.0)).any()


def test_a_pinhole_in_the_wall_does_not_let_the_cavity_go():
    hu, lungs, grid = lung()
    hu[:] -= 40
    r = radius(grid)
    hu[r < 17] = 0
    hole = (np.hypot(grid[1], grid[2]) < 1.5) & (grid[0] > 0) & (r < 17)
    hu[(r < 12) | hole] = -980
    cavity = find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig())
    assert dice(cavity, r < 17) > 0.85


def test_a_wall_that_is_mostly_missing_lets_the_cavity_go():
    hu, lungs, grid = lung()
    hu[:] -= 40
    r = radius(grid)
    hu[(r < 16) & (grid[0] < 4)] = 0
    hu[r < 12] = -980
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()


def test_a_small_bubble_in_consolidation_is_below_the_stated_volume():
    hu, lungs, grid = lung()
    r = radius(grid)
    hu[r < 20] = 0
    hu[r < 4] = -980  # 0.27 ml
    assert not find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()
    hu[r < 7] = -980  # 1.4 ml
    assert find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig()).any()


def test_a_cavity_in_consolidation_takes_only_its_own_wall():
    hu, lungs, grid = lung()
    r = radius(grid)
    hu[r < 40] = 0
    hu[r < 12] = -980
    cavity = find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig())
    assert cavity[r < 12].all()
    assert not cavity[r > 12 + CavityConfig().wall_mm + 2].any()


def test_fluid_under_a_level_belongs_to_the_cavity_and_a_vessel_does_not():
    hu, lungs, grid = lung()
    r = radius(grid)
    hu[np.hypot(grid[0], grid[1]) < 2.5] = 40  # a vessel through the middle, from side to side
    hu[r < 22] = 20
    hu[(r < 18) & (grid[1] < 4)] = -980  # lies on the back: the lower half is full
    cavity = find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig())
    assert dice(cavity, r < 22) > 0.95
    assert not cavity[r > 28].any()
    wall_alone = find_cavities(hu, lungs, np.zeros_like(lungs), SPACING, CavityConfig(fluid_mm=0.0))
    assert dice(wall_alone, r < 22) < dice(cavity, r < 22) - 0.03


def test_enclosed_share_of_a_half_walled_sphere_is_a_half():
    _, _, grid = lung((1.0, 1.0, 1.0), 120.0)
    r = radius(grid)
    dense = (r >= 20) & (r < 24) & (grid[0] < 0)
    assert enclosed_share(r < 20, dense) == pytest.approx(0.5, abs=0.06)


def test_a_vessel_three_voxels_away_encloses_nothing_however_thick_the_slices():
    lumen, dense = np.zeros((5, 30, 30), bool), np.ones((5, 30, 30), bool)
    lumen[1:4, 10:20, 10:20] = True
    dense[:, 7:23, 7:23] = False
    assert enclosed_share(lumen, dense) == 0


def test_no_lung_no_cavity():
    hu, lungs, _ = lung()
    assert not find_cavities(hu, np.zeros_like(lungs), np.zeros_like(lungs), SPACING, CavityConfig()).any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"air_hu": (-850.0, -200.0)}, "below cavity.dense_hu"),
        ({"air_hu": ()}, "below cavity.dense_hu"),
        ({"shell": 1.5}, "shell 1.5 is a share"),
        ({"vessel_mm": -1.0}, "vessel_mm -1.0"),
        ({"min_ml": 0.0}, "min_ml"),
    ],
)
def test_settings_without_meaning_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        CavityConfig(**settings)
