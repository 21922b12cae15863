from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scans import chest_hu, diagonal
from scipy import ndimage
from scipy.spatial.transform import Rotation

from diffseglung.grid import (
    Grid,
    canonical_axes,
    canonical_grid,
    crop_grid,
    largest_of,
    reorder,
    resample_labels,
    resample_map,
    respace,
    respaced_grid,
    restore,
)

ORIENTATIONS = [
    (order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)
]


@settings(deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    turn_deg=st.tuples(*(st.floats(-14, 14),) * 3),
    spacing_mm=st.tuples(*(st.floats(0.3, 6),) * 3),
)
def test_any_orientation_becomes_canonical_and_goes_back(orientation, turn_deg, spacing_mm):
    order, flips = orientation
    stored = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    affine = np.eye(4)
    # The stored axes are the patient's, shuffled and reversed, then turned as a whole by a little.
    axes = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()[:, ::-1]
    affine[:3, :3] = axes[:, list(order)] * np.where(flips, -1, 1) * spacing_mm
    affine[:3, 3] = (11.0, -7.0, 300.0)
    grid = Grid(stored.shape, affine)

    found = canonical_axes(grid)
    canonical, own = reorder(stored, *found), canonical_grid(grid, *found)

    assert canonical.shape == own.shape
    toward = own.affine[:3, :3][::-1] / own.spacing_mm  # rows: head, back, left
    assert (np.diag(toward) > 0.85).all()
    for index in np.ndindex(own.shape):
        home = np.linalg.inv(affine) @ (*own.at_mm(index), 1)
        assert np.allclose(home, np.round(home), atol=1e-9)
        assert canonical[index] == stored[tuple(np.round(home[:3]).astype(int))]
    assert np.array_equal(restore(canonical, *found), stored)


def test_every_one_of_the_48_orientations_is_told_apart():
    seen = set()
    for order, flips in ORIENTATIONS:
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, ::-1][:, list(order)] * np.where(flips, -1, 1)
        seen.add(canonical_axes(Grid((5, 6, 7), affine)))
    assert len(seen) == 48


def test_a_cropped_grid_puts_its_voxels_where_they_were():
    grid = Grid((20, 30, 40), diagonal(2.0, 1.0, 0.5))
    cropped = crop_grid(grid, (slice(3, 9), slice(None), slice(-5, None)))
    assert cropped.shape == (6, 30, 5)
    assert np.allclose(cropped.at_mm((1, 2, 3)), grid.at_mm((4, 2, 38)))


@pytest.mark.parametrize("cut", [slice(5, 5), slice(0, 10, 2)])
def test_a_crop_that_is_no_box_is_refused(cut):
    with pytest.raises(ValueError, match="axis y"):
        crop_grid(Grid((20, 30, 40), diagonal(2, 1, 1)), (slice(None), cut, slice(None)))


@settings(deadline=None)
@given(
    spacing_mm=st.tuples(*(st.floats(0.5, 4),) * 3),
    target_mm=st.tuples(*(st.floats(0.5, 4),) * 3),
)
def test_neither_grid_of_a_respacing_reaches_past_the_other(spacing_mm, target_mm):
    source = Grid((9, 11, 13), diagonal(*spacing_mm))
    target = respaced_grid(source, target_mm)
    ones = np.ones(source.shape, np.float32)
    there = resample_map(ones, source, target, fill=-1)
    back = resample_map(there, target, source, fill=-1)
    assert there.min() == 1
    assert back.min() == 1


def test_resampling_a_ramp_gives_the_ramp_between_the_outermost_centres():
    source = Grid((12, 14, 16), diagonal(3.0, 2.0, 1.0))
    target = respaced_grid(source, (1.3, 2.7, 0.8))

    def ramp(grid: Grid) -> np.ndarray:
        places = np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        return places @ (0.5, -2.0, 3.0)

    error = np.abs(resample_map(ramp(source), source, target) - ramp(target))
    assert error[3:-3, 1:-1, 2:-2].max() < 1e-3  # float32 on values of hundreds


def test_resampling_to_the_same_grid_changes_nothing():
    hu = chest_hu()
    turned = diagonal(2.0, 1.1, 0.9)
    turned[:3, :3] = Rotation.from_euler("zy", (9, 4), degrees=True).as_matrix() @ turned[:3, :3]
    grid = Grid(hu.shape, turned)
    assert np.array_equal(resample_map(hu, grid, grid), hu)
    assert np.array_equal(resample_labels(hu > 0, grid, grid), hu > 0)


