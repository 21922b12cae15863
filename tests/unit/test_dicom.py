import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_scans import as_jpeg_lossless, chest_hu, ct_series, enhanced_ct, save_series
from pydicom.uid import MRImageStorage, RLELossless, SegmentationStorage
from scipy.spatial.transform import Rotation

from diffseglung.volume import UnreadableScan, VolumeConfig, read_grid, read_volume, write_labels

HU = chest_hu()


@pytest.fixture
def series() -> list[pydicom.Dataset]:
    return ct_series(HU)


def refused(folder: Path, words: str, **how) -> None:
    with pytest.raises(UnreadableScan, match=words) as refusal:
        read_volume(folder, **how)
    assert str(folder) in str(refusal.value)


def test_slices_are_placed_by_position_whatever_their_names(series, tmp_path):
    volume = read_volume(save_series(tmp_path / "a", series))
    assert np.array_equal(volume.hu, HU)
    assert volume.spacing_mm == pytest.approx((4.0, 3.0, 2.5))
    assert np.allclose(volume.affine[:3, 3], (-40, -35, -100))
    assert volume.source.series_uid == "1.2.3.5"
    heights = [pydicom.dcmread(file).ImagePositionPatient[2] for file in volume.source.files]
    assert heights == sorted(heights)


def test_the_same_slices_under_other_names_are_the_same_scan(series, tmp_path):
    one = read_volume(save_series(tmp_path / "a", series, seed=1))
    other = read_volume(save_series(tmp_path / "b", series, seed=2))
    assert one.source.sha256 == other.source.sha256
    series[3].PixelData = bytes(len(series[3].PixelData))
    assert read_volume(save_series(tmp_path / "c", series)).source.sha256 != one.source.sha256


def test_one_slice_stands_for_its_series(series, tmp_path):
    folder = save_series(tmp_path / "a", series)
    save_series(folder, ct_series(chest_hu(seed=1)[:-2], series_uid="9.9"), prefix="other")
    assert np.array_equal(read_volume(folder / "000.dcm").hu, HU)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*(st.sampled_from([-1, 1]),) * 3),
    turn_deg=st.tuples(*(st.floats(-12, 12),) * 3),
)
def test_oblique_and_reformatted_series_keep_every_voxel_in_its_place(
    axes, signs, turn_deg, tmp_path_factory
):
    turn = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    along_row, along_column, step = (turn[:, axis] * sign for axis, sign in zip(axes, signs, strict=True))
    slices = ct_series(HU)
    for index, one in enumerate(slices):
        one.ImageOrientationPatient = [float(f"{v:.12g}") for v in (*along_row, *along_column)]
        one.ImagePositionPatient = [float(f"{v:.12g}") for v in (5.0, 6.0, 7.0) + index * 4.0 * step]
    folder = save_series(tmp_path_factory.mktemp("oblique"), slices)
    volume = read_volume(folder)
    toward = volume.affine[:3, :3][::-1] / volume.spacing_mm
    assert (np.diag(toward) > 0.85).all()
    assert not volume.source.flips[volume.source.order.index(0)]  # an axial stack runs feet to head
    to_index = np.linalg.inv(volume.affine)
    for place in [(0, 0, 0), (23, 25, 27), (7, 3, 19)]:
        number, row, column = place
        mm = (5.0, 6.0, 7.0) + number * 4.0 * step + row * 3.0 * along_column + column * 2.5 * along_row
        index = to_index @ (*mm, 1)
        assert np.allclose(index, np.round(index), atol=1e-4)
        assert volume.hu[tuple(np.round(index[:3]).astype(int))] == HU[place]
    stored = volume.source.to_stored(volume.hu)
    for image, file in zip(stored, volume.source.files, strict=True):
        assert np.array_equal(image + 1024, pydicom.dcmread(file).pixel_array)


def test_each_slice_has_its_own_slope_and_intercept(series, tmp_path):
    for index, one in enumerate(series):
        one.RescaleIntercept = -1024 - index
        one.RescaleSlope = 0.5
        one.PixelData = (2 * (one.pixel_array + index)).astype(np.uint16).tobytes()
    assert np.array_equal(read_volume(save_series(tmp_path, series)).hu, HU)


