"""Vessels are tubes: not sheets, not balls, and not the walls of a honeycomb."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from diffseglung.anatomy.vessels import find_vessels, lung_mode_hu, tubeness

SPACING_MM = (2.0, 2.0, 2.0)
Z, Y, X = np.mgrid[-20:21, -20:21, -20:21] * 2.0


def lung_with(shape: np.ndarray) -> np.ndarray:
    return np.where(shape, 0.0, -850.0).astype(np.float32)


def at_centre(shape: np.ndarray) -> float:
    return float(tubeness(lung_with(shape), (np.array([20]),) * 3, SPACING_MM)[0])


def vessels_in(hu: np.ndarray, airways: np.ndarray | None = None, scan_mm: float = 1.0) -> np.ndarray:
    lungs = np.zeros(hu.shape, bool)
    lungs[1:-1, 1:-1, 1:-1] = True
    airways = np.zeros_like(lungs) if airways is None else airways
    return find_vessels(hu, lungs & ~airways, airways, SPACING_MM, hilum_mm=25.0, scan_mm=scan_mm)[0]


@pytest.mark.parametrize("radius_mm", [2.5, 4.0])
def test_a_tube_outshines_a_sheet_and_a_ball(radius_mm):
    tube = at_centre(radius_mm**2 >= Y**2 + X**2)
    assert tube > 100
    assert tube > 5 * at_centre(np.abs(X) <= radius_mm)
    assert tube > 5 * at_centre(radius_mm**2 >= Z**2 + Y**2 + X**2)


def test_a_vessel_is_found_beside_a_consolidation_that_is_none():
    vessel = (Y + 24) ** 2 + X**2 <= 3.0**2
    consolidation = Z**2 + (Y - 16) ** 2 + X**2 <= 13.0**2
    hu = lung_with(vessel | consolidation)
    found, middle = vessels_in(hu), slice(6, -6)
    assert found[middle][vessel[middle]].all()
    assert not found[consolidation].any()


def test_a_vessel_is_whole_where_it_branches():
    trunk = (Y**2 + X**2 <= 3.5**2) & (Z <= 0)
    branches = ((Y - 0.8 * Z) ** 2 + X**2 <= 3.0**2) | ((Y + 0.8 * Z) ** 2 + X**2 <= 3.0**2)
    fork = trunk | (branches & (Z >= 0))
    found = vessels_in(lung_with(fork))
    middle = slice(4, -4)
    assert found[middle][fork[middle]].mean() > 0.99


def test_ground_glass_behind_a_vessel_stays_ground_glass():
    vessel = (Y + 10) ** 2 + X**2 <= 3.0**2
    hu = lung_with(vessel)
    glass = (Z > 0) & ~vessel
    hu[glass] = -600
    found = vessels_in(hu)
    clear = slice(4, 17)
    assert found[clear][vessel[clear]].mean() > 0.95
    assert found[glass].mean() < 0.02


@pytest.mark.parametrize(("density_hu", "called_vessel"), [(-550, 0.0), (0, 1.0)])
def test_what_is_as_thick_as_a_hilar_artery_and_light_is_ground_glass(density_hu, called_vessel):
    infiltrate = Y**2 + X**2 <= 6.0**2
    thin = (Y + 24) ** 2 + X**2 <= 3.0**2
    bronchus = (Y - 20) ** 2 + X**2 <= 4.0**2
    hu = lung_with(thin)
    hu[infiltrate], hu[bronchus] = density_hu, -980
    found, middle = vessels_in(hu, bronchus), slice(6, -6)
    assert found[middle][infiltrate[middle]].mean() == pytest.approx(called_vessel, abs=0.02)
    assert found[middle][thin[middle]].all()
    # Slices of 7 mm would make as much of an artery.
    assert vessels_in(hu, bronchus, scan_mm=7.0)[middle][infiltrate[middle]].mean() > 0.98


def test_vessels_that_are_blurred_are_vessels_where_the_lung_around_is_clear():
    blurred = gaussian_filter(lung_with(((Y**2 + X**2) <= 2.0**2) | ((Y - 7) ** 2 + X**2 <= 2.0**2)), 1.0)
    pair = blurred > -650
    middle = slice(6, -6)
    assert vessels_in(blurred)[middle][pair[middle]].mean() > 0.95


@pytest.mark.parametrize(("radius_mm", "density_hu", "called_vessel"), [(2.9, 0, 1.0), (4.0, -550, 0.0)])
def test_of_a_bundle_at_the_hilum_only_what_is_thick_at_half_its_height_is_ground_glass(
    radius_mm, density_hu, called_vessel
):
    """Both are thick at their foot, nowhere dense on average, and crowd each other."""
    off_y, off_x = ((A + 5) % 10 - 5 for A in (Y, X))
    bundle = (off_y**2 + off_x**2 <= radius_mm**2) & (np.maximum(np.abs(Y), np.abs(X)) <= 14)
    hu = lung_with(np.zeros(Z.shape, bool))
    hu[bundle] = density_hu
    hu = gaussian_filter(hu, 0.9)
    bronchus = (Y - 20) ** 2 + X**2 <= 4.0**2
    hu[bronchus] = -980
    middle_row, ends_off = bundle & (np.abs(Y) < 5), slice(6, -6)
    found = vessels_in(hu, bronchus)
    assert found[ends_off][middle_row[ends_off]].mean() == pytest.approx(called_vessel, abs=0.02)


def test_the_mode_is_the_healthy_lungs_density_although_a_third_is_diseased():
    rng = np.random.default_rng(0)
    hu = rng.normal(-870, 30, (20, 30, 30)).astype(np.float32)
    hu[:6] = rng.normal(-500, 90, (6, 30, 30))
    assert lung_mode_hu(hu, np.ones(hu.shape, bool)) == pytest.approx(-870, abs=8)
