import gzip
import os
import pickle
import resource
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_scans import LPS_TO_RAS, chest_hu, diagonal, write_nifti
from scipy.spatial.transform import Rotation

from diffseglung.volume import (
    UnreadableScan,
    Volume,
    VolumeConfig,
    find_scans,
    read_grid,
    read_labels,
    read_volume,
    resample,
    write_labels,
    write_map,
    write_volume,
    written_whole,
)

ORIENTATIONS = list(product(permutations(range(3)), product((False, True), repeat=3)))
SPACING_MM = (4.0, 3.0, 2.5)


def turned(orientation, turn_deg=(0.0, 0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """The chest as a scanner might store it: stored array and its affine, from the canonical ones."""
    hu, order, flips = chest_hu(), *orientation
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()[:, ::-1] * SPACING_MM
    affine[:3, 3] = (-70.5, 12.25, -200.0)
    stored = np.flip(hu.transpose(order), [axis for axis in range(3) if flips[axis]])
    first = np.zeros(4)
    first[list(order)] = [
        count - 1 if flipped else 0 for count, flipped in zip(stored.shape, flips, strict=True)
    ]
    first[3] = 1
    moved = affine.copy()
    moved[:, :3] = affine[:, list(order)] * np.where(flips, -1, 1)
    moved[:, 3] = affine @ first
    return stored, moved


def write_itk(path: Path, stored: np.ndarray, affine: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(stored)
    spacing = np.linalg.norm(affine[:3, 2::-1], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, 2::-1] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_however_a_nifti_is_stored_it_reads_the_same_and_goes_back_to_the_voxel(orientation, tmp_path):
    stored, affine = turned(orientation)
    path = write_nifti(tmp_path / "in.nii", stored, affine)
    volume = read_volume(path)
    assert np.array_equal(volume.hu, chest_hu())
    assert np.allclose(volume.affine[:3, :3], diagonal(*SPACING_MM)[:3, :3], atol=1e-5)

    write_labels(tmp_path / "out.nii", (volume.hu < -500).astype(np.uint8), volume)
    given_back, original = nib.load(tmp_path / "out.nii"), nib.load(path)
    assert np.array_equal(given_back.get_fdata() > 0, original.get_fdata() < -500)
    assert np.array_equal(given_back.affine, original.affine)
    assert given_back.get_data_dtype() == np.uint8


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    turn_deg=st.tuples(*(st.floats(-12, 12),) * 3),
    suffix=st.sampled_from([".nii", ".nrrd", ".mha", ".nhdr", ".mhd"]),
    out=st.sampled_from([".nii", ".nrrd", ".mha"]),
)
def test_oblique_scans_keep_every_voxel_in_its_place_in_every_format(
    orientation, turn_deg, suffix, out, tmp_path
):
    stored, affine = turned(orientation, turn_deg)
    write = write_nifti if suffix == ".nii" else write_itk
    volume = read_volume(write(tmp_path / f"in{suffix}", stored, affine))
    assert np.array_equal(volume.hu, chest_hu())
    straight = turned(((0, 1, 2), (False,) * 3), turn_deg)[1]
    assert np.allclose(volume.affine, straight, atol=1e-4)  # NIfTI keeps its affine in float32

    write_volume(tmp_path / f"out{out}", volume)
    again = read_volume(tmp_path / f"out{out}")
    assert np.array_equal(again.source.to_stored(again.hu), stored)
    assert np.allclose(again.source.grid.affine, affine, atol=1e-4)


def test_results_lie_over_the_scan_in_simpleitk_too(tmp_path):
    stored, affine = turned(((2, 0, 1), (True, False, True)), (8, -5, 3))
    path = write_nifti(tmp_path / "in.nii.gz", stored, affine)
    volume = read_volume(path)
    write_labels(tmp_path / "out.nii.gz", volume.hu < -500, volume)
    scan, labels = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    assert np.allclose(scan.GetDirection(), labels.GetDirection())
    assert np.allclose(scan.GetOrigin(), labels.GetOrigin())
    assert np.array_equal(sitk.GetArrayFromImage(scan) < -500, sitk.GetArrayFromImage(labels) > 0)


def test_a_nifti_that_is_not_quite_orthonormal_is_read_and_given_back_as_it_was(tmp_path):
    affine = diagonal(*SPACING_MM)
    affine[1, 0] = SPACING_MM[0] * np.tan(np.radians(0.6))  # SimpleITK refuses this one
    path = write_nifti(tmp_path / "in.nii", chest_hu(), affine)
    volume = read_volume(path)
    assert np.allclose(volume.affine, affine, atol=1e-4)
    write_volume(tmp_path / "out.nii", volume)
    assert np.array_equal(nib.load(tmp_path / "out.nii").affine, nib.load(path).affine)


def test_an_orientation_that_nobody_wrote_down_is_noted_and_left_unsaid(tmp_path):
    image = nib.Nifti1Image(chest_hu().T, None)
    image.header.set_zooms(SPACING_MM[::-1])
    nib.save(image, tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert "guess" in volume.source.notes[0]
    write_volume(tmp_path / "out.nii", volume)
    header = nib.load(tmp_path / "out.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)


def test_free_text_of_the_header_stays_behind(tmp_path):
    path = write_nifti(tmp_path / "in.nii", chest_hu(), diagonal(*SPACING_MM))
    image = nib.load(path)
    image.header["descrip"] = b"Doe^Jane 1960"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "named.nii")
    volume = read_volume(tmp_path / "named.nii")
    write_volume(tmp_path / "out.nii", volume)
    assert b"Doe" in (tmp_path / "named.nii").read_bytes()
    assert b"Doe" not in (tmp_path / "out.nii").read_bytes()


@pytest.mark.parametrize(
    ("kind", "slope", "intercept"),
    [
        (np.uint16, 1, -1024),
        (np.int16, 0.5, 0),
        (np.int32, 1, 0),
        (np.float32, 1, 0),
        (np.float64, 2, -7),
        (">i2", 1, 0),
    ],
)
def test_every_way_to_store_a_nifti_gives_the_same_hu(kind, slope, intercept, tmp_path):
    stored = (chest_hu().T - intercept) / slope
    image = nib.Nifti1Image(stored.astype(kind), np.diag([-2.5, -3, 4, 1]), dtype=kind)
    image.header.set_slope_inter(slope, intercept)
    for name in ("in.nii", "in.nii.gz"):
        nib.save(image, tmp_path / name)
        assert np.array_equal(read_volume(tmp_path / name).hu, chest_hu())


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
def test_every_way_to_store_nrrd_and_metaimage_gives_the_same_hu(kind, suffix, tmp_path):
    path = write_itk(tmp_path / f"in{suffix}", chest_hu().astype(kind), diagonal(*SPACING_MM))
    assert np.array_equal(read_volume(path).hu, chest_hu())


def disagreeing(path: Path, *, sform: np.ndarray, qform: np.ndarray) -> Path:
    image = nib.Nifti1Image(chest_hu().T, sform)
    image.header.set_sform(sform, code=1)
    image.header.set_qform(qform, code=1)
    nib.save(image, path)
    return path


def test_where_qform_and_sform_disagree_the_sform_holds_and_a_note_says_by_how_much(tmp_path):
    sform, qform = np.diag([-2.5, -3.0, 4.0, 1.0]), np.diag([-2.5, -3.0, 4.0, 1.0])
    qform[2, 3] = 12.0
    volume = read_volume(disagreeing(tmp_path / "in.nii", sform=sform, qform=qform))
    assert volume.source.notes == ("qform and sform disagree by up to 12.0 mm; the sform was used",)
    assert volume.affine[2, 3] == 0
    write_labels(tmp_path / "out.nii", volume.hu < -500, volume)
    given, back = nib.load(tmp_path / "in.nii").header, nib.load(tmp_path / "out.nii").header
    assert np.array_equal(given.get_qform(), back.get_qform())  # whichever a viewer trusts, they overlay
    assert np.array_equal(given.get_sform(), back.get_sform())


def test_a_broken_sform_gives_way_to_the_qform(tmp_path):
    image = nib.Nifti1Image(chest_hu().T, np.diag([-2.5, -3.0, 4.0, 1.0]))
    image.set_qform(image.affine, code=1)
    image.header["sform_code"], image.header["srow_x"] = 1, 0
    nib.save(nib.Nifti1Image(chest_hu().T, None, image.header), tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.source.notes == ("the sform is broken; the qform was used",)


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_an_affine_that_places_nothing_is_refused(broken, tmp_path):
    image = nib.Nifti1Image(chest_hu().T, None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = broken
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(UnreadableScan, match="spacing or direction is broken"):
        read_volume(tmp_path / "a.nii")


def test_the_input_is_known_by_the_hash_of_its_bytes(tmp_path):
    hu = chest_hu()
    first = read_volume(write_nifti(tmp_path / "a.nii", hu, diagonal(*SPACING_MM))).source.sha256
    same = read_volume(write_nifti(tmp_path / "b.nii", hu, diagonal(*SPACING_MM))).source.sha256
    hu[0, 0, 0] += 1
    other = read_volume(write_nifti(tmp_path / "c.nii", hu, diagonal(*SPACING_MM))).source.sha256
    assert first == same != other


def test_the_hash_of_a_bare_header_covers_its_data_file(tmp_path):
    hu = chest_hu()
    first = read_volume(write_itk(tmp_path / "a.mhd", hu, diagonal(*SPACING_MM))).source.sha256
    hu[0, 0, 0] += 1
    other = read_volume(write_itk(tmp_path / "a.mhd", hu, diagonal(*SPACING_MM))).source.sha256
    assert first != other


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_damaged_files_are_refused_by_name(name, tmp_path):
    path = tmp_path / name
    write = write_nifti if ".nii" in name else write_itk
    whole = write(path, chest_hu(), diagonal(*SPACING_MM)).read_bytes()
    for damaged in (b"", b"not a scan at all", whole[: len(whole) // 2], whole[:100], whole[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableScan, match=name):
            read_volume(path)


@pytest.mark.parametrize("where", [0.3, 0.9, -6])
def test_a_damaged_gzip_is_found_out_even_where_it_still_unpacks(where, tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", chest_hu(), diagonal(*SPACING_MM))
    whole = bytearray(path.read_bytes())
    whole[int(where * len(whole)) if where > 0 else where] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UnreadableScan, match="damaged"):
        read_volume(path)


def header_of(shape: tuple[int, int, int]) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nii.gz", gzip.compress(header_of((20000, 20000, 10000)) + bytes(10**6)), r"7450\.6 GiB"),
        ("a.nii.gz", gzip.compress(header_of((800, 800, 1500)) + bytes(10**7)), "ends in slice 8 of 1500"),
        ("a.nii.gz", gzip.compress(header_of((20, 20, 20)) + bytes(2**26 + 2**22)), "far more data"),
        (
            "a.nrrd",
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 20000 20000 10000\nencoding: gzip\nendian: little\n\n",
            r"7450\.6 GiB",
        ),
        (
            "a.mhd",
            b"ObjectType = Image\nNDims = 3\nDimSize = 20000 20000 10000\nElementType = MET_SHORT\n"
            b"ElementDataFile = gone.raw\n",
            r"7450\.6 GiB",
        ),
    ],
)
def test_a_bomb_is_refused_in_bounded_memory(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableScan, match=words):
        read_volume(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB, so 256 MiB


@pytest.mark.parametrize(
    ("name", "made_as", "words"),
    [
        ("scan.nii", "in.nii.gz", r"gzip, perhaps NIfTI, whose name should end in \.nii\.gz"),
        ("scan.nii.gz", "in.nii", r"NIfTI, whose name should end in \.nii$"),
        ("scan.mha", "in.nii", "NIfTI, whose name"),
        ("scan.nrrd", "in.mha", "MetaImage, whose name"),
        ("scan.nii", "in.nrrd", "NRRD, whose name"),
        ("scan.txt", "in.nrrd", "NRRD, whose name"),
    ],
)
def test_a_wrong_ending_is_refused_and_the_right_one_named(name, made_as, words, tmp_path):
    write = write_nifti if ".nii" in made_as else write_itk
    write(tmp_path / made_as, chest_hu(), diagonal(*SPACING_MM)).rename(tmp_path / name)
    with pytest.raises(UnreadableScan, match=words):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_a_name_with_spaces_and_any_letters_is_read_and_written(suffix, tmp_path):
    path = tmp_path / f"Lünge (1) 肺{suffix}"
    write = write_nifti if ".nii" in suffix else write_itk
    volume = read_volume(write(path, chest_hu(), diagonal(*SPACING_MM)))
    assert np.array_equal(volume.hu, chest_hu())
    write_volume(tmp_path / f"aus wörk{suffix}", volume)
    assert np.array_equal(read_volume(tmp_path / f"aus wörk{suffix}").hu, chest_hu())


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".dcm"])
def test_a_file_that_may_not_be_read_is_refused_as_such(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"not for us")

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a test run as root may read everything
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UnreadableScan, match=f"a{suffix}.*Permission denied"):
        read_volume(path)


def test_links_in_a_circle_and_what_is_no_file_are_refused(tmp_path):
    (tmp_path / "a.nii").symlink_to(tmp_path / "b.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    for name, words in (("a.nii", "leads nowhere"), ("pipe.nii", "neither a file nor a folder")):
        with pytest.raises(UnreadableScan, match=words):
            read_volume(tmp_path / name)


def test_few_thick_slices_are_refused_and_flat_voxels_are_read(tmp_path):
    thick = write_nifti(tmp_path / "thick.nii", chest_hu((10, 60, 60)), diagonal(10, 5, 5))
    with pytest.raises(UnreadableScan, match=r"10\.00 mm apart; more than max_slice_mm"):
        read_volume(thick)
    flat = read_volume(write_nifti(tmp_path / "flat.nii", chest_hu((20, 120, 120)), diagonal(5, 0.5, 0.5)))
    assert flat.spacing_mm == pytest.approx((5, 0.5, 0.5))
    assert np.array_equal(flat.hu, chest_hu((20, 120, 120)))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((30, 30), np.int16), "flat image"),
        (np.zeros((30, 30, 30, 3), np.int16), "series of volumes of shape 30x30x30x3"),
        (np.zeros((30, 30, 30), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour"),
    ],
)
def test_images_of_another_kind_are_refused(array, words, tmp_path):
    nib.save(nib.Nifti1Image(array, np.diag([3, 3, 3, 1])), tmp_path / "a.nii")
    with pytest.raises(UnreadableScan, match=words):
        read_volume(tmp_path / "a.nii")


def test_a_single_volume_with_a_time_axis_is_read(tmp_path):
    nib.save(nib.Nifti1Image(chest_hu().T[..., None], np.diag([-2.5, -3, 4, 1])), tmp_path / "a.nii")
    image = sitk.GetImageFromArray(chest_hu()[None], isVector=False)
    image.SetSpacing((2.5, 3, 4, 1))
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
    for name in ("a.nii", "a.nrrd", "a.mha"):
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.hu, chest_hu())
        assert volume.spacing_mm == pytest.approx(SPACING_MM)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_several_volumes_and_colours_are_refused_in_every_format(name, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([chest_hu()] * 2), isVector=False), str(tmp_path / name))
    with pytest.raises(UnreadableScan, match="series of volumes of shape 28x26x24x2"):
        read_volume(tmp_path / name)
    sitk.WriteImage(
        sitk.GetImageFromArray(np.stack([chest_hu()] * 3, -1), isVector=True), str(tmp_path / name)
    )
    with pytest.raises(UnreadableScan, match="3 values a voxel"):
        read_volume(tmp_path / name)


def test_an_nrrd_that_does_not_say_where_the_patient_lies_is_noted(tmp_path):
    content = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 28 26 24\nspacings: 2.5 3 4\nendian: little\n"
    (tmp_path / "a.nrrd").write_bytes(content + b"encoding: raw\n\n" + chest_hu().tobytes())
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.hu, chest_hu())
    assert "guess" in volume.source.notes[0]