# 64636 is how a writer that confuses signed and unsigned says -900.
@pytest.mark.parametrize(("padding", "limit"), [(64636, None), (-900, None), (-920, -890)])
def test_padding_becomes_air(padding, limit, series, tmp_path):
    for one in series:
        stored = one.pixel_array.astype(np.int16) - 1024
        stored[:3] = -900
        one.PixelRepresentation, one.RescaleIntercept = 1, 0
        one.PixelData = stored.tobytes()
        one.add_new("PixelPaddingValue", "US" if padding > 0 else "SS", padding)
        if limit is not None:
            one.add_new("PixelPaddingRangeLimit", "SS", limit)
    hu = read_volume(save_series(tmp_path, series)).hu
    assert (hu[:, :3] == -1024).all()
    assert np.array_equal(hu[:, 3:], HU[:, 3:])


def test_filler_that_the_header_does_not_tell_becomes_air(series, tmp_path):
    for one in series:
        stored = one.pixel_array.astype(np.int16)
        stored[:3] = -976  # -2000 HU
        one.PixelRepresentation, one.PixelData = 1, stored.tobytes()
    assert (read_volume(save_series(tmp_path, series)).hu[:, :3] == -1024).all()


def test_a_padding_value_among_tissue_punches_no_holes(series, tmp_path):
    for one in series:
        one.PixelPaddingValue = 1064  # 40 HU
    assert np.array_equal(read_volume(save_series(tmp_path, series)).hu, HU)


# Large enough for the five wavelet levels of JPEG 2000.
LARGER = chest_hu((24, 36, 40))


def compressed(kind: str, series: list[pydicom.Dataset], scratch: Path) -> list[pydicom.Dataset]:
    for one in series:
        if kind == "JPEGLossless":
            as_jpeg_lossless(one, scratch / "one.dcm")
        else:
            one.compress(getattr(pydicom.uid, kind), generate_instance_uid=False)
    return series


COMPRESSIONS = ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGLossless"]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_pixels_are_decoded(kind, signed, tmp_path):
    series = ct_series(LARGER)
    if signed:
        for one, image in zip(series, LARGER, strict=True):
            one.PixelRepresentation, one.RescaleIntercept, one.PixelData = 1, 0, image.tobytes()
    volume = read_volume(save_series(tmp_path / "a", compressed(kind, series, tmp_path)))
    assert np.array_equal(volume.hu, LARGER)
    assert volume.source.notes == ()


def test_slope_intercept_and_padding_hold_for_jpeg_lossless_too(tmp_path):
    series = ct_series(LARGER)
    for index, one in enumerate(series):
        stored = one.pixel_array.copy()
        stored[:3] = 2
        one.PixelData, one.PixelPaddingValue = stored.tobytes(), 2
        one.RescaleIntercept = -1024 - index % 3
        as_jpeg_lossless(one, tmp_path / "one.dcm")
    series[7].RescaleSlope = 1.5
    hu = read_volume(save_series(tmp_path / "a", series)).hu
    expected = np.maximum(LARGER - np.arange(24)[:, None, None] % 3, -1024)
    expected[7] = np.maximum(np.rint(1.5 * (LARGER[7] + 1024) - 1024 - 1), -1024)
    expected[:, :3] = -1024
    assert np.array_equal(hu, expected)


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("lost", [10, 100])
def test_compressed_pixels_that_were_cut_short_are_refused_and_not_made_up(kind, lost, tmp_path):
    folder = save_series(tmp_path / "a", compressed(kind, ct_series(LARGER), tmp_path))
    victim = folder / "003.dcm"
    victim.write_bytes(victim.read_bytes()[:-lost])
    refused(folder, r"pixels of 003\.dcm cannot be decoded: they are missing or cut short")


@pytest.mark.parametrize(
    "kind", ["DeflatedExplicitVRLittleEndian", "ExplicitVRBigEndian", "ImplicitVRLittleEndian"]
)
def test_every_way_to_write_a_header_is_read(kind, series, tmp_path):
    for number, one in enumerate(series):
        one.file_meta.TransferSyntaxUID = getattr(pydicom.uid, kind)
        if kind == "ExplicitVRBigEndian":
            one.PixelData = one.pixel_array.byteswap().tobytes()
            one["PixelData"].VR = "OW"
        pydicom.dcmwrite(
            tmp_path / f"{number}.dcm",
            one,
            implicit_vr=kind.startswith("Implicit"),
            little_endian=not kind.endswith("BigEndian"),
            enforce_file_format=True,
        )
    assert np.array_equal(read_volume(tmp_path).hu, HU)


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble_and_meta_information_are_read(implicit, series, tmp_path):
    for number, one in enumerate(series):
        del one.file_meta
        pydicom.dcmwrite(tmp_path / f"{number}.dcm", one, implicit_vr=implicit, little_endian=True)
    assert np.array_equal(read_volume(tmp_path).hu, HU)


