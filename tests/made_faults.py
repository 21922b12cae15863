"""A cohort with all that hospitals' data do: one phantom made right, wrong and odd, and how each must end."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from made_model import SMALL
from made_scans import ct_slice, write_nifti
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from scipy import ndimage
from scipy.spatial.transform import Rotation

from diffseglung.phantom import write_cohort
from diffseglung.volume import Volume, read_labels, read_volume

SPACES = "Größe 10 µm, Müller & Söhne (Kopie)"


@dataclass(frozen=True)
class Fault:
    """One row of the manifest: its image, how it must end, and what the reason, or a note, must say."""

    case_id: str
    image: str
    status: str
    words: str = ""
    note: str = ""


@dataclass(frozen=True)
class Phantom:
    """The sound scan that all are made from; `truth` tells where its lungs are."""

    volume: Volume
    truth: np.ndarray

    @property
    def hu(self) -> np.ndarray:
        return self.volume.hu

    @property
    def affine(self) -> np.ndarray:
        return self.volume.affine


def make_faults(folder: Path) -> tuple[Path, list[Fault]]:
    """A manifest of every fault, in `folder`, and the faults in its order."""
    (row,) = write_cohort(folder / "sound", 1, seed=1, config=SMALL)
    volume = read_volume(folder / "sound" / row["image"])
    phantom = Phantom(volume, read_labels(folder / "sound" / row["truth"], volume))
    faults = [Fault("sound", f"sound/{row['image']}", "ok")]
    for make in (_files, _values, _grids, _done_right, _series, _names):
        (folder / make.__name__[1:]).mkdir()
        for fault in make(folder / make.__name__[1:], phantom):
            image = fault.image or f"{make.__name__[1:]}/{fault.case_id}.nii.gz"
            faults.append(Fault(fault.case_id, image, fault.status, fault.words, fault.note))
    lines = ["case_id,image", *(f'"{fault.case_id}","{fault.image}"' for fault in faults)]
    manifest = folder / "cohort.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest, faults


def _save(folder: Path, name: str, phantom: Phantom, hu: np.ndarray | None = None) -> Path:
    return write_nifti(folder / f"{name}.nii.gz", phantom.hu if hu is None else hu, phantom.affine)


def _files(folder: Path, phantom: Phantom) -> Iterator[Fault]:
    """Files that are not what their names say, or not whole."""
    whole = _save(folder, "whole", phantom).read_bytes()
    (folder / "whole.nii.gz").unlink()
    (folder / "truncated-gzip.nii.gz").write_bytes(whole[: len(whole) // 2])
    yield Fault("truncated-gzip", "", "failed", "damaged")
    (folder / "no-image.nii.gz").write_bytes(b"Dear colleague, please find attached")
    yield Fault("no-image", "", "failed", "damaged or no NIfTI file")
    (folder / "wrong-ending.nrrd").write_bytes(whole)
    yield Fault("wrong-ending", "files/wrong-ending.nrrd", "failed", "by its first bytes it is gzip")
    (folder / "zero-bytes.nii.gz").touch()
    yield Fault("zero-bytes", "", "failed", "empty (0 bytes)")
    (folder / "report").mkdir()
    (folder / "report" / "letter.txt").write_text("no image here")
    yield Fault("no-dicom", "files/report", "failed", "no DICOM file")
    (folder / "loop.nii.gz").symlink_to(folder / "loop.nii.gz")
    yield Fault("loop", "", "failed", "a link that leads nowhere, or in a circle")
    unreadable = _save(folder, "unreadable", phantom)
    unreadable.chmod(0)
    yield Fault("unreadable", "", "failed", "Permission denied")
    more = 64 * gzip.compress(bytes(2**24), mtime=0)  # a gigabyte of zeros; gzip files in a row are one file
    (folder / "gzip-bomb.nii.gz").write_bytes(_gzipped_header(2000) + more)
    yield Fault("gzip-bomb", "", "failed", "announces 14.9 GiB")
    (folder / "endless.nii.gz").write_bytes(_gzipped_header(64) + more)
    yield Fault("endless", "", "failed", "far more data follow")
    yield Fault("gone", "", "failed", "there is no such file")


def _gzipped_header(edge_vox: int) -> bytes:
    """The header of a cube, and none of its voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((edge_vox,) * 3)
    header["pixdim"][1:4], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
    return gzip.compress(header.binaryblock + bytes(4), mtime=0)


def _values(folder: Path, phantom: Phantom) -> Iterator[Fault]:
    """Voxels that are not those of a chest in Hounsfield units."""
    _save(folder, "shifted", phantom, phantom.hu + np.int16(1024))
    yield Fault("shifted", "", "failed", "it looks shifted by +1024")
    _save(folder, "all-air", phantom, np.full(phantom.hu.shape, -1000, np.int16))
    yield Fault("all-air", "", "failed", "every voxel is -1000")
    filled = np.where(phantom.truth > 0, 40, phantom.hu).astype(np.int16)
    _save(folder, "no-lungs", phantom, _without_air_inside(filled))
    yield Fault("no-lungs", "", "failed", "no lung was found")
    holed = phantom.hu.astype(np.float32)
    holed[20:23, 30:34, 30:34] = np.nan
    _save(folder, "nan", phantom, holed)
    yield Fault("nan", "", "failed", "are not numbers")


def _without_air_inside(hu: np.ndarray) -> np.ndarray:
    """Trachea and bronchi filled too: only the air around the body is left."""
    air, _ = ndimage.label(hu < -600)
    inside = ~np.isin(air, np.unique(air[:, 0, 0])) & (air > 0)
    return np.where(inside, 40, hu).astype(np.int16)