@pytest.mark.parametrize("name", ["gone.nii", "notes.txt", ""])
def test_what_is_not_there_or_no_image_is_refused(name, tmp_path):
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(UnreadableScan, match=r"no such file|not known|no DICOM file"):
        read_volume(tmp_path / name)


def test_the_limits_are_settings(tmp_path):
    path = write_nifti(tmp_path / "a.nii", chest_hu(), diagonal(7, 3, 3))
    with pytest.raises(UnreadableScan, match=r"7\.00 mm apart"):
        read_volume(path)
    assert read_volume(path, config=VolumeConfig(max_slice_mm=8)).spacing_mm == pytest.approx((7, 3, 3))


def test_a_mask_in_another_axis_order_finds_its_voxels(tmp_path):
    stored, affine = turned(((1, 2, 0), (True, False, False)))
    scan = read_volume(write_nifti(tmp_path / "scan.nii", stored, affine))
    canonical, straight = turned(((0, 1, 2), (False,) * 3))
    write_itk(tmp_path / "mask.nrrd", (canonical < -500).astype(np.uint8), straight)
    assert np.array_equal(read_labels(tmp_path / "mask.nrrd", scan), scan.hu < -500)


def test_a_mask_of_another_grid_is_refused(tmp_path):
    scan = Volume.from_array(chest_hu(), SPACING_MM)
    aside = scan.affine + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3)
    path = write_nifti(tmp_path / "mask.nii", (scan.hu < -500).astype(np.uint8), aside)
    with pytest.raises(UnreadableScan, match="its grid is not that of the scan"):
        read_labels(path, scan)