@pytest.mark.parametrize("signed", [False, True])
def test_overlay_bits_above_the_twelve_of_the_image_are_not_part_of_it(signed, series, tmp_path):
    for one, image in zip(series, HU, strict=True):
        stored = (image & 0x0FFF).astype(np.uint16) if signed else one.pixel_array | np.uint16(0x8000)
        one.BitsStored, one.HighBit, one.PixelData = 12, 11, stored.tobytes()
        one.PixelRepresentation, one.RescaleIntercept = int(signed), 0 if signed else -1024
    assert np.array_equal(read_volume(save_series(tmp_path, series)).hu, HU)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4"])
def test_what_is_no_way_to_store_a_slice_is_refused_by_name(syntax, series, tmp_path):
    for number, one in enumerate(series):
        one.file_meta.TransferSyntaxUID = syntax
        one["PixelData"].is_undefined_length = True
        one.PixelData = pydicom.encaps.encapsulate([one.PixelData])
        pydicom.dcmwrite(
            tmp_path / f"{number}.dcm", one, implicit_vr=False, little_endian=True, force_encoding=True
        )
    refused(tmp_path, rf"stored as .*{syntax}")


def test_a_compression_that_nothing_installed_can_undo_is_refused_and_the_package_named(
    tmp_path, monkeypatch
):
    folder = save_series(tmp_path / "a", compressed("JPEG2000Lossless", ct_series(LARGER), tmp_path))
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    plugins = {"pylibjpeg": ("pylibjpeg>=2.0 and pylibjpeg-openjpeg>=2.0",)}
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", plugins)
    refused(folder, r"compressed as JPEG 2000.*not installed \(.*pylibjpeg-openjpeg.*install it with pip")


def test_a_deflated_bomb_is_refused_unpacked_no_further_than_a_limit(series, tmp_path, monkeypatch):
    monkeypatch.setattr("diffseglung.dicom.DEFLATED_BYTES", 2**22)
    series[0].file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    series[0].PixelData = bytes(2**24)
    series[0].save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "unpacks to more than 4 MiB")


def test_a_header_that_announces_more_than_memory_is_refused(series, tmp_path):
    for one in series:
        one.Rows = one.Columns = 60000
    refused(save_series(tmp_path, series), r"announces 160\.9 GiB")


def test_loss_in_compression_is_noted(series, tmp_path):
    series[0].LossyImageCompression = "01"
    assert "loss" in read_volume(save_series(tmp_path, series)).source.notes[0]


def test_a_missing_slice_is_refused_and_its_place_told(series, tmp_path):
    gone = series.pop(10)
    before, after = (f"at {float(gone.ImagePositionPatient[2]) + step:.2f} mm" for step in (-4, 4))
    refused(save_series(tmp_path, series), re.escape(before) + ".*" + re.escape(after))


def test_several_gaps_are_counted(series, tmp_path):
    refused(save_series(tmp_path, series[:4] + series[5:9] + series[11:]), "about 3")


def test_two_slices_in_one_place_are_refused(series, tmp_path):
    series[5].ImagePositionPatient = series[4].ImagePositionPatient
    refused(save_series(tmp_path, series), "lie in the same place")


def test_two_phases_that_nothing_tells_apart_are_refused(series, tmp_path):
    refused(save_series(tmp_path, series + ct_series(chest_hu(seed=1))), "two phases")


def phases(keyword: str, values: list, tmp_path: Path) -> Path:
    for seed, value in enumerate(values):
        phase = ct_series(chest_hu(seed=seed))
        for one in phase:
            setattr(one, keyword, value)
        save_series(tmp_path, phase, prefix=f"phase{seed}-")
    return tmp_path


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("TemporalPositionIdentifier", [9, 10]),
        ("AcquisitionNumber", [2, 3]),
        ("ConvolutionKernel", ["B30f", "B70f"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL", "MONO_70KEV"]]),
    ],
)
def test_of_several_stacks_in_one_place_the_first_is_taken_and_any_can_be_named(keyword, values, tmp_path):
    folder = phases(keyword, values, tmp_path)
    volume = read_volume(folder)
    assert np.array_equal(volume.hu, chest_hu(seed=0))
    assert re.search(
        rf"2 stacks in one place: 1: {keyword}.*number 1 was taken.*1\.2\.3\.5#N", volume.source.notes[0]
    )
    second = read_volume(folder, series="1.2.3.5#2")
    assert np.array_equal(second.hu, chest_hu(seed=1))
    assert second.source.series_uid == "1.2.3.5"
    refused(folder, "2 stacks; there is no number '3'", series="1.2.3.5#3")