def _grids(folder: Path, phantom: Phantom) -> Iterator[Fault]:
    """Grids that no lung can be measured on."""
    nib.save(nib.Nifti1Image(phantom.hu[30].T, np.diag([4.0, 4.0, 4.0, 1.0])), folder / "flat.nii.gz")
    yield Fault("flat", "", "failed", "a flat image")
    four = np.stack([phantom.hu.T, phantom.hu.T], axis=-1)
    nib.save(nib.Nifti1Image(four, np.diag([4.0, 4.0, 4.0, 1.0])), folder / "four-d.nii.gz")
    yield Fault("four-d", "", "failed", "a series of volumes")
    thick = phantom.hu[: 60 // 6 * 6].reshape(10, 6, *phantom.hu.shape[1:]).mean(axis=1).astype(np.int16)
    affine = phantom.affine.copy()
    affine[:3, 0] *= 10 / 4
    write_nifti(folder / "ten-slices.nii.gz", thick, affine)
    yield Fault("ten-slices", "", "failed", "mm apart; more than max_slice_mm, 6.0")


def _done_right(folder: Path, phantom: Phantom) -> Iterator[Fault]:
    """Odd scans that are chests nevertheless."""
    left = (phantom.truth > 0) & (np.arange(phantom.hu.shape[2]) >= phantom.hu.shape[2] // 2)
    _save(folder, "one-lung", phantom, np.where(left, 40, phantom.hu).astype(np.int16))
    yield Fault("one-lung", "", "ok")
    fine = ndimage.zoom(phantom.hu[:, 8:72, 8:72], (0.8, 8, 8), order=1, grid_mode=True, mode="nearest")
    affine = phantom.affine.copy()
    affine[:3, :3] = affine[:3, :3] @ np.diag([5 / 4, 0.5 / 4, 0.5 / 4])
    write_nifti(folder / "anisotropic.nii.gz", fine, affine)
    yield Fault("anisotropic", "", "ok")
    for name, axes in {"flipped": (0, 1, 2), "left-handed": (2,)}.items():
        affine = phantom.affine.copy()
        for axis in axes:
            affine[:3, 3] += affine[:3, axis] * (phantom.hu.shape[axis] - 1)
            affine[:3, axis] *= -1
        write_nifti(folder / f"{name}.nii.gz", np.flip(phantom.hu, axes), affine)
        yield Fault(name, "", "ok")
    oblique = phantom.affine.copy()
    oblique[:3, :3] = Rotation.from_euler("xyz", [7, -5, 11], degrees=True).as_matrix() @ oblique[:3, :3]
    write_nifti(folder / "oblique.nii.gz", phantom.hu, oblique)
    yield Fault("oblique", "", "ok")
    (folder / "Frau Dr. Ünal").mkdir()
    _save(folder / "Frau Dr. Ünal", SPACES, phantom)
    yield Fault(SPACES, f"done_right/Frau Dr. Ünal/{SPACES}.nii.gz", "ok")


def _series(folder: Path, phantom: Phantom) -> Iterator[Fault]:
    """Folders of DICOM."""
    _write_series(folder / "dicom", phantom)
    yield Fault("dicom", "series/dicom", "ok")
    (_write_series(folder / "missing-slice", phantom) / "031.dcm").unlink()
    yield Fault("missing-slice", "series/missing-slice", "failed", "slices are missing, about 1")
    _write_series(folder / "duplicate-slice", phantom, again=30)
    yield Fault("duplicate-slice", "series/duplicate-slice", "failed", "lie in the same place")
    _write_series(folder / "two-series", phantom)
    _write_series(folder / "two-series", phantom, few=40, series_uid="1.2.3.6", prefix="b")
    yield Fault("two-series", "series/two-series", "ok", note="left aside: CT series 4 (40 slices")
    _write_series(folder / "mr", phantom, change=_as_mr)
    yield Fault("mr", "series/mr", "failed", "no CT series; it holds MR series")
    _write_series(folder / "no-rescale", phantom, change=_without_rescale)
    yield Fault("no-rescale", "series/no-rescale", "failed", "apply the rescale intercept")


def _as_mr(one: Dataset) -> None:
    one.Modality, one.SOPClassUID = "MR", MRImageStorage
    one.file_meta.MediaStorageSOPClassUID = MRImageStorage


def _without_rescale(one: Dataset) -> None:
    del one.RescaleSlope, one.RescaleIntercept


def _write_series(
    folder: Path,
    phantom: Phantom,
    *,
    change: Callable[[Dataset], None] = lambda _: None,
    few: int | None = None,
    again: int | None = None,
    series_uid: str = "1.2.3.5",
    prefix: str = "",
) -> Path:
    """The phantom as slices in the order of their names; the slice `again` twice, as two images in one place."""
    folder.mkdir(exist_ok=True)
    stored = (phantom.hu.astype(np.int32) + 1024).astype(np.uint16)
    numbers = list(range(len(stored)))[:few] + ([] if again is None else [again])
    for place, number in enumerate(numbers):
        position = (phantom.affine @ (number, 0, 0, 1))[:3]
        one = ct_slice(stored[number], position, series_uid, place + 1)
        one.PixelSpacing = [phantom.volume.spacing_mm[1], phantom.volume.spacing_mm[2]]
        one.SliceThickness = phantom.volume.spacing_mm[0]
        change(one)
        one.save_as(folder / f"{prefix}{place:03d}.dcm", enforce_file_format=True)
    return folder


def _names(folder: Path, phantom: Phantom) -> Iterator[Fault]:
    """Case names that would overwrite each other, or something else."""
    for name in ("one", "other"):
        _save(folder, name, phantom)
        yield Fault("twice", f"names/{name}.nii.gz", "failed", "2 scans of the cohort are named 'twice'")
    yield Fault("../../climbs", "names/one.nii.gz", "failed", "cannot be a folder in the output")