def test_a_mask_must_hold_whole_numbers(tmp_path):
    scan = Volume.from_array(chest_hu(), SPACING_MM)
    path = write_nifti(tmp_path / "mask.nii", np.full(scan.shape, 0.5, np.float32), scan.affine)
    with pytest.raises(UnreadableScan, match="whole numbers"):
        read_labels(path, scan)


def test_maps_go_out_with_their_channels_last(tmp_path):
    stored, affine = turned(((2, 1, 0), (False, True, False)))
    scan = read_volume(write_nifti(tmp_path / "scan.nii", stored, affine))
    write_map(tmp_path / "maps.nii.gz", np.stack([scan.hu, scan.hu * 0.5]), scan)
    image, original = nib.load(tmp_path / "maps.nii.gz"), nib.load(tmp_path / "scan.nii")
    assert image.shape == (*original.shape, 2)
    assert np.array_equal(image.get_fdata()[..., 1], original.get_fdata() * 0.5)
    write_map(tmp_path / "map.nii", scan.hu, scan)
    assert np.array_equal(nib.load(tmp_path / "map.nii").get_fdata(), original.get_fdata())
    with pytest.raises(ValueError, match="NIfTI"):
        write_map(tmp_path / "maps.nrrd", np.stack([scan.hu, scan.hu]), scan)