@pytest.mark.parametrize("target_mm", [(2.0, 2.0, 2.0), (2.0, 1.1, 2.0), (0.7, 1.5, 3.0)])
def test_respacing_is_a_gaussian_and_a_linear_reading(target_mm):
    hu = chest_hu()
    source = Grid(hu.shape, diagonal(1.5, 1.1, 0.9))
    target = respaced_grid(source, target_mm)
    full_width_mm = np.sqrt(np.maximum(0, np.square(target_mm) - np.square(source.spacing_mm)))
    sigma = full_width_mm / (2 * np.sqrt(2 * np.log(2))) / source.spacing_mm
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), sigma, mode="nearest", truncate=3.0)
    found = respace(hu, source, target)
    assert found.dtype == np.float32
    assert np.abs(found - resample_map(smooth, source, target)).max() < 0.02
    box = (slice(1, 4), slice(2, 9), slice(0, 5))
    assert np.allclose(respace(hu, source, target, box), found[box], atol=1e-3)


def test_respacing_to_the_same_spacing_changes_nothing():
    hu = chest_hu()
    grid = Grid(hu.shape, diagonal(1.5, 1.1, 0.9))
    assert np.array_equal(respace(hu, grid, grid), hu)
    one = Grid((1, 6, 6), diagonal(1.5, 1.1, 0.9))
    assert np.array_equal(respace(np.ones((1, 6, 6)), one, one), np.ones((1, 6, 6)))


def test_labels_survive_a_finer_grid_and_back():
    labels = np.random.default_rng(0).integers(0, 7, (6, 7, 8)).astype(np.uint8)
    grid = Grid(labels.shape, diagonal(3, 3, 3))
    finer = respaced_grid(grid, (1.0, 1.0, 1.0))
    assert np.array_equal(resample_labels(resample_labels(labels, grid, finer), finer, grid), labels)


def test_outside_the_source_is_the_fill():
    grid = Grid((6, 6, 6), diagonal(2, 2, 2))
    aside = Grid((6, 6, 6), grid.affine + np.array([[0, 0, 0, 500.0]] + [[0] * 4] * 3))
    assert (resample_map(np.ones((6, 6, 6)), grid, aside, fill=0.25) == 0.25).all()
    assert not resample_labels(np.ones((6, 6, 6)), grid, aside).any()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.3, 0.6), (3.0, 2.5, 4.0)])
def test_the_largest_of_several_maps_is_found_without_bringing_them_over(spacing_mm):
    rng = np.random.default_rng(0)
    source = Grid((9, 11, 10), diagonal(2.0, 2.0, 2.0))
    target = respaced_grid(crop_grid(source, (slice(2, 8), slice(1, 9), slice(3, 9))), spacing_mm)
    maps = rng.random((4, *source.shape), np.float32)
    where = rng.random(target.shape) < 0.7
    fine = np.stack([resample_map(one, source, target) for one in maps])
    first, second = np.sort(fine, axis=0)[:-3:-1]
    clear = where & (first - second > 1e-5)
    found = largest_of(maps, source, target, where)
    assert np.array_equal(found[clear], fine.argmax(axis=0)[clear] + 1)
    assert not found[~where].any()


def test_beyond_the_outermost_voxels_the_largest_map_is_theirs():
    source, wider = Grid((2, 2, 2), diagonal(2.0, 2.0, 2.0)), Grid((6, 2, 2), diagonal(2.0, 2.0, 2.0))
    wider.affine[2, 3] -= 4.0
    maps = np.zeros((3, 2, 2, 2), np.float32)
    maps[1, 0], maps[2, 1] = 1, 1
    found = largest_of(maps, source, wider, np.ones(wider.shape, bool))
    assert found[:, 0, 0].tolist() == [2, 2, 2, 3, 3, 3]
    assert not largest_of(maps * 0, source, wider, np.ones(wider.shape, bool)).any()


def test_the_largest_map_is_sought_along_parallel_axes_only():
    source = Grid((3, 3, 3), diagonal(1.0, 1.0, 1.0))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix() @ source.affine[:3, :3]
    with pytest.raises(ValueError, match="parallel"):
        largest_of(
            np.ones((2, 3, 3, 3), np.float32), source, Grid((3, 3, 3), turned), np.ones((3, 3, 3), bool)
        )
    with pytest.raises(ValueError, match="not on their grids"):
        largest_of(np.ones((2, 3, 3, 4), np.float32), source, source, np.ones((3, 3, 3), bool))