def test_stacks_that_cover_different_stretches_are_not_chosen_between(series, tmp_path):
    lower = ct_series(chest_hu(seed=1))
    for one, other in zip(series, lower, strict=True):
        one.AcquisitionNumber, other.AcquisitionNumber = 1, 2
        other.ImagePositionPatient[2] -= 12 * 4.0
    save_series(tmp_path, lower, prefix="lower")
    refused(save_series(tmp_path, series), "2 stacks that cover different stretches of the body")
    assert np.array_equal(read_volume(tmp_path, series="1.2.3.5#1").hu, HU)


def test_a_file_copied_twice_does_no_harm(series, tmp_path):
    save_series(tmp_path, series)
    series[3].save_as(tmp_path / "copy.dcm")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, HU)
    assert "repeat an image" in volume.source.notes[0]


def test_uneven_slices_are_refused(series, tmp_path):
    series[5].ImagePositionPatient[2] += 1.0
    refused(save_series(tmp_path, series), "uneven, from 3.00 to 5.00")


def test_slices_a_hair_out_of_place_pass(series, tmp_path):
    series[5].ImagePositionPatient[2] += 0.05
    assert np.array_equal(read_volume(save_series(tmp_path, series)).hu, HU)


def test_a_tilted_gantry_is_refused_with_its_angle(series, tmp_path):
    for index, one in enumerate(series):
        one.ImagePositionPatient[1] += 4.0 * index * float(np.tan(np.radians(15)))
    refused(save_series(tmp_path, series), r"15\.0 degrees")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "differ in orientation"),
        ({"PixelSpacing": [2.0, 2.5]}, "differ in pixel spacing"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImagePositionPatient": [0, 0]}, "3 numbers expected"),
        ({"RescaleType": "Z_EFF"}, "Z_EFF, not Hounsfield"),
        ({"PixelData": b"\0" * 1000}, "cannot be decoded"),
        ({"SamplesPerPixel": 3}, "colour"),
    ],
)
def test_a_slice_that_does_not_belong_is_named(change, words, series, tmp_path):
    for keyword, value in change.items():
        setattr(series[0], keyword, value)
    name = r"\d{3}\.dcm"
    with pytest.raises(UnreadableScan, match=rf"{name}.*{words}|{words}.*{name}"):
        read_volume(save_series(tmp_path, series))


def test_values_without_their_intercept_are_refused(series, tmp_path):
    for one in series:
        del one.RescaleIntercept
    refused(save_series(tmp_path, series), r"shifted by \+1024")


def test_hu_that_need_no_rescale_are_taken_and_that_is_noted(series, tmp_path):
    for one, image in zip(series, HU, strict=True):
        one.PixelRepresentation, one.PixelData = 1, image.tobytes()
        del one.RescaleIntercept, one.RescaleSlope
    volume = read_volume(save_series(tmp_path, series))
    assert np.array_equal(volume.hu, HU)
    assert "no rescale" in volume.source.notes[0]


def test_a_folder_of_another_modality_is_refused(series, tmp_path):
    for one in series:
        one.Modality, one.SOPClassUID = "MR", MRImageStorage
    refused(save_series(tmp_path, series), "no CT series; it holds MR series 4")


