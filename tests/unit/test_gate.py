import os
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_scans import chest_hu, diagonal

from diffseglung.gate import UnreadableScan, VolumeConfig, as_hu, check_grid, check_size
from diffseglung.grid import Grid
from diffseglung.volume import find_scans, read_volume

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


def test_values_twice_too_large_are_no_hounsfield_units():
    with pytest.raises(UnreadableScan, match=r"holds no air.*no shift explains both"):
        as_hu(chest_hu() * 2, CONFIG)
    some_air = chest_hu() * 2
    some_air[0] = -900
    with pytest.raises(UnreadableScan, match=r"not Hounsfield units: its values peak at -\d{4} and"):
        as_hu(some_air, CONFIG)


@pytest.mark.parametrize("shift", [-400, 300, 500])
def test_a_calibration_that_is_far_off_is_refused_and_says_by_how_much(shift):
    with pytest.raises(UnreadableScan, match=r"not calibrated|holds no") as refusal:
        as_hu(chest_hu() + shift, CONFIG)
    least, greatest = map(int, re.search(r"shifted by ([+-]\d+) to ([+-]\d+)", str(refusal.value)).groups())
    assert least <= shift <= greatest


def test_a_calibration_that_is_a_little_off_is_noted():
    _, notes = as_hu(chest_hu() + 130, CONFIG)
    assert re.search(r"calibration that is not right.*shifted by \+\d+ to \+\d+", notes[0])
    assert as_hu(chest_hu() + 20, CONFIG)[1] == ()


@settings(deadline=None, max_examples=30)
@given(
    noise_hu=st.floats(0, 120),
    fat=st.floats(0, 0.9),
    contrast_hu=st.integers(0, 120),
    lung_hu=st.integers(-960, -700),
    crop=st.integers(0, 5),
    filler=st.sampled_from([None, -3024, -2000, -1024, 0]),
    step=st.sampled_from([1, 2, 5]),
)
def test_no_chest_is_taken_for_one_out_of_calibration(
    noise_hu, fat, contrast_hu, lung_hu, crop, filler, step
):
    """Noisy, fat, contrast-enhanced, emphysematous, dense, cropped, padded, coarsely rounded: all pass."""
    rng = np.random.default_rng(0)
    hu = chest_hu().astype(float)
    hu[(hu < -700) & (hu > -900)] += lung_hu + 845
    soft = hu > -100
    hu[soft] += np.where(rng.random(hu.shape) < fat, -145, contrast_hu)[soft]
    hu = np.clip(hu + rng.normal(0, noise_hu, hu.shape), -1024, 3071)
    hu = (hu // step * step)[:, 1 + crop : 25 - crop, 1 + crop : 27 - crop]
    if filler is not None:
        hu = np.pad(hu, 4, constant_values=filler)
    _, notes = as_hu(hu, CONFIG)
    assert not notes or contrast_hu > 40


@settings(deadline=None, max_examples=30)
@given(values=arrays(st.sampled_from([np.int16, np.uint16, np.int32, np.float32]), (3, 4, 5)))
def test_whatever_the_values_they_pass_or_are_refused_in_words(values):
    with suppress(UnreadableScan):
        assert as_hu(values, CONFIG)[0].dtype == np.int16


def test_a_header_that_announces_more_than_memory_is_refused():
    with pytest.raises(UnreadableScan, match=r"announces 14\.9 GiB"):
        check_size(2000 * 2000 * 2000, 2, CONFIG)


@pytest.mark.skipif("DIFFSEGLUNG_CT" not in os.environ, reason="DIFFSEGLUNG_CT names no folder of real scans")
def test_every_real_scan_passes_without_a_note_and_shifted_by_1024_none_does():
    for scan in find_scans(os.environ["DIFFSEGLUNG_CT"]):
        if scan.kind != "dicom":
            hu = read_volume(scan.path).hu
            assert as_hu(hu, CONFIG)[1] == (), scan
            half = hu[:, :, : hu.shape[2] // 2]
            assert as_hu(half, CONFIG)[1] == (), scan
            for shift in (-1024, 1024):
                with pytest.raises(UnreadableScan, match=rf"shifted by \{shift:+d}"):
                    as_hu(hu + shift, CONFIG)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 255, 1000).reshape(10, 10, 10).astype(np.uint8), "8-bit"),
        (np.random.default_rng(0).normal(-1000, 20, (20, 20, 20)), "one material alone"),
        (np.random.default_rng(0).normal(-1000, 80, (20, 20, 20)), "holds no soft tissue"),
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
    "wrong",
    [
        {"max_slice_mm": 0},
        {"max_tilt_deg": 60},
        {"max_uneven": 0},
        {"min_soft": 2},
        {"max_gib": 0},
        {"max_shift_hu": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VolumeConfig(**wrong)