def test_labels_of_a_resampled_grid_are_not_written_by_mistake(tmp_path):
    coarse = resample(Volume.from_array(chest_hu(), SPACING_MM), (5, 5, 5))
    with pytest.raises(ValueError, match="bring it back to the input's grid"):
        write_labels(tmp_path / "a.nii", np.zeros(coarse.shape, np.uint8), coarse)
    assert not list(tmp_path.iterdir())


def test_the_same_labels_make_the_same_bytes(tmp_path):
    scan = Volume.from_array(chest_hu(), SPACING_MM)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, scan.hu < -500, scan)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4] == (348).to_bytes(4, "little")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.nii"
    target.write_text("before")

    def fail() -> None:
        with written_whole(target) as beside:
            beside.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.nii"]


def test_resampling_keeps_the_field_of_view_and_the_mean():
    volume = Volume.from_array(chest_hu((40, 50, 60)), (1.0, 0.8, 0.7))
    coarse = resample(volume, (2.0, 2.0, 2.0))
    assert coarse.spacing_mm == pytest.approx((2, 2, 2))
    middle = (
        tuple((count - 1) / 2 for count in volume.shape),
        tuple((count - 1) / 2 for count in coarse.shape),
    )
    assert np.allclose(volume.grid.at_mm(middle[0]), coarse.grid.at_mm(middle[1]))
    assert abs(coarse.hu.mean() - volume.hu.mean()) < 5
    assert np.array_equal(resample(volume, volume.spacing_mm).hu, volume.hu)