def test_localizers_do_not_count(series, tmp_path):
    scout = ct_series(chest_hu(seed=2))[:1]
    scout[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save_series(tmp_path, scout, prefix="scout")
    refused(tmp_path, "no images but localizers")
    assert np.array_equal(read_volume(save_series(tmp_path, series)).hu, HU)


def test_scouts_that_nobody_marked_do_not_count(series, tmp_path):
    scouts = ct_series(chest_hu(seed=2))[:2]
    for one in scouts:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        one.Rows, one.PixelData = 20, one.PixelData[: 20 * 28 * 2]
    save_series(tmp_path, scouts, prefix="scout")
    volume = read_volume(save_series(tmp_path, series))
    assert np.array_equal(volume.hu, HU)
    assert volume.source.notes == ("2 images that stand across the others (scouts?) were left out",)


def test_of_several_series_the_largest_that_passes_is_taken_and_the_others_named(series, tmp_path):
    save_series(tmp_path, series)
    broken = ct_series(chest_hu((30, 26, 28)), series_uid="7.7")
    del broken[10]
    save_series(tmp_path, broken, prefix="broken")
    save_series(tmp_path, ct_series(HU[:20], series_uid="8.8"), prefix="short")
    volume = read_volume(tmp_path)
    assert volume.source.series_uid == "1.2.3.5"
    assert re.search(r"7\.7\), refused: slices are missing", volume.source.notes[-1])
    assert "8.8" in volume.source.notes[-1]
    assert read_volume(tmp_path, series="8.8").shape == (20, 26, 28)
    refused(tmp_path, "slices are missing", series="7.7")
    refused(tmp_path, "holds no series 6.6; it holds CT series 4", series="6.6")


def test_series_of_two_studies_are_not_chosen_between(series, tmp_path):
    other = ct_series(chest_hu(seed=1)[:-4], series_uid="7.7")
    for one in other:
        one.StudyInstanceUID = "7"
    save_series(tmp_path, other, prefix="other")
    refused(save_series(tmp_path, series), "several studies")


def test_a_segmentation_beside_the_series_is_no_rival(series, tmp_path):
    save_series(tmp_path, series)
    beside = ct_series(HU[:1], series_uid="7.7")
    beside[0].Modality, beside[0].SOPClassUID = "SEG", SegmentationStorage
    save_series(tmp_path, beside, prefix="seg")
    assert read_volume(tmp_path).source.notes == ()


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:200], lambda whole: whole[:-400]])
def test_a_damaged_file_is_named_even_where_the_stack_looks_whole(damage, series, tmp_path):
    folder = save_series(tmp_path, series)
    victim = folder / "003.dcm"
    victim.write_bytes(damage(victim.read_bytes()))
    refused(folder, r"003\.dcm")


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:100]])
def test_a_damaged_last_slice_is_named_where_no_ending_tells_that_it_is_one(damage, series, tmp_path):
    for number, one in enumerate(series):
        one.save_as(tmp_path / f"IM{number}", enforce_file_format=True)
    (tmp_path / "VERSION").write_text("of the disc")
    assert np.array_equal(read_volume(tmp_path).hu, HU)
    (tmp_path / "IM23").write_bytes(damage((tmp_path / "IM23").read_bytes()))
    refused(tmp_path, "IM23 first")


def test_a_name_with_spaces_and_any_letters_is_read(series, tmp_path):
    assert np.array_equal(read_volume(save_series(tmp_path / "Lünge (1) 肺", series)).hu, HU)


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    refused(tmp_path, "no DICOM file, and no folder below it does")


def test_a_series_in_folders_below_is_found_and_two_studies_are_not_chosen_between(series, tmp_path):
    save_series(tmp_path / "disc" / "study" / "a", series[:10])
    save_series(tmp_path / "disc" / "study" / "b", series[10:])
    (tmp_path / "disc" / "readme.txt").write_text("words")
    assert np.array_equal(read_volume(tmp_path / "disc").hu, HU)
    other = ct_series(chest_hu(seed=1), series_uid="7.7")
    for one in other:
        one.StudyInstanceUID = "7"
    save_series(tmp_path / "disc" / "second", other)
    refused(tmp_path / "disc", "several studies")
    assert np.array_equal(read_volume(tmp_path / "disc", series="1.2.3.5").hu, HU)


def test_one_slice_is_no_volume(series, tmp_path):
    refused(save_series(tmp_path, series[:1]), "1 slice")


def test_too_thick_slices_are_refused_by_distance_and_not_by_slice_thickness(tmp_path):
    folder = save_series(tmp_path, ct_series(HU, step_mm=8.0))  # the headers say 99 mm, here and everywhere
    refused(folder, r"8\.00 mm apart")
    assert read_volume(folder, config=VolumeConfig(max_slice_mm=10)).spacing_mm[0] == pytest.approx(8)


