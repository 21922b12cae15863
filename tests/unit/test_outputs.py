"""What a case leaves, opened by the programs that others use, and searched for what must not be in it."""

import gzip
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk
from made_scans import ct_slice

from diffseglung.labels import TISSUES, Tissue
from diffseglung.model import Model
from diffseglung.report import write_report
from diffseglung.results import case_result, write_case
from diffseglung.schemas import RESULTS
from diffseglung.segment import segment
from diffseglung.volume import Volume, read_volume

PERSON = {
    "PatientName": "Kowalska^Zofia^Maria",
    "PatientID": "MRN-7741903",
    "PatientBirthDate": "19611203",
    "OtherPatientIDs": "OLD-5512",
    "PatientAddress": "Lindenhof 11",
    "ReferringPhysicianName": "Wojcik^Piotr",
    "InstitutionName": "St. Adalbert",
    "AccessionNumber": "ACC-662001",
    "StudyID": "STUDY-9913",
    "StudyDate": "20240229",
    "SeriesDate": "20240229",
    "StudyTime": "101659",
    "SeriesDescription": "Thorax Kowalska",
    "StudyDescription": "CT Kowalska Zofia",
    "PatientComments": "sister of Kowalska",
}
WORDS = sorted({word for value in PERSON.values() for word in value.split("^") if len(word) > 4})


@pytest.fixture(scope="module")
def series(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as the scan of a person who is named all over its headers."""
    folder = tmp_path_factory.mktemp("series")
    for number, image in enumerate(volume.hu):
        place = (volume.affine @ (number, 0, 0, 1))[:3]
        one = ct_slice((image.astype(np.int32) + 1024).astype(np.uint16), place, "1.2.77", number + 1)
        one.PixelSpacing, one.SliceThickness = list(volume.spacing_mm[1:]), volume.spacing_mm[0]
        for keyword, value in PERSON.items():
            setattr(one, keyword, value)
        one.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def case(series: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the segmented case; beside it the tables and the report."""
    out = tmp_path_factory.mktemp("out")
    volume = read_volume(series)
    segmentation = segment(volume, model)
    result = case_result("case-1", volume, segmentation, model_uri="m", model_version="1", config_sha256="c")
    write_case(out / "cases" / "case-1", volume, segmentation, result, probabilities=True)
    table = pa.Table.from_pylist([result.row()], schema=RESULTS)
    pq.write_table(table, out / "results.parquet")
    pyarrow.csv.write_csv(table, out / "results.csv")
    write_report(out / "report.html", [result.row()], {"case-1": out / "cases" / "case-1" / "pictures.json"})
    return out / "cases" / "case-1"


def test_simpleitk_and_nibabel_see_the_same_labels_on_the_grid_of_the_series(
    case: Path, series: Path
) -> None:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    scan = reader.Execute()
    for name in ("segmentation", "anatomy"):
        itk = sitk.ReadImage(str(case / f"{name}.nii.gz"))
        assert itk.GetSize() == scan.GetSize()
        assert itk.GetPixelID() == sitk.sitkUInt8
        for corner in ((0, 0, 0), tuple(n - 1 for n in scan.GetSize())):
            there, here = (image.TransformIndexToPhysicalPoint(corner) for image in (scan, itk))
            np.testing.assert_allclose(here, there, atol=0.01)
        nifti = nib.load(case / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(nifti.dataobj).T, sitk.GetArrayFromImage(itk))
        # nibabel speaks RAS, ITK LPS.
        np.testing.assert_allclose(nifti.affine[:3, 3] * (-1, -1, 1), itk.GetOrigin(), atol=1e-3)
    assert nib.load(case / "probabilities.nii.gz").shape == (*scan.GetSize(), len(TISSUES))


def test_highdicom_and_pydicom_see_the_same_tissues_as_the_nifti(case: Path, series: Path) -> None:
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(case / "segmentation.nii.gz")))
    seg = hd.seg.segread(case / "segmentation.dcm")
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(series.iterdir())]
    planes = seg.get_pixels_by_source_instance(
        [str(one.SOPInstanceUID) for one in sources], ignore_spatial_locations=False
    )
    found = {item.SegmentLabel: item.SegmentNumber - 1 for item in seg.SegmentSequence}
    assert set(found) == {t.title for t in TISSUES if (labels == t).any()}
    heights = [float(one.ImagePositionPatient[2]) for one in sources]
    upward = np.argsort(heights)
    for tissue in TISSUES:
        if tissue.title in found:
            np.testing.assert_array_equal(planes[upward, ..., found[tissue.title]] > 0, labels == tissue)
    plain = pydicom.dcmread(case / "segmentation.dcm")
    assert plain.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.77"
    schemes = {
        item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for item in plain.SegmentSequence
    }
    assert "SCT" in schemes
    assert schemes <= {"SCT", "DCM"}  # SNOMED CT has no code for ground glass and for a cavity


