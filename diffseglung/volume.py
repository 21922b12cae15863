"""A chest CT in one frame, and the way back to the frame that it came in.

Inside the project every volume is canonical: HU int16 (z, y, x), z towards the head, y towards the back, x
towards the patient's left. Shown as stored, an axial slice is in radiological convention. `Source` remembers
how the file had it, so that results go out on the input's own grid, voxel for voxel.
"""

import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib

from diffseglung.dicom import is_dicom, place_stack, read_stack
from diffseglung.gate import UnreadableScan, VolumeConfig, as_hu, check_grid, check_size
from diffseglung.grid import (
    Flips,
    Grid,
    Order,
    canonical_axes,
    canonical_grid,
    crop_grid,
    reorder,
    resample_labels,
    resample_map,
    respace,
    respaced_grid,
    restore,
)
from diffseglung.scans import KINDS, ScanPath, file_suffix, find_scans

__all__ = [
    "WRITING",
    "Grid",
    "ScanPath",
    "Source",
    "UnreadableScan",
    "Volume",
    "VolumeConfig",
    "crop_grid",
    "find_scans",
    "read_grid",
    "read_labels",
    "read_volume",
    "resample",
    "resample_labels",
    "resample_map",
    "write_labels",
    "write_map",
    "write_volume",
    "written_whole",
]

# NIfTI speaks RAS, the project LPS: x and y change sign.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NIFTI2_BYTES = 540
# What a NIfTI header says about place. Everything else, free text included, stays behind.
NIFTI_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]
NIFTI_ERRORS = (
    *(OSError, EOFError, ValueError, zlib.error, DAMAGED),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)
