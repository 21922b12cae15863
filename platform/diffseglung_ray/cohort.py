"""A cohort: which scans, under which names. From a folder, a CSV or Parquet manifest, or a URI of either.

Only names and places are kept here. Voxels are read where they are worked on, so a cohort of any size fits.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from diffseglung.anatomy import AnatomyConfig
from diffseglung.anatomy.network import NoNetwork, find_weights
from diffseglung.gate import UnreadableScan, VolumeConfig
from diffseglung.labels import Tissue
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
    problem: str = ""  # why nothing can be made of it, in words; such a case is a failed row and is not read

    def row(self) -> dict[str, str]:
        """The case as a row of a table."""
        return asdict(self)


def find_cohort(place: str | Path) -> list[Case]:
    """The cases that a cohort argument names, sorted by name. Errors: WrongArgument.

    One bad row does not stop the others: such a case carries its `problem`.
    """
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
    return sorted(_told_apart(cases), key=lambda case: (case.case_id, case.image))


def _from_folder(folder: Path) -> list[Case]:
    if not folder.exists():
        raise WrongArgument(f"there is no cohort at {folder}")
    if not folder.is_dir():
        raise WrongArgument(f"{folder} is neither a folder nor a manifest (.csv or .parquet)")
    try:
        scans = find_scans(folder)
    except (ValueError, OSError) as error:
        raise WrongArgument(f"the cohort {folder} cannot be searched: {error}") from error
    return [
        Case(case_id=safe_id(scan.case_id), image=os.path.abspath(scan.path), series=scan.series_uid or "")
        for scan in scans
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
    return [
        _from_row(
            place, number, {name: "" if cell is None else str(cell).strip() for name, cell in row.items()}
        )
        for number, row in enumerate(table.select(known).to_pylist(), start=1)
    ]


def _from_row(place: str, number: int, cells: dict[str, str]) -> Case:
    places = {name: _beside(place, cells.get(name, "")) for name in ("image", "lungs", "truth")}
    case = Case(**{**cells, "case_id": cells["case_id"] or f"row-{number}", **places})
    problem = ""
    if not cells["case_id"]:
        problem = f"row {number} of the manifest has no case_id"
    elif not is_folder_name(case.case_id):
        problem = (
            f"the case_id {case.case_id!r} cannot be a folder in the output: it must not hold any of "
            f'/ \\ : * ? " < > | or what cannot be seen, nor begin with a dot or end with one, and have at most '
            f"{LONGEST_ID} bytes"
        )
    elif not case.image:
        problem = f"row {number} of the manifest has no image"
    elif not _is_weight(case.weight):
        problem = (
            f"row {number} of the manifest: weight {case.weight!r} must be a number above 0 and at most 1000"
        )
    return replace(case, problem=problem)


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


def _told_apart(cases: list[Case]) -> list[Case]:
    """The cases; those that share a name carry that as their problem, for one would overwrite the other."""
    sharing: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        sharing[_folded(case.case_id)].append(case)
    return [
        _alone(case, [one for one in sharing[_folded(case.case_id)] if one is not case]) for case in cases
    ]


def _folded(name: str) -> str:
    """What a folder that ignores case or composes accents (macOS, Windows shares) takes for the same name."""
    return unicodedata.normalize("NFC", name).casefold()


def _alone(case: Case, others: list[Case]) -> Case:
    if case.problem or not others:
        return case
    images = ", ".join(f"{one.case_id} ({one.image})" for one in others[:3]) + ", ..." * (len(others) > 3)
    return replace(
        case,
        problem=f"{len(others) + 1} scans of the cohort are named {case.case_id!r}, and one would overwrite the "
        f"other: {case.image} and {images}; give each a case_id of its own in a manifest",
    )


def is_folder_name(name: str) -> bool:
    """Whether a name can be a folder on any system: it cannot climb out of the output, hide or be too long."""
    return (
        0 < len(name.encode(errors="replace")) <= LONGEST_ID
        and name.isprintable()
        and not re.search(r'[/\\:*?"<>|]', name)
        and not name.startswith(".")
        and not name.endswith((".", " "))
    )


def safe_id(name: str) -> str:
    """A name of plain ASCII that can be a folder anywhere, made of any other."""
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


def check_lungs(config: AnatomyConfig) -> None:
    """Whether the way to find lungs is at hand, before a scan is read. Errors: WrongArgument."""
    if config.lungs == "lungmask":
        try:
            find_weights()
        except NoNetwork as error:
            raise WrongArgument(str(error)) from error


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


def read_truth(place: str, volume: Volume) -> np.ndarray:
    """The true tissues of a case, uint8 on the volume's grid. Raises ValueError where labels are not ours."""
    with local_copy(place) as path:
        truth = read_labels(path, volume)
    if truth.max(initial=0) > max(Tissue):
        raise ValueError(f"{place}: truth holds the label {truth.max()}; tissues are 1 to {int(max(Tissue))}")
    return truth


@contextmanager
def fetched(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The case with its image on this machine for as long as the block lasts: a DICOM SEG reads the headers again.

    What is said of the copy is said of the image that it was made of. Errors: UnreadableScan, and those of the block.
    """
    with local_copy(case["image"]) as image:
        try:
            yield case | {"image": str(image)}
        except UnreadableScan as refusal:
            raise UnreadableScan(str(refusal).replace(str(image), case["image"])) from refusal


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
def local_copy(place: str, first_bytes: int | None = None) -> Iterator[Path]:
    """A file or folder as a path on this machine: itself, or fetched for as long as the block lasts.

    With `first_bytes`, only the beginning of each remote file.
    """
    if not is_uri(place):
        yield Path(place)
        return
    folder = Path(tempfile.mkdtemp(prefix="diffseglung-"))
    try:
        filesystem, remote = fsspec.core.url_to_fs(place)
        target = folder / PurePosixPath(remote).name
        is_folder = filesystem.isdir(remote)
        names = filesystem.find(remote) if is_folder else [remote]
        _refuse_climbing(place, names)
        if first_bytes is None:
            filesystem.get(remote, str(target), recursive=is_folder)
        else:
            for name in names:
                piece = target / PurePosixPath(name).relative_to(remote)
                piece.parent.mkdir(parents=True, exist_ok=True)
                piece.write_bytes(filesystem.cat_file(name, start=0, end=first_bytes))
        yield target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_climbing(place: str, names: list[str]) -> None:
    """In a bucket any name is a name: `series/../../x` would be written outside the folder that it is fetched to."""
    climbing = [name for name in names if ".." in PurePosixPath(name).parts]
    if climbing:
        raise UnreadableScan(f"{place} holds a file named {climbing[0]}, which leads out of it")
