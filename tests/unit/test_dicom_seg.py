from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from made_scans import chest_hu, ct_series, diagonal, enhanced_ct, save_series, write_nifti
from pydicom.sr.codedict import codes

from diffseglung.dicom_seg import CODES, write_dicom_seg
from diffseglung.labels import TISSUES, Tissue
from diffseglung.volume import Volume, read_volume

HU = chest_hu()


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Volume:
    return read_volume(save_series(tmp_path_factory.mktemp("ct"), ct_series(HU)))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    labels = np.zeros(HU.shape, dtype=np.uint8)
    labels[4:20][HU[4:20] < -700] = Tissue.HEALTHY
    labels[7, 10:14, 3:9] = Tissue.CAVITY
    labels[9:12, 20, 1:4] = Tissue.EMPHYSEMA
    return labels


@pytest.fixture(scope="module")
def path(volume, labels, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("seg") / "segmentation.dcm"
    write_dicom_seg(path, labels, volume, "diffseglung", "7")
    return path


@pytest.fixture(scope="module")
def written(path) -> hd.seg.Segmentation:
    return hd.seg.segread(path)


def test_every_voxel_goes_back_to_the_slice_it_was_found_on(written, volume, labels):
    uids = [
        str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in volume.source.files
    ]
    planes = written.get_pixels_by_source_instance(
        uids, combine_segments=False, ignore_spatial_locations=False
    )
    found = {segment.SegmentLabel: segment.SegmentNumber for segment in written.SegmentSequence}
    for tissue in (Tissue.HEALTHY, Tissue.CAVITY, Tissue.EMPHYSEMA):
        assert np.array_equal(planes[..., found[tissue.title] - 1], labels == tissue)


def test_plain_pydicom_finds_each_frame_where_its_slice_lies(path, volume, labels):
    raw = pydicom.dcmread(path)
    heights = {round(float(volume.grid.at_mm((index, 0, 0))[2]), 3): index for index in range(len(HU))}
    titles = {item.SegmentNumber: item.SegmentLabel for item in raw.SegmentSequence}
    seen = np.zeros_like(labels)
    for frame, groups in zip(raw.pixel_array, raw.PerFrameFunctionalGroupsSequence, strict=True):
        height = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        tissue = next(tissue for tissue in TISSUES if tissue.title == titles[number])
        seen[heights[round(height, 3)]][frame > 0] = tissue
    assert np.array_equal(seen, labels)


def test_only_tissues_that_were_found_become_segments(written):
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["healthy", "emphysema", "cavity"]
    assert [segment.SegmentNumber for segment in written.SegmentSequence] == [1, 2, 3]
    assert written.SegmentationType == "BINARY"


def test_each_segment_says_what_and_by_which_model(written):
    segment = written.SegmentSequence[1]
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("87433001", "SCT")
    model = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (model.AlgorithmName, model.AlgorithmVersion) == ("diffseglung", "7")
    assert segment.SegmentAlgorithmType == "AUTOMATIC"


def test_it_belongs_to_the_study_and_refers_to_every_slice(written, volume):
    assert written.StudyInstanceUID == "1.2.3"
    assert written.SeriesInstanceUID != volume.source.series_uid
    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == volume.source.series_uid
    assert len(series.ReferencedInstanceSequence) == len(HU)


def test_of_the_patient_it_repeats_the_patient_module_and_no_more(written, volume):
    said = {element.keyword for element in written.iterall() if element.keyword.startswith("Patient")}
    assert said <= {"PatientName", "PatientID", "PatientBirthDate", "PatientSex"}
    assert written.PatientName == "Doe^Jane"
    assert "Doe" not in str(written.SeriesDescription) + str(written.ContentDescription)


def test_the_same_result_has_the_same_uids(written, volume, labels, tmp_path):
    write_dicom_seg(tmp_path / "again.dcm", labels, volume, "diffseglung", "7")
    write_dicom_seg(tmp_path / "newer.dcm", labels, volume, "diffseglung", "8")
    assert pydicom.dcmread(tmp_path / "again.dcm").SOPInstanceUID == written.SOPInstanceUID
    assert pydicom.dcmread(tmp_path / "newer.dcm").SOPInstanceUID != written.SOPInstanceUID


def test_a_multi_frame_source_is_referred_to_frame_by_frame(labels, tmp_path):
    frames = np.random.default_rng(1).permutation(len(HU)).tolist()
    source = enhanced_ct(ct_series(HU), frames)
    source.save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    write_dicom_seg(tmp_path / "seg.dcm", labels, read_volume(tmp_path / "ct.dcm"), "diffseglung", "7")
    written = hd.seg.segread(tmp_path / "seg.dcm")
    planes = written.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(range(1, len(HU) + 1)), ignore_spatial_locations=False
    )
    for plane, index in zip(planes, frames, strict=True):
        assert np.array_equal(plane[..., 0], labels[index] == Tissue.HEALTHY)


def test_a_name_of_one_part_is_not_quoted_in_a_warning(labels, tmp_path):
    series = ct_series(HU)
    for one in series:
        one.PatientName = "Anonymous"
    volume = read_volume(save_series(tmp_path / "ct", series))
    write_dicom_seg(tmp_path / "seg.dcm", labels, volume, "diffseglung", "7")  # a warning would be an error


def test_scans_that_were_not_dicom_and_empty_labels_are_refused(volume, labels, tmp_path):
    nifti = read_volume(write_nifti(tmp_path / "a.nii", HU, diagonal(4, 3, 2.5)))
    with pytest.raises(ValueError, match=r"a\.nii is nifti"):
        write_dicom_seg(tmp_path / "a.dcm", labels, nifti, "diffseglung", "7")
    with pytest.raises(ValueError, match="no voxel"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros_like(labels), volume, "diffseglung", "7")
    with pytest.raises(ValueError, match="shape"):
        write_dicom_seg(tmp_path / "a.dcm", labels[1:], volume, "diffseglung", "7")
    assert not (tmp_path / "a.dcm").exists()


def test_every_tissue_has_a_code_of_its_own():
    assert set(CODES) == set(TISSUES)
    assert len({kind for _, kind in CODES.values()}) == len(TISSUES)
    # Where pydicom's copy of the standard knows a code, its meaning is ours.
    assert CODES[Tissue.GROUND_GLASS][1] == codes.DCM.GroundGlassOpacity
    assert CODES[Tissue.CAVITY][1] == codes.DCM.AbnormalLucency
