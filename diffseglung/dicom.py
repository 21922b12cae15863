"""A CT series from DICOM files, placed by the positions in their headers and never by their names.

SliceThickness is not the distance between slices, file names and instance numbers are not their order, and
slope and intercept may change from slice to slice: each slice is placed by ImagePositionPatient and
ImageOrientationPatient and scaled by its own values. A stack with a gap, a double or a tilt is refused.
"""

import os
import re
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    LegacyConvertedEnhancedCTImageStorage,
)

from diffseglung.gate import UnreadableScan, VolumeConfig, as_hu, check_grid, check_size
from diffseglung.grid import Grid

SUFFIXES = (".dcm", ".dicom", ".ima")
CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
# Spectral scanners also write maps of other quantities as CT; US, unspecified, is what older scanners say.
HU_TYPES = ("", "HU", "US", "HU_MOD")
# Marks padding until the gate has looked at the values: below anything that counts as air.
OUTSIDE_HU = -3024
# What the listing needs, so that the cost of a cohort is not parsing private tags.
TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber"),
    *("ImageType", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "SamplesPerPixel", "SliceThickness"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "ConvolutionKernel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "LossyImageCompression"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
# What tells stacks apart that lie in the same place in one series, and the group that holds it in a multi-frame file.
APART = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("", "TemporalPositionIdentifier"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("", "AcquisitionNumber"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("", "ImageType"),
)
# Stacks that cover less of what all cover together are stretches of one scan, and one of them is not the lung.
STACK_COVERS = 0.9
# A scout stands upright where the slices lie; a tilted gantry leans by 30 degrees at most.
SCOUT_COSINE = 0.8
FEW_SCOUTS = 4
# Nobody images a chest in thicker slices; such a header is wrong.
THICKEST_MM = 30.0
# An enhanced CT of 600 slices of 512x512 has 300 MiB.
DEFLATED_BYTES = 2**30
# GDCM, in SimpleITK, decodes these in half the time of libjpeg, and sees that a file was cut short.
GDCM_SYNTAXES = (JPEGLossless, JPEGLosslessSV1)
GDCM_BATCH = 8
END_OF_PIXELS = b"\xfe\xff\xdd\xe0\0\0\0\0"
UNCOMPRESSED = (
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
    DeflatedExplicitVRLittleEndian,
)
PARSE_ERRORS = (
    pydicom.errors.InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
DECODE_ERRORS = (*PARSE_ERRORS, AttributeError, RuntimeError, NotImplementedError, IndexError)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The image files of one DICOM series in one folder, as their headers tell, before any pixel is read."""

    uid: str
    study_uid: str
    number: str
    modality: str
    is_ct: bool
    headers: tuple[tuple[Path, pydicom.Dataset], ...]

    @property
    def count(self) -> int:
        """Slices, a multi-frame file counting all of its frames."""
        return sum(int(header.get("NumberOfFrames") or 1) for _, header in self.headers)

    def describe(self) -> str:
        """`CT series 4 (148 slices, UID 1.2.3)`. No description: it may name a person."""
        return f"{self.modality} series {self.number or '?'} ({self.count} slices, UID {self.uid})"


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One image of a stack: where it lies (mm, LPS) and how its stored values become HU."""

    file: Path
    frame: int
    position_mm: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    thickness_mm: float | None
    header: pydicom.Dataset = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.file.name} frame {self.frame + 1}" if self.frame else self.file.name


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Placed:
    """One series as its headers place it, the slices towards head, back or left."""

    series_uid: str
    grid: Grid
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stack(Placed):
    """One series as a volume: HU int16 (slices, rows, columns)."""

    hu: np.ndarray


P = TypeVar("P", bound=Placed)


def is_dicom(path: Path) -> bool:
    """By the mark at byte 128, or by name: a damaged `.dcm` file is still meant to be DICOM."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # not ours to read, and nothing says that it is a scan
        return False


def series_among(files: Iterable[Path]) -> tuple[list[Series], dict[Path, str]]:
    """The image series that the files make up, most slices first, and why any file could not be read."""
    grouped: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    damaged: dict[Path, str] = {}
    for path in files:
        try:
            _check_deflated(path)
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS, force=True)
        except PARSE_ERRORS as error:
            damaged[path] = str(error) or type(error).__name__
            continue
        if "SOPClassUID" not in header and "SeriesInstanceUID" not in header:
            if path.name.upper() != "DICOMDIR":
                damaged[path] = "empty (0 bytes)" if path.stat().st_size == 0 else "no DICOM header"
        elif "Rows" in header and "LOCALIZER" not in (header.get("ImageType") or ()):
            grouped[str(header.get("SeriesInstanceUID", ""))].append((path, header))
    series = [_series(uid, headers) for uid, headers in grouped.items()]
    return sorted(series, key=lambda one: (-one.count, one.number, one.uid)), damaged


def _check_deflated(path: Path) -> None:
    """A deflated data set is unpacked whole to read its header: not one that fills the memory."""
    with path.open("rb") as file:
        start = file.read(1024)
        if DeflatedExplicitVRLittleEndian.encode() not in start:
            return
        if start[132:138] != b"\2\0\0\0UL":
            raise ValueError("its file meta information does not give its length")
        file.seek(144 + struct.unpack("<L", start[140:144])[0])
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        packed = file.read(2**16)
        while packed and not inflate.eof:
            size += len(inflate.decompress(packed, 2**20))
            if size > DEFLATED_BYTES:
                raise ValueError(f"it unpacks to more than {DEFLATED_BYTES // 2**20} MiB")
            packed = inflate.unconsumed_tail or file.read(2**16)


def _series(uid: str, headers: list[tuple[Path, pydicom.Dataset]]) -> Series:
    first = headers[0][1]
    return Series(
        uid=uid,
        study_uid=str(first.get("StudyInstanceUID", "")),
        number=str(first.get("SeriesNumber") or ""),
        modality=str(first.get("Modality", "")) or "unnamed",
        is_ct=all(header.get("SOPClassUID") in CT_CLASSES for _, header in headers),
        headers=tuple(headers),
    )


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, by name. Hidden files are not looked at.

    A file that is none, but is named like one that is, digits apart, is a slice come to harm: were it passed
    over, nobody would see that the first or last slice is missing.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    sound = {path for path in files if is_dicom(path)}
    names = {_without_digits(path) for path in sound}
    return [path for path in files if path in sound or _without_digits(path) in names]


def _without_digits(path: Path) -> str:
    return re.sub(r"\d+", "#", path.name)


def read_stack(path: Path, series: str | None, config: VolumeConfig) -> Stack:
    """Read the CT series of a folder, or the one that a file belongs to; `UID#2` is the second stack of one.

    Where the folder itself holds no such series, the folders below it are searched. Of several series it takes
    the one with the most slices that passes every check, and says so in the notes; between series of different
    studies it does not choose. Localizers and other modalities do not count.
    """
    return _first_that_passes(path, series, lambda one, number: _read_series(one, number, config))


def place_stack(path: Path, series: str | None, config: VolumeConfig) -> Placed:
    """The same from the headers alone, without a pixel."""
    return _first_that_passes(path, series, lambda one, number: _place_series(one, number, config))


def _first_that_passes(path: Path, series: str | None, read: Callable[[Series, str], P]) -> P:
    uid, _, number = (series or "").partition("#")
    found, damaged = _listed(path, uid)
    if damaged:
        first, reason = next(iter(damaged.items()))
        raise UnreadableScan(
            f"{len(damaged)} of its DICOM files cannot be read, {first.name} first: {reason}"
        )
    uid = uid or _series_of(path, found)
    candidates = _candidates(found, uid)
    refusals = []
    for one in candidates:
        try:
            stack = read(one, number)
        except UnreadableScan as refusal:
            refusals.append((one, refusal))
        else:
            return _with_note(stack, one, candidates, refusals)
    if len(refusals) == 1:
        raise refusals[0][1]
    reasons = "; ".join(f"{one.describe()}: {refusal}" for one, refusal in refusals)
    raise UnreadableScan(f"none of its {len(refusals)} CT series can be used: {reasons}")


def _listed(path: Path, uid: str) -> tuple[list[Series], dict[Path, str]]:
    """What the folder holds, or, where that is not what is wanted, what all the folders below it hold."""
    folder = path if path.is_dir() else path.parent
    found, damaged = series_among(dicom_files(folder))
    if damaged or any(not uid or one.uid == uid for one in found) or not path.is_dir():
        return found, damaged

    def refuse(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=refuse)
    below = sorted(Path(here) for here, _, _ in walk if "/." not in here.removeprefix(str(folder)))
    files = [file for here in below for file in dicom_files(here)]
    if not files:
        raise UnreadableScan("it holds no DICOM file, and no folder below it does")
    found, damaged = series_among(files)
    homes = {file.parent for one in found for file, _ in one.headers if not uid or one.uid == uid}
    return found, {file: why for file, why in damaged.items() if file.parent in homes or not homes}


def _series_of(path: Path, found: list[Series]) -> str:
    """The series that a single file belongs to; none for a folder."""
    if path.is_dir():
        return ""
    owner = next((one.uid for one in found if any(file == path for file, _ in one.headers)), None)
    if owner is None:
        raise UnreadableScan("the file holds no CT slice (a localizer, a report or a directory?)")
    return owner


def _candidates(found: list[Series], series: str) -> list[Series]:
    """The CT series to try, most slices first."""
    listing = ", ".join(one.describe() for one in found) or "no images but localizers"
    if series:
        found = [one for one in found if one.uid == series]
        if not found:
            raise UnreadableScan(f"it holds no series {series}; it holds {listing}")
    candidates = [one for one in found if one.is_ct and one.modality == "CT"]
    if not candidates:
        raise UnreadableScan(f"it holds no CT series; it holds {listing}")
    if len({one.study_uid for one in candidates}) > 1:
        raise UnreadableScan(f"it holds series of several studies; name one of them by its UID: {listing}")
    return candidates


def _with_note(
    stack: P, chosen: Series, candidates: list[Series], refusals: list[tuple[Series, UnreadableScan]]
) -> P:
    others = [one for one in candidates if one is not chosen]
    if not others:
        return stack
    reasons = {one.uid: f", refused: {refusal}" for one, refusal in refusals}
    listing = "; ".join(one.describe() + reasons.get(one.uid, "") for one in others)
    note = f"{chosen.describe()} was taken, the largest that passes the checks; left aside: {listing}"
    return replace(stack, notes=(*stack.notes, note))


def _read_series(series: Series, number: str, config: VolumeConfig) -> Stack:
    placed = _place_series(series, number, config)
    hu, notes = as_hu(_pixels(list(placed.slices), placed.grid), config)
    return Stack(
        series_uid=placed.series_uid,
        grid=placed.grid,
        slices=placed.slices,
        notes=(*placed.notes, *notes),
        hu=hu,
    )


def _place_series(series: Series, number: str, config: VolumeConfig) -> Placed:
    notes: list[str] = []
    headers = _without_copies(series, notes)
    _check_decodable(headers)
    if any(header.get("LossyImageCompression") == "01" for _, header in headers):
        notes.append("the pixels were compressed with loss; textures suffer")
    slices = _without_scouts([one for path, header in headers for one in _slices(path, header)], notes)
    slices, grid = stack_slices(_one_stack(slices, series.uid, number, notes), config)
    check_grid(grid, config)
    _check_thickness(slices, grid, notes, config)
    check_size(np.prod(grid.shape, dtype=float), 2, config)
    if not any(_tells(one, "PixelValueTransformationSequence", "RescaleIntercept") for one in slices):
        notes.append(
            "the headers give no rescale; the stored values were taken for HU, as their peaks bear out"
        )
    return Placed(series_uid=series.uid, grid=grid, slices=tuple(slices), notes=tuple(notes))


def _check_decodable(headers: list[tuple[Path, pydicom.Dataset]]) -> None:
    """Refuse a compression that nothing here can undo, and name what could."""
    for syntax in sorted({_syntax(header) for _, header in headers}):
        if syntax in GDCM_SYNTAXES or syntax in UNCOMPRESSED:
            continue
        name = f"{syntax.name} ({syntax})" if syntax.name != syntax else str(syntax)
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError as error:
            raise UnreadableScan(
                f"its pixels are stored as {name}, which is no known way to store a slice"
            ) from error
        if not decoder.is_available:
            needed = " or ".join(decoder.missing_dependencies)
            raise UnreadableScan(
                f"its pixels are compressed as {name}, and what decodes them is not installed ({needed}); "
                "install it with pip, or decompress the series first (gdcmconv --raw)"
            )


def _syntax(header: pydicom.Dataset) -> UID:
    """The transfer syntax; where the file does not say, how it was found to be encoded."""
    said = header.file_meta.get("TransferSyntaxUID")
    if said is not None:
        return UID(said)
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _without_scouts(slices: list[Slice], notes: list[str]) -> list[Slice]:
    """The slices without the few images that stand across them, which not every scanner marks as localizers."""
    normals = np.array([np.cross(one.along_row, one.along_column) for one in slices])
    alike = np.abs(normals @ normals.T) > SCOUT_COSINE
    most = alike[int(np.argmax(alike.sum(axis=1)))]
    across = len(slices) - int(most.sum())
    if not 0 < across <= FEW_SCOUTS or across >= most.sum():
        return slices
    notes.append(f"{across} images that stand across the others (scouts?) were left out")
    return [one for one, kept in zip(slices, most, strict=True) if kept]


def _one_stack(slices: list[Slice], uid: str, number: str, notes: list[str]) -> list[Slice]:
    """The first of the largest of the stacks that a series holds in one place, or that of a number from 1."""
    stacks = sorted(_split(slices, range(len(APART))), key=lambda stack: _natural(stack[0]))
    if number and number not in map(str, range(1, 1 + len(stacks))):
        raise UnreadableScan(f"series {uid} holds {len(stacks)} stacks; there is no number {number!r}")
    if len(stacks) == 1:
        return slices
    telling = [i for i in range(len(APART)) if len({_tells(stack[0], *APART[i]) for stack in stacks}) > 1]
    labels = [
        " ".join(f"{APART[i][1]} {_tells(stack[0], *APART[i]) or 'none'}" for i in telling)
        + f" ({len(stack)} slices)"
        for stack in stacks
    ]
    listing = "; ".join(f"{i}: {label}" for i, label in enumerate(labels, start=1))
    chosen = int(number) - 1 if number else max(range(len(stacks)), key=lambda i: (len(stacks[i]), -i))
    heights = [one.position_mm @ _normal(slices[0]) for one in slices]
    own = [one.position_mm @ _normal(slices[0]) for one in stacks[chosen]]
    if not number and np.ptp(own) < STACK_COVERS * np.ptp(heights):
        raise UnreadableScan(
            f"it holds {len(stacks)} stacks that cover different stretches of the body: {listing}; "
            f"name one of them as {uid}#1 to {uid}#{len(stacks)}"
        )
    notes.append(
        f"the series holds {len(stacks)} stacks in one place: {listing}; number {chosen + 1} was taken, name "
        f"another as {uid}#N"
    )
    return stacks[chosen]


def _split(slices: list[Slice], keys: Iterable[int]) -> list[list[Slice]]:
    """Slices parted by the first keys that leave no two of them in one place; unparted where none does."""
    keys = list(keys)
    if len({tuple(np.round(one.position_mm, 2)) for one in slices}) == len(slices) or not keys:
        return [slices]
    groups: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        groups[_tells(one, *APART[keys[0]])].append(one)
    return [stack for group in groups.values() for stack in _split(group, keys[1:])]


def _natural(one: Slice) -> list[tuple[float, str]]:
    """So that time point 10 comes after 9."""
    values = [_tells(one, group, keyword) for group, keyword in APART]
    return [(float(value) if value.isdecimal() else 0.0, value) for value in values]


def _tells(one: Slice, group: str, keyword: str) -> str:
    """What the header of a slice says under a keyword, and nothing where it says nothing."""
    value = _value(one.header, one.frame, group, keyword, "")
    return "\\".join(value) if isinstance(value, MultiValue) else str(value)


def _check_thickness(slices: list[Slice], grid: Grid, notes: list[str], config: VolumeConfig) -> None:
    """A header may be wrong about thickness, so that it never places a slice; but thick slices stay thick."""
    given = [one.thickness_mm for one in slices if one.thickness_mm and one.thickness_mm <= THICKEST_MM]
    if not given:
        return
    thickness_mm, step_mm = float(np.median(given)), grid.spacing_mm[0]
    if thickness_mm > config.max_slice_mm:
        raise UnreadableScan(
            f"its slices are {thickness_mm:.2f} mm thick, {step_mm:.2f} mm apart; thicker than max_slice_mm, "
            f"{config.max_slice_mm}, is too coarse"
        )
    if thickness_mm > 1.5 * step_mm:
        notes.append(
            f"slices of {thickness_mm:.2f} mm overlap, {step_mm:.2f} mm apart: across them the scan is no finer "
            f"than {thickness_mm:.2f} mm"
        )
    if thickness_mm < 0.5 * step_mm:
        notes.append(
            f"slices of {thickness_mm:.2f} mm lie {step_mm:.2f} mm apart: the lung between them was not imaged"
        )


def _without_copies(series: Series, notes: list[str]) -> list[tuple[Path, pydicom.Dataset]]:
    """Each image once: the same file copied twice into a folder is common and harmless."""
    unique = {
        str(header.get("SOPInstanceUID", path)): (path, header) for path, header in reversed(series.headers)
    }
    copies = len(series.headers) - len(unique)
    if copies:
        notes.append(
            f"{copies} files repeat an image that is there already (same SOPInstanceUID) and were left out"
        )
    return list(unique.values())


def _slices(path: Path, header: pydicom.Dataset) -> list[Slice]:
    frames = range(int(header.get("NumberOfFrames") or 1))
    try:
        return [_slice(path, header, frame) for frame in frames]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UnreadableScan(f"slice {path.name} cannot be used: {error}") from error


def _slice(path: Path, header: pydicom.Dataset, frame: int) -> Slice:
    """Where a frame lies and how it is scaled, from the header itself or from its functional groups."""
    kind = str(_value(header, frame, "PixelValueTransformationSequence", "RescaleType", ""))
    if kind not in HU_TYPES:
        raise ValueError(f"its values are {kind}, not Hounsfield units")
    if header.get("SamplesPerPixel", 1) != 1:
        raise ValueError("it is a colour image")
    orientation = _numbers(_value(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    row_mm, column_mm = _numbers(_value(header, frame, "PixelMeasuresSequence", "PixelSpacing"), 2)
    return Slice(
        file=path,
        frame=frame,
        position_mm=_numbers(_value(header, frame, "PlanePositionSequence", "ImagePositionPatient"), 3),
        along_row=orientation[:3],
        along_column=orientation[3:],
        spacing_mm=(float(row_mm), float(column_mm)),
        shape=(int(header.Rows), int(header.Columns)),
        slope=float(_value(header, frame, "PixelValueTransformationSequence", "RescaleSlope", 1)),
        intercept=float(_value(header, frame, "PixelValueTransformationSequence", "RescaleIntercept", 0)),
        padding=_padding(header),
        thickness_mm=float(_value(header, frame, "PixelMeasuresSequence", "SliceThickness", 0) or 0) or None,
        header=header,
    )


def _value(header: pydicom.Dataset, frame: int, group: str, keyword: str, default: Any = None) -> Any:
    """A value that may stand in the header, in the groups of one frame, or in those that all frames share."""
    if "NumberOfFrames" in header:
        per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
        shared = header.get("SharedFunctionalGroupsSequence") or []
        for groups in (*per_frame[frame : frame + 1], *shared[:1]):
            if groups.get(group):
                return groups[group][0].get(keyword, default)
    value = header.get(keyword)
    if value is None and default is None:
        raise ValueError(f"{keyword} is missing")
    return default if value is None else value


def _numbers(values: Any, count: int) -> np.ndarray:
    numbers = np.array([float(value) for value in values])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{count} numbers expected, {list(values)} found")
    return numbers


def _padding(header: pydicom.Dataset) -> tuple[int, int] | None:
    first = header.get("PixelPaddingValue")
    if first is None:
        return None
    last = header.get("PixelPaddingRangeLimit")
    # Writers confuse signed and unsigned here: 63536 in a signed image is -2000.
    kind = np.int16 if header.get("PixelRepresentation") == 1 else np.uint16
    ends = sorted(int(np.array(value).astype(kind)) for value in (first, first if last is None else last))
    return ends[0], ends[1]


def stack_slices(slices: list[Slice], config: VolumeConfig) -> tuple[list[Slice], Grid]:
    """The slices in order along their normal, and their grid.

    Raises `UnreadableScan` where they are not one even stack: slices that differ in size, direction or pixel
    spacing, gaps, doubles. Tilt is for `check_grid`.
    """
    if len(slices) < 2:
        raise UnreadableScan(f"it holds {len(slices)} slice; a volume of slices is needed")
    first = slices[0]
    for one in slices[1:]:
        _check_alike(one, first)
    normal = _normal(first)
    if abs(np.linalg.norm(normal) - 1) > 1e-2:
        raise UnreadableScan(f"the row and column directions of {first.name} are not perpendicular")
    ordered = sorted(slices, key=lambda one: float(one.position_mm @ normal))
    _check_even(ordered, np.array([one.position_mm @ normal for one in ordered]), config)
    step = (ordered[-1].position_mm - ordered[0].position_mm) / (len(ordered) - 1)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.along_column * first.spacing_mm[0]
    affine[:3, 2] = first.along_row * first.spacing_mm[1]
    affine[:3, 3] = ordered[0].position_mm
    return ordered, Grid((len(ordered), *first.shape), affine)


def _normal(one: Slice) -> np.ndarray:
    """Towards head, back or left, whichever is closest, so that an axial stack is canonical as it is."""
    normal = np.cross(one.along_row, one.along_column)
    return normal * np.sign(normal[np.argmax(np.abs(normal))])


def _check_alike(one: Slice, first: Slice) -> None:
    if one.shape != first.shape:
        raise UnreadableScan(
            f"slices differ in size: {first.name} {first.shape}, {one.name} {one.shape} (rows, columns)"
        )
    if not np.allclose(one.spacing_mm, first.spacing_mm, rtol=1e-3):
        raise UnreadableScan(
            f"slices differ in pixel spacing: {first.name} {first.spacing_mm}, {one.name} {one.spacing_mm} mm"
        )
    turned = max(
        np.abs(one.along_row - first.along_row).max(), np.abs(one.along_column - first.along_column).max()
    )
    if turned > 1e-3:
        raise UnreadableScan(f"slices differ in orientation: {first.name} and {one.name}")


def _check_even(ordered: list[Slice], along_mm: np.ndarray, config: VolumeConfig) -> None:
    steps_mm = np.diff(along_mm)
    step_mm = float(np.median(steps_mm))
    tightest, widest = int(np.argmin(steps_mm)), int(np.argmax(steps_mm))
    if steps_mm[tightest] < max(0.01, 0.1 * step_mm):
        raise UnreadableScan(
            f"{ordered[tightest].name} and {ordered[tightest + 1].name} lie in the same place "
            f"({along_mm[tightest]:.2f} mm along the stack): two phases or reconstructions in one series? "
            "Keep one of them"
        )
    if steps_mm[widest] > 1.5 * step_mm:
        missing = sum(round(gap / step_mm) - 1 for gap in steps_mm[steps_mm > 1.5 * step_mm])
        before, after = ordered[widest].name, ordered[widest + 1].name
        raise UnreadableScan(
            f"slices are missing, about {missing}: they lie {step_mm:.2f} mm apart, but {before} at "
            f"{along_mm[widest]:.2f} mm and {after} at {along_mm[widest + 1]:.2f} mm are neighbours. "
            "Fetch the series again, or resample it to even slices"
        )
    if max(steps_mm[widest] - step_mm, step_mm - steps_mm[tightest]) > config.max_uneven * step_mm:
        raise UnreadableScan(
            f"its slices are uneven, from {steps_mm[tightest]:.2f} to {steps_mm[widest]:.2f} mm apart, more "
            f"than max_uneven ({config.max_uneven:.0%}) allows; resample it to even slices first"
        )


def _pixels(slices: list[Slice], grid: Grid) -> np.ndarray:
    """HU int16 (slices, rows, columns), one slice decoded at a time; padding is OUTSIDE_HU."""
    hu = np.empty(grid.shape, dtype=np.int16)
    together: dict[object, list[int]] = defaultdict(list)
    for number, one in enumerate(slices):
        together[(one.intercept, number // GDCM_BATCH) if _is_for_gdcm(one) else one.file].append(number)
    for numbers in together.values():
        frames = _frames([slices[number] for number in numbers])
        for number in numbers:
            one = slices[number]
            try:
                stored = next(frames)
            except DECODE_ERRORS as error:
                reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
                raise UnreadableScan(f"the pixels of {one.name} cannot be decoded: {reason}") from error
            if stored.shape != one.shape:
                raise UnreadableScan(
                    f"the pixels of {one.name} have shape {stored.shape}, its header says {one.shape}"
                )
            hu[number] = _hu(stored, one)
    return hu


def _is_for_gdcm(one: Slice) -> bool:
    """A lossless JPEG that ends as it should; of one that was cut short GDCM takes gigabytes to say no."""
    if _syntax(one.header) not in GDCM_SYNTAXES or "NumberOfFrames" in one.header:
        return False
    if one.slope != 1 or not one.intercept.is_integer():
        return False
    with one.file.open("rb") as file:
        file.seek(-len(END_OF_PIXELS), os.SEEK_END)
        return file.read() == END_OF_PIXELS


def _frames(slices: list[Slice]) -> Iterator[np.ndarray]:
    """Stored values (rows, columns) of slices that are decoded together, in their order."""
    if _is_for_gdcm(slices[0]):
        yield from _from_gdcm(slices)
        return
    # Whole, for then a file that was cut short is found out; the decoders make up what is missing.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="End of file reached")
        dataset = pydicom.dcmread(slices[0].file, force=True)
    if "PixelData" not in dataset:
        raise ValueError("they are missing or cut short")
    dataset.file_meta.TransferSyntaxUID = _syntax(dataset)
    yield from iter_pixels(dataset, indices=[one.frame for one in slices])


def _from_gdcm(slices: list[Slice]) -> Iterator[np.ndarray]:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(one.file) for one in slices])
    try:
        rescaled = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        if len(slices) == 1:
            raise ValueError("they are damaged or cut short") from error
        for one in slices:  # to find out which
            yield from _from_gdcm([one])
        return
    for image in rescaled:
        yield image.astype(np.int32) - int(slices[0].intercept)


def _hu(stored: np.ndarray, one: Slice) -> np.ndarray:
    if one.slope == 1 and one.intercept.is_integer():
        scaled = stored.astype(np.int32) + int(one.intercept)
    else:
        scaled = np.rint(stored * np.float64(one.slope) + one.intercept)
    if one.padding is not None:
        low, high = one.padding
        # A padding value in the range of tissue cannot be told from tissue, and would punch holes in it.
        if not -800 < low * one.slope + one.intercept < 3071:
            scaled[(stored >= low) & (stored <= high)] = OUTSIDE_HU
    return np.clip(scaled, np.iinfo(np.int16).min, np.iinfo(np.int16).max).astype(np.int16)
