"""Small chests on disk, whose every voxel is known: for the tests of what reads and writes scans."""

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    generate_uid,
)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def chest_hu(shape: tuple[int, int, int] = (24, 26, 28), seed: int = 0) -> np.ndarray:
    """Air, a body and two lungs of unlike size, with noise: int16 (z, y, x), canonical, no symmetry."""
    z, y, x = np.indices(shape) / np.array(shape)[:, None, None, None] - 0.5
    hu = np.where((y / 0.42) ** 2 + (x / 0.46) ** 2 < 1, 40, -1000)
    hu[((x + 0.2) / 0.16) ** 2 + (y / 0.28) ** 2 + (z / 0.42) ** 2 < 1] = -850
    hu[((x - 0.2) / 0.13) ** 2 + (y / 0.25) ** 2 + ((z - 0.1) / 0.35) ** 2 < 1] = -840
    return (hu + np.random.default_rng(seed).integers(-15, 16, shape)).astype(np.int16)


def diagonal(*spacing_zyx_mm: float) -> np.ndarray:
    """The affine of a canonical grid that is not oblique, off the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing_zyx_mm)[::-1]
    affine[:3, 3] = (-70.5, 12.25, -200.0)
    return affine


def write_nifti(path: Path, stored: np.ndarray, affine: np.ndarray) -> Path:
    """By nibabel alone. `stored` is slowest axis first, `affine` takes its index to LPS mm."""
    nifti = affine.copy()
    nifti[:, :3] = affine[:, 2::-1]
    nib.save(nib.Nifti1Image(stored.T, LPS_TO_RAS @ nifti), path)
    return path


def ct_slice(stored: np.ndarray, position_mm: np.ndarray, series_uid: str, number: int) -> Dataset:
    """One axial CT slice of stored values (rows, columns), which are HU + 1024, for a test to change."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    one = Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Doe^Jane", "42", "19600101", "F"
    one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", series_uid
    one.FrameOfReferenceUID = "1.2.3.4"
    one.StudyDate = one.StudyTime = one.AccessionNumber = one.ReferringPhysicianName = one.StudyID = ""
    one.PositionReferenceIndicator = one.Manufacturer = one.BodyPartExamined = ""
    one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 4, number
    one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.ImagePositionPatient = [float(f"{mm:.6f}") for mm in position_mm]
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.PixelSpacing, one.SliceThickness = [3.0, 2.5], 99
    one.Rows, one.Columns = stored.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.PixelRepresentation = int(stored.dtype == np.int16)
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelData = stored.tobytes()
    return one


def ct_series(hu: np.ndarray, *, step_mm: float = 4.0, series_uid: str = "1.2.3.5") -> list[Dataset]:
    """An axial series from a canonical array, feet first, rows 3 mm and columns 2.5 mm apart."""
    stored = (hu.astype(np.int32) + 1024).astype(np.uint16)
    return [
        ct_slice(image, np.array([-40.0, -35.0, -100.0 + step_mm * index]), series_uid, 1 + index)
        for index, image in enumerate(stored)
    ]


def save_series(folder: Path, series: list[Dataset], seed: int = 0, prefix: str = "") -> Path:
    """Under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in zip(np.random.default_rng(seed).permutation(len(series)), series, strict=True):
        one.save_as(folder / f"{prefix}{name:03d}.dcm", enforce_file_format=True)
    return folder


def as_jpeg_lossless(one: Dataset, scratch: Path) -> None:
    """The pixels of a slice as GDCM, in SimpleITK, compresses them; pydicom has no encoder for it."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(scratch))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(sitk.GetImageFromArray(one.pixel_array[None]))
    made = dcmread(scratch)
    scratch.unlink()
    assert made.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    one.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    one.add(made["PixelData"])


def enhanced_ct(series: list[Dataset], frame_order: list[int]) -> Dataset:
    """The same slices as one multi-frame file, its frames in the order given."""
    one = Dataset()
    one.update(series[0])
    one.file_meta = FileMetaDataset(series[0].file_meta)
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        del one[keyword]
    del one.RescaleIntercept
    one.NumberOfFrames = len(series)
    one.PixelData = b"".join(series[index].PixelData for index in frame_order)
    one.SharedFunctionalGroupsSequence = [
        _group(
            PlaneOrientationSequence=_group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            PixelMeasuresSequence=_group(PixelSpacing=[3.0, 2.5], SliceThickness=4.0),
        )
    ]
    one.PerFrameFunctionalGroupsSequence = [
        _group(
            PlanePositionSequence=_group(ImagePositionPatient=series[index].ImagePositionPatient),
            PixelValueTransformationSequence=_group(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
        )
        for index in frame_order
    ]
    return one


def _group(**values: object) -> Dataset:
    group = Dataset()
    for keyword, value in values.items():
        setattr(group, keyword, [value] if isinstance(value, Dataset) else value)
    return group