# Padding after the voxels is harmless; a stream that goes on and on is not.
MORE_BYTES = 2**26
WRITING = ".writing-"  # begins the name of a folder of results until it is whole
# Beyond a tenth of a millimetre the rounding of a quaternion is not to blame.
SAME_PLACE_MM = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """How the input had it: its own grid and axis order, where it came from, and the hash of its bytes.

    `grid` is the grid as stored, slowest axis first. `files` and `frames` are for DICOM, in the order of the
    first stored axis, which for axial series is the canonical z.
    """

    kind: str
    path: str
    grid: Grid
    order: Order
    flips: Flips
    sha256: str
    series_uid: str | None = None
    files: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    nifti_header: bytes | None = field(default=None, repr=False)

    def to_canonical(self, stored: np.ndarray) -> np.ndarray:
        """An array in stored order to canonical order (a view)."""
        return reorder(stored, self.order, self.flips)

    def to_stored(self, canonical: np.ndarray) -> np.ndarray:
        """An array in canonical order to stored order (a view)."""
        return restore(canonical, self.order, self.flips)


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One CT: `hu` int16 (z, y, x), canonical, with the affine that places it (see `Grid`) and its source."""

    hu: np.ndarray
    affine: np.ndarray
    source: Source

    @property
    def grid(self) -> Grid:
        z, y, x = self.hu.shape
        return Grid((z, y, x), self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return self.grid.spacing_mm

    @staticmethod
    def from_array(
        hu: np.ndarray, spacing_mm: tuple[float, float, float], affine: np.ndarray | None = None
    ) -> "Volume":
        """A volume from an array that is canonical already, without a file: for the phantom and for tests."""
        if hu.ndim != 3:
            raise ValueError(f"hu must be (z, y, x), not of shape {hu.shape}")
        if affine is None:
            affine = np.eye(4)
            affine[:3, :3] = np.diag(spacing_mm)[::-1]
        z, y, x = hu.shape
        grid = Grid((z, y, x), np.asarray(affine, dtype=np.float64))
        if not np.allclose(grid.spacing_mm, spacing_mm, rtol=1e-4):
            raise ValueError(f"spacing_mm {spacing_mm} and the affine's {grid.spacing_mm} differ")
        values = np.ascontiguousarray(hu, dtype=np.int16)
        sha256 = hashlib.sha256(values.tobytes() + grid.affine.tobytes()).hexdigest()
        source = Source("array", "", grid, (0, 1, 2), (False, False, False), sha256)
        return Volume(values, grid.affine, source)


def read_volume(
    path: str | os.PathLike[str], *, series: str | None = None, config: VolumeConfig | None = None
) -> Volume:
    """Read a chest CT: a NIfTI, NRRD or MetaImage file, a folder of DICOM slices, or one of the slices.

    `series` is the SeriesInstanceUID to read where a folder holds several; without it the largest that passes
    every check is read, and a note says so. `UID#2` is the second of several stacks that lie in the same place
    in one series, such as the phases of a breath. Raises `UnreadableScan` with the reason in words.
    """
    path, config = Path(path), config or VolumeConfig()
    with _refusing(path):
        _check_place(path)
        if _is_dicom(path):
            return _read_dicom(path, series, config)
        stored, grid, header, notes = _read_file(path, config)
        check_grid(grid, config)
        hu, more_notes = as_hu(stored, config)
        order, flips = canonical_axes(grid)
        source = Source(
            kind=KINDS[file_suffix(path)],
            path=str(path),
            grid=grid,
            order=order,
            flips=flips,
            sha256=_sha256(path),
            notes=(*notes, *more_notes),
            nifti_header=header,
        )
        return _canonical(hu, source)


def read_grid(
    path: str | os.PathLike[str], *, series: str | None = None, config: VolumeConfig | None = None
) -> Grid:
    """The grid of a scan, as stored, from its headers alone; `series` as for `read_volume`.

    Raises `UnreadableScan` where `read_volume` would for want of a file, of a header or of a usable grid. What
    the voxels hold, and whether they are all there, it does not see.
    """
    path, config = Path(path), config or VolumeConfig()
    with _refusing(path):
        _check_place(path)
        if _is_dicom(path):
            return place_stack(path, series, config).grid
        kind = _kind_of(path)
        if kind == "nifti":
            with _refusing_nifti(path):
                _, _, grid, _ = _open_nifti(path, config)
        else:
            with _refusing_itk(path):
                grid = _itk_grid(_open_itk(path, config))
        check_grid(grid, config)
        return grid


def _check_place(path: Path) -> None:
    if not path.exists():
        lost = "it is a link that leads nowhere, or in a circle" if path.is_symlink() else ""
        raise UnreadableScan(lost or "there is no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise UnreadableScan("it is neither a file nor a folder")


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or (file_suffix(path) not in KINDS and is_dicom(path))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever stands between us and the file is told with the file's name."""
    try:
        yield
    except UnreadableScan as refusal:
        raise UnreadableScan(f"{path}: {refusal}") from refusal.__cause__
    except OSError as error:
        raise UnreadableScan(f"{path}: it cannot be read: {error.strerror or error}") from error


def _read_dicom(path: Path, series: str | None, config: VolumeConfig) -> Volume:
    stack = read_stack(path, series, config)
    files = tuple(str(one.file) for one in stack.slices)
    order, flips = canonical_axes(stack.grid)
    # The hash of the slices as a set: renaming or shuffling the files does not make another scan.
    hashes = "".join(sorted(_sha256(Path(file)) for file in set(files)))
    source = Source(
        kind="dicom",
        path=str(path),
        grid=stack.grid,
        order=order,
        flips=flips,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        series_uid=stack.series_uid,
        files=files,
        frames=tuple(one.frame for one in stack.slices),
        notes=stack.notes,
    )
    return _canonical(stack.hu, source)


def _canonical(hu: np.ndarray, source: Source) -> Volume:
    affine = canonical_grid(source.grid, source.order, source.flips).affine
    return Volume(np.ascontiguousarray(source.to_canonical(hu)), affine, source)


def read_labels(path: str | os.PathLike[str], like: Volume) -> np.ndarray:
    """Read a mask or label map that belongs to a scan: uint8 (z, y, x) on the canonical grid of `like`.

    The file may store its axes in another order than the scan; it must cover the same voxels.
    """
    path = Path(path)
    with _refusing(path):
        stored, grid, _, _ = _read_file(path, VolumeConfig())
        if stored.dtype.kind not in "iufb" or not ((stored >= 0) & (stored <= 255) & (stored % 1 == 0)).all():
            raise UnreadableScan("labels must be whole numbers from 0 to 255")
        order, flips = canonical_axes(grid)
        own = canonical_grid(grid, order, flips)
        if not own.matches(like.grid):
            raise UnreadableScan(
                f"its grid is not that of the scan {like.source.path}: {own.describe()}, the scan has "
                f"{like.grid.describe()}; resample it to the scan first"
            )
    return np.ascontiguousarray(reorder(stored, order, flips).astype(np.uint8))