@pytest.mark.parametrize(
    ("thickness_mm", "words"),
    [
        (4.0, None),
        (5.9, None),
        (1.0, "slices of 1.00 mm lie 4.00 mm apart: the lung between them was not imaged"),
        (99.0, None),  # a wrong header
        (None, None),
    ],
)
def test_gaps_between_thin_slices_are_noted(thickness_mm, words, series, tmp_path):
    for one in series:
        one.SliceThickness = thickness_mm
    volume = read_volume(save_series(tmp_path, series))
    assert np.array_equal(volume.hu, HU)
    assert volume.source.notes == (() if words is None else (words,))


def test_overlap_is_noted_and_thick_slices_are_refused_however_close_they_lie(tmp_path):
    series = ct_series(HU, step_mm=2.5)
    for one in series:
        one.SliceThickness = 5
    assert "overlap, 2.50 mm apart" in read_volume(save_series(tmp_path / "a", series)).source.notes[0]
    for one in series:
        one.SliceThickness = 8
    refused(save_series(tmp_path / "b", series), r"8\.00 mm thick, 2\.50 mm apart; thicker than max_slice_mm")


def test_a_multi_frame_file_is_read_in_the_order_of_its_positions(series, tmp_path):
    frames = np.random.default_rng(0).permutation(len(series)).tolist()
    enhanced_ct(series, frames).save_as(tmp_path / "all.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.hu, HU)
    assert [frames[frame] for frame in volume.source.frames] == list(range(len(series)))
    assert np.array_equal(read_volume(tmp_path / "all.dcm").hu, HU)


def test_a_multi_frame_file_has_its_own_scale_for_each_frame_and_its_time_points_are_told_apart(tmp_path):
    both = ct_series(HU) + ct_series(chest_hu(seed=1))
    one = enhanced_ct(both, list(range(48)))
    stored = one.pixel_array
    for frame, groups in enumerate(one.PerFrameFunctionalGroupsSequence):
        groups.PixelValueTransformationSequence[0].RescaleIntercept = -1024 - frame
        groups.FrameContentSequence = [pydicom.Dataset()]
        groups.FrameContentSequence[0].TemporalPositionIndex = 1 + frame // 24
    one.PixelData = (stored + np.arange(48, dtype=np.uint16)[:, None, None]).tobytes()
    one.save_as(tmp_path / "all.dcm", enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path).hu, HU)
    assert np.array_equal(read_volume(tmp_path, series="1.2.3.5#2").hu, chest_hu(seed=1))


def test_a_compressed_multi_frame_file_is_read(tmp_path):
    one = enhanced_ct(ct_series(LARGER), list(range(23, -1, -1)))
    one.compress(RLELossless, generate_instance_uid=False)
    one.save_as(tmp_path / "all.dcm", enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path).hu, LARGER)


def test_labels_of_a_series_lie_over_it_in_other_programs(series, tmp_path):
    folder = save_series(tmp_path / "a", series)
    volume = read_volume(folder)
    write_labels(tmp_path / "labels.nii.gz", volume.hu < -500, volume)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs, ours = reader.Execute(), sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(theirs) < -500, sitk.GetArrayFromImage(ours) > 0)
    assert np.allclose(theirs.GetOrigin(), ours.GetOrigin())
    assert np.allclose(theirs.GetDirection(), ours.GetDirection())
    assert nib.load(tmp_path / "labels.nii.gz").header["sform_code"] == 1


@pytest.mark.skipif("DIFFSEGLUNG_CT" not in os.environ, reason="DIFFSEGLUNG_CT names no folder of real scans")
def test_a_real_jpeg_lossless_series_agrees_with_gdcm():
    folder = Path(os.environ["DIFFSEGLUNG_CT"]) / "dicom" / "covid-a"
    volume = read_volume(folder)
    assert volume.shape == (148, 512, 512)
    assert volume.spacing_mm == pytest.approx((2.0, 0.748, 0.748), abs=1e-3)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    assert np.array_equal(sitk.GetArrayFromImage(reader.Execute()), volume.hu)


def test_headers_alone_place_a_series_and_refuse_it_as_reading_does(series, tmp_path):
    folder = save_series(tmp_path / "s", series)
    grid, read = read_grid(folder), read_volume(folder).source.grid
    assert grid.shape == read.shape
    assert np.array_equal(grid.affine, read.affine)
    sorted(folder.iterdir())[5].unlink()
    with pytest.raises(UnreadableScan, match="slices are missing, about 1"):
        read_grid(folder)