def test_pandas_and_plain_pyarrow_read_the_same_table(case: Path) -> None:
    parquet, text = (
        pd.read_parquet(case.parents[1] / "results.parquet"),
        pd.read_csv(case.parents[1] / "results.csv"),
    )
    assert list(parquet.columns) == list(text.columns) == RESULTS.names
    assert parquet.loc[0, "lung_ml"] == pytest.approx(text.loc[0, "lung_ml"])
    assert parquet[[f"{t.key}_pct" for t in TISSUES]].sum(axis=1)[0] == pytest.approx(100)
    schema = pq.read_schema(case.parents[1] / "results.parquet")
    assert schema.metadata[b"schema.name"] == b"diffseglung.results"
    assert not any(pa.types.is_nested(field.type) or pa.types.is_large_string(field.type) for field in schema)


def plain_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(content)
    return content


def test_no_name_number_or_date_of_the_person_is_in_what_is_left(
    case: Path,
) -> None:
    files = [path for path in case.parents[1].rglob("*") if path.is_file()]
    assert len(files) >= 9
    for path in files:
        if path.name == "segmentation.dcm":
            continue  # which the standard has repeat the patient, for the PACS to file it
        content = plain_bytes(path)
        for word in WORDS:
            assert word.encode() not in content, (path.name, word)
            assert word.encode("utf-16-le") not in content, (path.name, word)
    table = pd.read_parquet(case.parents[1] / "results.parquet").to_csv()
    assert not [word for word in WORDS if word in table]


def test_nor_is_it_said_on_the_way(
    series: Path, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing on the terminal, and nothing in the words of a refusal."""
    gap = tmp_path / "gap"
    gap.mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        if number != 30:
            (gap / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="slices are missing") as refusal:
        read_volume(gap)
    read_volume(series)
    said = "".join(capfd.readouterr()) + str(refusal.value)
    assert not [word for word in WORDS if word in said]


def test_free_text_of_a_nifti_does_not_travel(
    volume: Volume, model: Model, scan_path: Path, tmp_path: Path
) -> None:
    image = nib.load(scan_path)
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = (
        b"Kowalska^Zofia",
        b"MRN-7741903",
        b"ACC-662001",
    )
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Kowalska"))
    nib.save(image, tmp_path / "a.nii.gz")
    assert b"Kowalska" in plain_bytes(tmp_path / "a.nii.gz")
    given = read_volume(tmp_path / "a.nii.gz")
    segmentation = segment(given, model)
    write_case(tmp_path / "case", given, segmentation, case_result("a", given, segmentation, model_uri="m"))
    for path in (tmp_path / "case").iterdir():
        assert not [word for word in WORDS if word.encode() in plain_bytes(path)], path.name
    assert Tissue.HEALTHY in np.unique(
        np.asarray(nib.load(tmp_path / "case" / "segmentation.nii.gz").dataobj)
    )
