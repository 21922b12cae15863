"""A cohort: which scans, under which names. From a folder, a CSV or Parquet manifest, or a URI of either.

Only names and places are kept here. Voxels are read where they are worked on, so a cohort of any size fits.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from diffseglung.gate import UnreadableScan, VolumeConfig
from diffseglung.scans import COMPANION_FOLDERS, COMPANIONS, find_scans
from diffseglung.volume import Volume, read_labels, read_volume
from diffseglung_ray.cluster import is_uri
from diffseglung_ray.config import WrongArgument, refuse_credentials

MANIFESTS = (".csv", ".parquet")
IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha")  # one file each; the others need a second file beside them
COLUMNS = ("case_id", "image", "lungs", "truth", "series", "weight")
LONGEST_ID = 120  # with the suffixes of its files, well inside the 255 bytes of a file name


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan: its name and where its files are (absolute paths or URIs; empty where there is none)."""

    case_id: str
    image: str
    lungs: str = ""
    truth: str = ""
    series: str = ""  # SeriesInstanceUID, where `image` is a folder of several DICOM series
    weight: str = ""  # how many times as many patches as other cases it gives to training; 1 where empty

    def row(self) -> dict[str, str]:
        """The case as a row of a table."""
        return asdict(self)


def find_cohort(place: str | Path) -> list[Case]:
    """The cases that a cohort argument names, sorted by name. Errors: WrongArgument."""
    place = str(place)
    refuse_credentials("the cohort", place)
    if place.lower().endswith(MANIFESTS):
        cases = _from_manifest(place)
    elif is_uri(place):
        cases = _from_remote_folder(place)
    else:
        cases = _from_folder(Path(place))
    if not cases:
        raise WrongArgument(
            f"{place} holds no scan: NIfTI, NRRD, MetaImage files and DICOM series are looked for"
        )
    _check_names(place, cases)
    return sorted(cases, key=lambda case: case.case_id)


def _from_folder(folder: Path) -> list[Case]:
    if not folder.exists():
        raise WrongArgument(f"there is no cohort at {folder}")
    if not folder.is_dir():
        raise WrongArgument(f"{folder} is neither a folder nor a manifest (.csv or .parquet)")
    return [
        Case(case_id=safe_id(scan.case_id), image=str(scan.path.resolve()), series=scan.series_uid or "")
        for scan in find_scans(folder)
    ]


def _from_remote_folder(uri: str) -> list[Case]:
    """Image files below a URI, and folders with `.dcm` files, each taken for one series."""
    with _in_words(uri):
        filesystem, root = fsspec.core.url_to_fs(uri)
        names = [PurePosixPath(name) for name in sorted(filesystem.find(root))]
    images = {name: _stem(name) for name in names if name.name.lower().endswith(IMAGES)}
    stems = {name.with_name(stem) for name, stem in images.items()}
    scans = {name: stem for name, stem in images.items() if not _is_companion(name, stem, stems)}
    series = {name.parent: name.parent.name for name in names if name.name.lower().endswith(".dcm")}
    below = PurePosixPath(root)
    return [
        Case(
            case_id=safe_id("-".join((*place.parent.relative_to(below).parts, stem))),
            image=filesystem.unstrip_protocol(str(place)),
        )
        for place, stem in (scans | series).items()
    ]


def _stem(path: PurePosixPath) -> str:
    return re.sub(r"(\.nii\.gz|\.nii|\.nrrd|\.mha)$", "", path.name, flags=re.IGNORECASE)


def _is_companion(path: PurePosixPath, stem: str, stems: set[PurePosixPath]) -> bool:
    """Whether a file is the mask or the truth of an image beside it."""
    owner = COMPANIONS.fullmatch(stem)
    return path.parent.name.lower() in COMPANION_FOLDERS or bool(owner and path.with_name(owner[1]) in stems)


def _from_manifest(place: str) -> list[Case]:
    table = _read_table(place)
    missing = [name for name in ("case_id", "image") if name not in table.column_names]
    if missing:
        raise WrongArgument(
            f"{place} lacks the column {' and '.join(missing)}; a manifest has case_id, image and optionally "
            "lungs, truth, series, weight"
        )
    known = [name for name in COLUMNS if name in table.column_names]
    cases = []
    for number, row in enumerate(table.select(known).to_pylist(), start=1):
        cells = {name: "" if value is None else str(value).strip() for name, value in row.items()}
        if not cells["case_id"] or not cells["image"]:
            raise WrongArgument(
                f"row {number} of {place} has no {'image' if cells['case_id'] else 'case_id'}"
            )
        if cells["case_id"] != safe_id(cells["case_id"]):
            raise WrongArgument(
                f"row {number} of {place}: case_id {cells['case_id']!r} is no safe folder name; use letters, "
                f"digits, dot, dash and underscore, at most {LONGEST_ID}, not starting with a dot"
            )
        if not _is_weight(cells.get("weight", "")):
            raise WrongArgument(
                f"row {number} of {place}: weight {cells['weight']!r} must be a number above 0 and at most 1000"
            )
        places = {name: _beside(place, cells[name]) for name in known if name in ("image", "lungs", "truth")}
        cases.append(Case(**{**cells, **places}))
    return cases


