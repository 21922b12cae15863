"""A CT series from DICOM files, placed by the positions in their headers and never by their names.

SliceThickness is not the distance between slices, file names and instance numbers are not their order, and
slope and intercept may change from slice to slice: each slice is placed by ImagePositionPatient and
ImageOrientationPatient and scaled by its own values. A stack with a gap, a double or a tilt is refused.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import pixel_array
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from diffseglung.gate import UnreadableScan, VolumeConfig, as_hu, check_grid
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
    *("ImageType", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "SamplesPerPixel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "LossyImageCompression"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
PARSE_ERRORS = (
    pydicom.errors.InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    struct.error,
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

    @property
    def name(self) -> str:
        return f"{self.file.name} frame {self.frame + 1}" if self.frame else self.file.name


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """One series as a volume: HU int16 (slices, rows, columns), the slices towards head, back or left."""

    series_uid: str
    hu: np.ndarray
    grid: Grid
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]


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
    """The DICOM files directly in a folder, by name. Hidden files are not looked at."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if is_dicom(path)]


def read_stack(path: Path, series: str | None, config: VolumeConfig) -> Stack:
    """Read the CT series of a folder, or the one that a file belongs to.

    Of several series in the folder it takes the one with the most slices that passes every check, and says so
    in the notes; between series of different studies it does not choose. Localizers and other modalities do
    not count.
    """
    folder = path if path.is_dir() else path.parent
    files = dicom_files(folder)
    if not files:
        raise UnreadableScan("the folder holds no DICOM file itself; name the folder that holds the slices")
    found, damaged = series_among(files)
    if damaged:
        first, reason = next(iter(damaged.items()))
        raise UnreadableScan(
            f"{len(damaged)} of its DICOM files cannot be read, {first.name} first: {reason}"
        )
    candidates = _candidates(found, series or _series_of(path, found))
    refusals = []
    for one in candidates:
        try:
            stack = _read_series(one, config)
        except UnreadableScan as refusal:
            refusals.append((one, refusal))
        else:
            return _with_note(stack, one, candidates, refusals)
    if len(refusals) == 1:
        raise refusals[0][1]
    reasons = "; ".join(f"{one.describe()}: {refusal}" for one, refusal in refusals)
    raise UnreadableScan(f"none of its {len(refusals)} CT series can be used: {reasons}")


def _series_of(path: Path, found: list[Series]) -> str | None:
    """The series that a single file belongs to; none for a folder."""
    if path.is_dir():
        return None
    owner = next((one.uid for one in found if any(file == path for file, _ in one.headers)), None)
    if owner is None:
        raise UnreadableScan("the file holds no CT slice (a localizer, a report or a directory?)")
    return owner


def _candidates(found: list[Series], series: str | None) -> list[Series]:
    """The CT series to try, most slices first."""
    listing = ", ".join(one.describe() for one in found) or "no images but localizers"
    if series is not None:
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
    stack: Stack, chosen: Series, candidates: list[Series], refusals: list[tuple[Series, UnreadableScan]]
) -> Stack:
    others = [one for one in candidates if one is not chosen]
    if not others:
        return stack
    reasons = {one.uid: f", refused: {refusal}" for one, refusal in refusals}
    listing = "; ".join(one.describe() + reasons.get(one.uid, "") for one in others)
    note = f"{chosen.describe()} was taken, the largest that passes the checks; left aside: {listing}"
    return Stack(stack.series_uid, stack.hu, stack.grid, stack.slices, (*stack.notes, note))


def _read_series(series: Series, config: VolumeConfig) -> Stack:
    notes: list[str] = []
    headers = _without_copies(series, notes)
    if any(header.get("LossyImageCompression") == "01" for _, header in headers):
        notes.append("the pixels were compressed with loss; textures suffer")
    slices, grid = stack_slices([one for path, header in headers for one in _slices(path, header)], config)
    check_grid(grid, config)
    return Stack(series.uid, as_hu(_pixels(slices, grid), config), grid, tuple(slices), tuple(notes))


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
    )


def _value(header: pydicom.Dataset, frame: int, group: str, keyword: str, default: Any = None) -> Any:
    """A value that may stand in the header, in the groups of one frame, or in those that all frames share."""
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
    normal = np.cross(first.along_row, first.along_column)
    if abs(np.linalg.norm(normal) - 1) > 1e-2:
        raise UnreadableScan(f"the row and column directions of {first.name} are not perpendicular")
    # Towards head, back or left, whichever is closest, so that an axial stack is canonical as it is.
    normal *= np.sign(normal[np.argmax(np.abs(normal))])
    ordered = sorted(slices, key=lambda one: float(one.position_mm @ normal))
    _check_even(ordered, np.array([one.position_mm @ normal for one in ordered]), config)
    step = (ordered[-1].position_mm - ordered[0].position_mm) / (len(ordered) - 1)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.along_column * first.spacing_mm[0]
    affine[:3, 2] = first.along_row * first.spacing_mm[1]
    affine[:3, 3] = ordered[0].position_mm
    return ordered, Grid((len(ordered), *first.shape), affine)


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
    for target, one in zip(hu, slices, strict=True):
        try:
            stored = pixel_array(one.file, index=one.frame)
        except DECODE_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnreadableScan(f"the pixels of {one.name} cannot be decoded: {reason}") from error
        if stored.shape != one.shape:
            raise UnreadableScan(
                f"the pixels of {one.name} have shape {stored.shape}, its header says {one.shape}"
            )
        target[...] = _hu(stored, one)
    return hu


def _hu(stored: np.ndarray, one: Slice) -> np.ndarray:
    scaled = np.rint(stored * np.float64(one.slope) + one.intercept)
    if one.padding is not None:
        low, high = one.padding
        # A padding value in the range of tissue cannot be told from tissue, and would punch holes in it.
        if not -800 < low * one.slope + one.intercept < 3071:
            scaled[(stored >= low) & (stored <= high)] = OUTSIDE_HU
    return np.clip(scaled, np.iinfo(np.int16).min, np.iinfo(np.int16).max).astype(np.int16)