def test_coarser_voxels_average_noise_and_do_not_sample_it():
    noise = np.random.default_rng(0).normal(0, 100, (40, 40, 40)).astype(np.int16)
    coarse = resample(Volume.from_array(noise, (1, 1, 1)), (3, 3, 3))
    # Plain linear interpolation at the old voxel centres would leave all 100; 27 voxels averaged, 19.
    assert coarse.hu.std() < 25


def test_a_phantom_needs_no_file_and_goes_through_processes(tmp_path):
    volume = pickle.loads(pickle.dumps(Volume.from_array(chest_hu(), SPACING_MM)))
    write_volume(tmp_path / "a.nii.gz", volume)
    again = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(again.hu, volume.hu)
    assert np.allclose(again.affine, volume.affine)
    assert np.array_equal(np.diag(nib.load(tmp_path / "a.nii.gz").affine @ LPS_TO_RAS), (2.5, 3.0, 4.0, 1.0))


@pytest.mark.skipif("DIFFSEGLUNG_CT" not in os.environ, reason="DIFFSEGLUNG_CT names no folder of real scans")
def test_real_scans_are_read_and_written_back_to_the_voxel(tmp_path):
    scans = find_scans(os.environ["DIFFSEGLUNG_CT"])
    assert scans
    for scan in scans:
        volume = read_volume(scan.path, series=scan.series_uid)
        assert (volume.hu < -800).mean() > 0.05, scan
        write_volume(tmp_path / "out.nii", volume)
        again = read_volume(tmp_path / "out.nii")
        assert np.array_equal(again.source.to_stored(again.hu), volume.source.to_stored(volume.hu)), scan
        assert again.source.grid.matches(volume.source.grid, 1e-3), scan


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_headers_alone_place_a_scan_as_reading_it_does(suffix, tmp_path):
    stored, affine = turned(ORIENTATIONS[29], (10, 5, -3))
    path = tmp_path / f"a{suffix}"
    (write_nifti if suffix.startswith(".nii") else write_itk)(path, stored, affine)
    grid, read = read_grid(path), read_volume(path).source.grid
    assert grid.shape == read.shape
    assert np.array_equal(grid.affine, read.affine)