def _is_weight(cell: str) -> bool:
    try:
        return not cell or 0 < float(cell) <= 1000
    except ValueError:
        return False


def _read_table(place: str) -> pa.Table:
    with _in_words(place), fsspec.open(place, "rb") as file:
        if place.lower().endswith(".parquet"):
            return pq.read_table(pa.BufferReader(file.read()))
        # Every cell as text: "007" is a name and not the number 7.
        data = file.read()
        header = data.lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        names = [name.strip().strip('"') for name in header.split(",")]
        options = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in names})
        return pyarrow.csv.read_csv(pa.BufferReader(data), convert_options=options)


def _beside(manifest: str, path: str) -> str:
    """A path of a manifest, relative to the manifest unless it is absolute or a URI."""
    if not path or is_uri(path) or path.startswith("/"):
        return path
    if is_uri(manifest):
        return f"{manifest.rsplit('/', 1)[0]}/{path}"
    return os.path.normpath(Path(manifest).resolve().parent / path)


@contextmanager
def _in_words(place: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise WrongArgument(f"there is no cohort at {place}") from error
    except (OSError, pa.ArrowInvalid, ValueError, ImportError) as error:
        raise WrongArgument(f"the cohort {place} cannot be read: {' '.join(str(error).split())}") from error


def _check_names(place: str, cases: list[Case]) -> None:
    # A folder that ignores case (macOS, Windows shares) would let one case overwrite the other.
    counts = Counter(case.case_id.casefold() for case in cases)
    twice = [case for case in cases if counts[case.case_id.casefold()] > 1]
    if twice:
        first = twice[0].case_id
        images = ", ".join(c.image for c in twice if c.case_id.casefold() == first.casefold())
        raise WrongArgument(
            f"{place} names more than one scan {first!r} ({images}); give each its own case_id in a manifest"
        )


def safe_id(name: str) -> str:
    """A name that can be a folder anywhere: it cannot climb out of the output, hide or be too long."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._") or "case"
    if len(safe) <= LONGEST_ID:
        return safe
    return f"{safe[: LONGEST_ID - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Loaded:
    """A scan in memory: the volume, the given lung mask (bool, its grid) or None, the digest of both."""

    volume: Volume
    lungs: np.ndarray | None
    input_sha256: str


def read_case(case: dict[str, Any], config: VolumeConfig) -> Loaded:
    """Read a case on the machine that works on it; remote files are fetched to a temporary folder first.

    Errors: UnreadableScan and OSError, in words.
    """
    with local_copy(case["image"]) as image:
        volume = read_volume(image, series=case.get("series") or None, config=config)
    if not case.get("lungs"):
        return Loaded(volume, None, volume.source.sha256)
    with local_copy(case["lungs"]) as path:
        lungs = read_labels(path, volume) > 0
        given = path.read_bytes()
    return Loaded(volume, lungs, _both(volume.source.sha256, hashlib.sha256(given).hexdigest()))


def quick_digest(case: dict[str, Any]) -> str | None:
    """The `input_sha256` that `read_case` would give, from the bytes alone; None where they do not tell."""
    if not case["image"].lower().endswith(IMAGES):
        return None
    try:
        image = _file_sha256(case["image"])
        return _both(image, _file_sha256(case["lungs"])) if case.get("lungs") else image
    except OSError:
        return None  # reading it will say what is wrong with it


def _file_sha256(place: str) -> str:
    with fsspec.open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _both(image_sha256: str, lungs_sha256: str) -> str:
    return hashlib.sha256(f"{image_sha256} {lungs_sha256}".encode()).hexdigest()


@contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """A file or folder as a path on this machine: itself, or fetched for as long as the block lasts."""
    if not is_uri(place):
        yield Path(place)
        return
    folder = Path(tempfile.mkdtemp(prefix="diffseglung-"))
    try:
        filesystem, remote = fsspec.core.url_to_fs(place)
        target = folder / PurePosixPath(remote).name
        is_folder = filesystem.isdir(remote)
        if is_folder:
            _refuse_climbing(place, filesystem.find(remote))
        filesystem.get(remote, str(target), recursive=is_folder)
        yield target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_climbing(place: str, names: list[str]) -> None:
    """In a bucket any name is a name: `series/../../x` would be written outside the folder that it is fetched to."""
    climbing = [name for name in names if ".." in PurePosixPath(name).parts]
    if climbing:
        raise UnreadableScan(f"{place} holds a file named {climbing[0]}, which leads out of it")