def write_labels(path: str | os.PathLike[str], labels: np.ndarray, volume: Volume) -> None:
    """Write a label map, uint8 (z, y, x) canonical, on the grid and in the axis order of the scan's own file.

    NIfTI, NRRD or MetaImage by suffix; compressed; whole or not at all.
    """
    if labels.dtype not in (np.uint8, np.bool_):
        raise ValueError(f"labels must be uint8 or bool, not {labels.dtype}")
    _write(Path(path), _as_stored(labels.astype(np.uint8), volume), volume.source)


def write_volume(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write HU as int16 on the grid and in the axis order of the scan's own file; whole or not at all."""
    _write(Path(path), _as_stored(volume.hu, volume), volume.source)


def write_map(path: str | os.PathLike[str], array: np.ndarray, volume: Volume) -> None:
    """Write a map, float32 (z, y, x), or several, (c, z, y, x), on the grid of the scan's own file.

    Several maps become the fourth axis of a NIfTI file, as viewers expect.
    """
    array = np.asarray(array, dtype=np.float32)
    if array.ndim == 3:
        _write(Path(path), _as_stored(array, volume), volume.source)
        return
    if array.ndim != 4 or KINDS.get(file_suffix(Path(path))) != "nifti":
        raise ValueError(
            f"{path}: several maps need a (c, z, y, x) array and a NIfTI name, not {array.shape}"
        )
    _write(Path(path), np.stack([_as_stored(channel, volume) for channel in array]), volume.source)


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """The same field of view in other voxels: linear, smoothed first along the axes that get coarser.

    The smoothing turns the point spread of the old voxel into that of the new (Cardoso et al., MICCAI 2015).
    """
    target = respaced_grid(volume.grid, spacing_mm)
    hu = respace(volume.hu, volume.grid, target)
    return Volume(np.rint(hu).astype(np.int16), target.affine, volume.source)


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` once the block has ended well."""
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read_file(path: Path, config: VolumeConfig) -> tuple[np.ndarray, Grid, bytes | None, tuple[str, ...]]:
    """Stored values (slowest axis first), their grid, the NIfTI header if it is one, and notes."""
    kind = _kind_of(path)
    return _read_nifti(path, config) if kind == "nifti" else _read_itk(path, kind, config)


def _kind_of(path: Path) -> str:
    kind = KINDS.get(file_suffix(path))
    if kind is None:
        raise UnreadableScan(
            f"the file type is not known; it must end in one of {', '.join(KINDS)} or be DICOM"
            f"{_content_in_words(path)}"
        )
    if path.stat().st_size == 0:
        raise UnreadableScan("the file is empty (0 bytes)")
    return kind


def _read_nifti(path: Path, config: VolumeConfig) -> tuple[np.ndarray, Grid, bytes | None, tuple[str, ...]]:
    with _refusing_nifti(path):
        image, voxels, grid, notes = _open_nifti(path, config)
        stored = _nifti_values(path, grid.shape, voxels)
    return stored, grid, image.header.binaryblock, notes


def _open_nifti(
    path: Path, config: VolumeConfig
) -> tuple[nib.Nifti1Image, nib.arrayproxy.ArrayProxy, Grid, tuple[str, ...]]:
    """The image, its voxels unread, its grid, and notes on where it lies."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image), "only .nii and .nii.gz come here, of version 1 or 2"
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    voxels = image.dataobj
    assert isinstance(voxels, nib.arrayproxy.ArrayProxy), "an image from a file is read when asked for"
    _check_dimensions(shape, voxels.dtype)
    check_size(math.prod(shape), voxels.dtype.itemsize, config)
    affine, notes = _nifti_affine(image)
    affine = RAS_TO_LPS @ affine
    affine[:, :3] = affine[:, 2::-1]
    x, y, z = shape
    return image, voxels, Grid((z, y, x), affine), notes


@contextmanager
def _refusing_nifti(path: Path) -> Iterator[None]:
    with path.open("rb"):
        pass  # a file that may not be read is not a damaged one
    try:
        yield
    except UnreadableScan:
        raise
    except NIFTI_ERRORS as error:
        raise UnreadableScan(
            f"the file is damaged or no NIfTI file ({' '.join(str(error).split())}){_content_in_words(path)}"
        ) from error


def _nifti_values(path: Path, shape: tuple[int, ...], proxy: nib.arrayproxy.ArrayProxy) -> np.ndarray:
    """Values scaled by slope and intercept, slowest axis first, read to the last byte of the file.

    Only at its end does a gzip stream tell whether it is whole. A slice at a time, so that no more memory is
    taken than the file can fill.
    """
    stored = np.empty(shape, proxy.dtype)
    with igzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        file.seek(int(proxy.offset))
        for number, part in enumerate(stored):
            if file.readinto(part.view(np.uint8).reshape(-1)) != part.nbytes:
                raise EOFError(f"it ends in slice {number + 1} of {len(stored)}")
        rest = 0
        while more := len(file.read(2**20)):
            rest += more
            if rest > MORE_BYTES:
                raise ValueError("far more data follow than its header announces")
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if slope == 1 and intercept == 0:
        return stored
    scaled = np.asarray(stored, dtype=np.float64 if stored.dtype.itemsize > 4 else np.float32)
    return scaled * np.asarray(slope, scaled.dtype) + np.asarray(intercept, scaled.dtype)


def _nifti_affine(image: nib.Nifti1Image) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index to RAS mm: the sform where it is set and sound, else the qform, else a guess from the spacing."""
    (qform, q_code), (sform, s_code) = image.header.get_qform(coded=True), image.header.get_sform(coded=True)
    if not q_code and not s_code:
        return image.affine, ("the header gives no orientation; left and right are a guess",)
    if not s_code or not q_code:
        return image.affine, ()
    if not np.isfinite(sform).all() or abs(np.linalg.det(sform[:3, :3])) < 1e-12:
        return qform, ("the sform is broken; the qform was used",)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape[:3]) - 1)
    apart_mm = np.linalg.norm(nib.affines.apply_affine(qform - sform, corners), axis=1).max()
    if apart_mm <= SAME_PLACE_MM:
        return sform, ()
    return sform, (f"qform and sform disagree by up to {apart_mm:.1f} mm; the sform was used",)


def _read_itk(
    path: Path, kind: str, config: VolumeConfig
) -> tuple[np.ndarray, Grid, bytes | None, tuple[str, ...]]:
    with _refusing_itk(path):
        reader = _open_itk(path, config)
        image = reader.Execute()
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    values = sitk.GetArrayFromImage(image)
    unplaced = kind == "nrrd" and not reader.HasMetaDataKey("NRRD_space")
    notes = ("the header gives no space; left and right are a guess",) if unplaced else ()
    return values, _itk_grid(reader), None, notes


def _open_itk(path: Path, config: VolumeConfig) -> sitk.ImageFileReader:
    """A reader that has read the header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    check_size(math.prod(reader.GetSize()) * components, 2, config)
    if components != 1:
        raise UnreadableScan(f"it has {components} values a voxel (colour?); one number per voxel is needed")
    size = reader.GetSize()
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    _check_dimensions(size, np.dtype(np.int16))
    return reader


def _itk_grid(reader: sitk.ImageFileReader) -> Grid:
    dimension = reader.GetDimension()
    direction = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = (direction * reader.GetSpacing()[:3])[:, ::-1]
    affine[:3, 3] = reader.GetOrigin()[:3]
    x, y, z = reader.GetSize()[:3]
    return Grid((z, y, x), affine)


@contextmanager
def _refusing_itk(path: Path) -> Iterator[None]:
    with path.open("rb"):
        pass
    try:
        yield
    except RuntimeError as error:
        raise UnreadableScan(
            f"the file is damaged or of another type ({str(error).splitlines()[-1]}){_content_in_words(path)}"
        ) from error


def _check_dimensions(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind == "V":
        raise UnreadableScan("it is a colour image; one number per voxel is needed")
    if len(shape) != 3:
        kind = "a flat image" if len(shape) < 3 else "a series of volumes"
        raise UnreadableScan(f"it is {kind} of shape {'x'.join(map(str, shape))}; one 3-D volume is needed")


def _content_in_words(path: Path) -> str:
    """What the first bytes say that a file is, where its name says something else; else nothing."""
    with path.open("rb") as file:
        start = file.read(352)
    said = file_suffix(path)
    for bytes_say, name, suffixes in (
        (start[128:132] == b"DICM", "DICOM", (".dcm",)),
        (start[:2] == b"\x1f\x8b", "gzip, perhaps NIfTI", (".nii.gz",)),
        (start[344:347] in (b"n+1", b"ni1") or start[4:7] == b"n+2", "NIfTI", (".nii",)),
        (start[:4] == b"NRRD", "NRRD", (".nrrd", ".nhdr")),
        (b"ElementType" in start or start[:10] == b"ObjectType", "MetaImage", (".mha", ".mhd")),
    ):
        if bytes_say and said not in suffixes:
            return f"; by its first bytes it is {name}, whose name should end in {suffixes[0]}"
    return ""


def _sha256(path: Path) -> str:
    """The hash of a file's bytes; a bare `.mhd` or `.nhdr` header is hashed with its data file."""
    with path.open("rb") as file:
        own = hashlib.file_digest(file, "sha256").hexdigest()
    if file_suffix(path) not in (".mhd", ".nhdr"):
        return own
    data = re.search(rb"(?im)^(?:ElementDataFile *=|data ?file *:) *(.+?)\s*$", path.read_bytes())
    beside = path.parent / data[1].decode(errors="replace") if data else path
    if beside == path or not beside.is_file():
        return own
    return hashlib.sha256((own + _sha256(beside)).encode()).hexdigest()


def _as_stored(array: np.ndarray, volume: Volume) -> np.ndarray:
    source = volume.source
    expected = tuple(source.grid.shape[axis] for axis in source.order)
    if array.shape != expected:
        raise ValueError(
            f"the array has shape {array.shape} (z, y, x), the input {expected}; bring it back to the "
            "input's grid first (resample_labels, resample_map)"
        )
    return np.ascontiguousarray(source.to_stored(array))


def _write(path: Path, stored: np.ndarray, source: Source) -> None:
    kind = KINDS.get(file_suffix(path))
    if kind is None:
        raise ValueError(f"{path}: the name must end in one of {', '.join(KINDS)}")
    with written_whole(path) as beside:
        if kind == "nifti":
            _save_nifti(_nifti_image(stored, source), beside)
        else:
            sitk.WriteImage(_itk_image(stored, source.grid), str(beside), useCompression=True)


def _save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    if path.suffix.lower() != ".gz":
        nib.save(image, path)
        return
    # The same voxels give the same bytes: no time and no name goes in.
    with path.open("wb") as file, igzip.IGzipFile("", "wb", 1, file, mtime=0) as packed:
        image.to_stream(packed)


def _nifti_image(stored: np.ndarray, source: Source) -> nib.Nifti1Image:
    values = np.moveaxis(stored, 0, -1).transpose(2, 1, 0, 3) if stored.ndim == 4 else stored.T
    if source.nifti_header is None:
        affine = source.grid.affine.copy()
        affine[:, :3] = affine[:, 2::-1]
        image = nib.Nifti1Image(values, RAS_TO_LPS @ affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(image.affine, code=1)
        image.set_sform(image.affine, code=1)
        return image
    # With the fields copied, codes included, every viewer lays the result over the scan, whatever its rules.
    kind = nib.Nifti2Image if len(source.nifti_header) == NIFTI2_BYTES else nib.Nifti1Image
    given, header = kind.header_class(source.nifti_header), kind.header_class()
    for name in NIFTI_GEOMETRY:
        header[name] = given[name]
    header.set_data_dtype(values.dtype)
    return kind(values, None, header)


def _itk_image(stored: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(stored)
    spacing = grid.spacing_mm[::-1]
    image.SetSpacing(spacing)
    image.SetOrigin(grid.affine[:3, 3].tolist())
    image.SetDirection((grid.affine[:3, 2::-1] / spacing).ravel().tolist())
    return image
