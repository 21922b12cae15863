"""What a folder holds that could be a chest CT: one entry a file or DICOM series, no masks."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffseglung.dicom import Series, is_dicom, series_among

KINDS: dict[str, str] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}
COMPANIONS = re.compile(r"(.+)_(lungs?|tumou?r|truth|seg|segmentation|masks?|labels?)")
COMPANION_FOLDERS = ("truth", "lungs", "masks", "labels", "segmentations")
# What this program writes for a case; a cohort may hold the results of an earlier run.
OWN_RESULTS = ("segmentation", "anatomy", "probabilities")
NOT_DICOM = (
    ".json",
    ".csv",
    ".txt",
    ".md",
    ".html",
    ".png",
    ".jpg",
    ".parquet",
    ".yaml",
    ".log",
    ".gz",
    ".zip",
    ".raw",
)
# Scouts, bolus tracking and dose pages run to a few images beside the scan itself.
FEW_SLICES = 12


@dataclass(frozen=True, slots=True)
class ScanPath:
    """One scan to read, by `read_volume(path, series=series_uid)`, and its name, unique in the cohort."""

    path: Path
    kind: str
    series_uid: str | None
    case_id: str


def file_suffix(path: Path) -> str:
    """`.nii.gz` for `a.b.nii.gz`; the last part for what is no image of ours."""
    name = path.name.lower()
    return next((suffix for suffix in KINDS if name.endswith(suffix)), path.suffix.lower())


def find_scans(folder: str | os.PathLike[str]) -> list[ScanPath]:
    """Every NIfTI, NRRD and MetaImage file and every DICOM series under a folder, sorted by case_id.

    Left out: hidden files; `X_lungs`, `X_tumour`, `X_truth`, `X_seg`, `X_mask`, `X_labels` and the like
    beside an image `X`; a file in a folder `truth`, `lungs`, `masks`, `labels` or `segmentations` whose name
    a sibling folder has too; this program's own results. Of DICOM: localizers, series of other modalities
    beside a CT, and series of fewer than 12 slices beside a longer one. A series that is spread over folders is
    one scan. A folder with nothing but damaged or
    foreign DICOM is listed once, so that reading it says why. Links to folders are followed, each folder
    once.

    The case_id is the file's name without its suffix, or the DICOM folder's name, with the series number
    where it holds several. Where names meet, the path under `folder` takes their place.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    found: list[ScanPath] = []
    pieces: dict[str, list[tuple[Path, Series]]] = defaultdict(list)
    for here, files in _folders(root):
        for scan, series in _scans_in(here, files):
            found.append(scan)
            if series is not None:
                pieces[series.uid].append((here, series))
    for uid, parts in pieces.items():
        found = _joined(found, uid, parts)
    return sorted(_with_unique_ids(found, root), key=lambda scan: scan.case_id)


def _joined(found: list[ScanPath], uid: str, parts: list[tuple[Path, Series]]) -> list[ScanPath]:
    """The pieces of a series that some archives spread over folders as one scan; whole copies stay apart."""
    images = [header.get("SOPInstanceUID") for _, series in parts for _, header in series.headers]
    homes = [here for here, _ in parts]
    above = Path(os.path.commonpath(homes))
    if len(parts) == 1 or len(set(images)) < len(images) or above in homes:
        return found
    whole = ScanPath(above, "dicom", uid, above.resolve().name)
    return [scan for scan in found if scan.series_uid != uid] + [whole]


def _folders(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder below, each once however it is linked, with its files; both sorted, nothing hidden."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        here = waiting.pop()
        identity = here.stat()
        if (identity.st_dev, identity.st_ino) in seen:
            continue
        seen.add((identity.st_dev, identity.st_ino))
        try:
            entries = sorted(entry for entry in here.iterdir() if not entry.name.startswith("."))
        except PermissionError as error:  # half a cohort would pass for the whole
            raise ValueError(f"the folder {here} may not be read ({error.strerror})") from error
        waiting.extend(reversed([entry for entry in entries if entry.is_dir()]))
        # A link that leads nowhere is named like a scan that somebody expects: reading it says what is wrong.
        yield (
            here,
            [entry for entry in entries if entry.is_file() or (entry.is_symlink() and not entry.is_dir())],
        )


def _scans_in(here: Path, files: list[Path]) -> Iterator[tuple[ScanPath, Series | None]]:
    images = [path for path in files if file_suffix(path) in KINDS]
    stems = {_stem(path) for path in images}
    for path in images:
        if not _is_companion(path, stems):
            yield ScanPath(path, KINDS[file_suffix(path)], None, _stem(path)), None
    others = [path for path in files if path not in images and path.suffix.lower() not in NOT_DICOM]
    dicom = [path for path in others if is_dicom(path)]
    if dicom:
        yield from _series_in(here, dicom)


def _series_in(here: Path, files: list[Path]) -> Iterator[tuple[ScanPath, Series | None]]:
    found, damaged = series_among(files)
    series = [one for one in found if one.is_ct and one.modality == "CT"]
    if not series:
        if damaged or any(one.modality in ("MR", "PT", "CT") for one in found):
            yield ScanPath(here, "dicom", None, here.resolve().name), None
        return
    scans = [one for one in series if one.count >= FEW_SLICES] or series[:1]
    for one in scans:
        name = here.resolve().name
        case_id = name if len(scans) == 1 else f"{name}-{_number(one, scans)}"
        yield ScanPath(here, "dicom", one.uid, case_id), one


def _number(one: Series, scans: list[Series]) -> str:
    """The series number where it tells the series of a folder apart, else a count in the order of UIDs."""
    if one.number and sum(other.number == one.number for other in scans) == 1:
        return one.number
    return str(1 + sorted(other.uid for other in scans).index(one.uid))


def _is_companion(path: Path, stems: set[str]) -> bool:
    stem = _stem(path)
    owner = COMPANIONS.fullmatch(stem)
    if (owner and owner[1] in stems) or stem in OWN_RESULTS:
        return True
    if path.parent.name.lower() not in COMPANION_FOLDERS:
        return False
    siblings = (
        folder for folder in path.parent.parent.iterdir() if folder.name.lower() not in COMPANION_FOLDERS
    )
    return any((folder / path.name).exists() for folder in siblings)


def _stem(path: Path) -> str:
    return path.name[: -len(file_suffix(path))]


def _with_unique_ids(found: list[ScanPath], root: Path) -> Iterator[ScanPath]:
    """Names safe for files and URLs; where two meet, in any case, the path below the root, then a count."""
    names = [_clean(scan.case_id) for scan in found]
    shared = Counter(name.casefold() for name in names)
    taken: set[str] = set()
    for scan, name in sorted(zip(found, names, strict=True), key=lambda pair: (str(pair[0].path), pair[1])):
        if shared[name.casefold()] > 1:
            name = _clean("-".join((*scan.path.relative_to(root).parts[:-1], scan.case_id)))
        count, unique = 1, name
        while unique.casefold() in taken:
            count += 1
            unique = f"{name}-{count}"
        taken.add(unique.casefold())
        yield ScanPath(scan.path, scan.kind, scan.series_uid, unique)


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "scan"
