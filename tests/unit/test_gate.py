import numpy as np
import pytest
from made_scans import chest_hu, diagonal

from diffseglung.gate import UnreadableScan, VolumeConfig, as_hu, check_grid
from diffseglung.grid import Grid

CONFIG = VolumeConfig()


def test_hounsfield_units_pass_unchanged():
    hu = chest_hu()
    assert np.array_equal(as_hu(hu, CONFIG)[0], hu)
    assert np.array_equal(as_hu(hu.astype(np.float64), CONFIG)[0], hu)


def test_a_crop_without_air_around_the_body_passes():
    hu = chest_hu()[:, 6:-6, 4:-4]
    assert as_hu(hu, CONFIG)[0].shape == hu.shape


def test_a_registration_result_padded_with_zero_passes_as_it_is():
    hu = np.pad(chest_hu(), 6)
    assert np.array_equal(as_hu(hu, CONFIG)[0], hu)


@pytest.mark.parametrize("filler", [-2000, -3024, -32768])
def test_filler_outside_the_field_of_view_becomes_air(filler):
    hu = chest_hu()
    hu[:, :4] = filler
    assert (as_hu(hu, CONFIG)[0][:, :4] == -1024).all()


@pytest.mark.parametrize("filler", [None, -2000, -1024, 0])
def test_an_image_shifted_by_1024_is_refused_and_the_shift_named(filler):
    shifted = chest_hu() + 1024
    if filler is not None:
        shifted[:, :4] = filler
    with pytest.raises(UnreadableScan, match=r"no air.*shifted by \+1024"):
        as_hu(shifted, CONFIG)


def test_an_intercept_applied_twice_is_refused_and_the_shift_named():
    with pytest.raises(UnreadableScan, match=r"no soft tissue.*shifted by -1024"):
        as_hu(chest_hu() - 1024, CONFIG)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 255, 1000).reshape(10, 10, 10).astype(np.uint8), "8-bit"),
        (np.linspace(0, 1, 1000).reshape(10, 10, 10), "rescaled picture"),
        (np.full((10, 10, 10), -1000), "every voxel is -1000"),
        (np.where(np.indices((9, 9, 9))[0] == 4, np.nan, -900.0), "81 of its 729 voxels are not numbers"),
        (np.zeros((9, 9, 9), np.complex64), "type complex64"),
    ],
)
def test_what_is_no_ct_is_refused(values, words):
    with pytest.raises(UnreadableScan, match=words):
        as_hu(values, CONFIG)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "words"),
    [
        ((1, 200, 200), (3, 1, 1), "flat image"),
        ((30, 200, 200), (7.5, 1, 1), "7.50 mm apart"),
        ((200, 200, 40), (1, 1, 1), "40 mm along stored axis x"),
        ((200, 200, 200), (1, 0, 1), "spacing or direction is broken"),
    ],
)
def test_a_grid_that_no_lung_can_be_measured_on_is_refused(shape, spacing_mm, words):
    with pytest.raises(UnreadableScan, match=words):
        check_grid(Grid(shape, diagonal(*spacing_mm)), CONFIG)


def test_a_tilted_gantry_is_refused_with_its_angle():
    affine = diagonal(3, 1, 1)
    affine[1, 0] = 3 * np.tan(np.radians(12))
    with pytest.raises(UnreadableScan, match=r"12\.0 degrees"):
        check_grid(Grid((100, 200, 200), affine), CONFIG)


def test_the_limits_of_the_grid_are_settings():
    grid = Grid((30, 200, 200), diagonal(7.5, 1, 1))
    check_grid(grid, VolumeConfig(max_slice_mm=8.0))


@pytest.mark.parametrize(
    "wrong", [{"max_slice_mm": 0}, {"max_tilt_deg": 60}, {"max_uneven": 0}, {"min_soft": 2}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VolumeConfig(**wrong)
