"""Lesions drawn into real scans: the patient, the scanner and the anatomy are real, and the truth is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..anatomy import find_anatomy
from ..volume import read_volume, write_labels, write_volume
from .cohort import Row, case_kinds, case_seed
from .lesions import insert_lesions


def write_inserted(out: Path | str, scans: Sequence[Path | str], seed: int, index: int) -> Row:
    """One case under `out`, drawn into one of the scans (in turns): its image and truth; returns its manifest row.

    Which diseases it has is dealt as for `write_case`; a healthy case is the scan as it was. The scans have to be
    healthy, for whatever else is in them counts as healthy lung. Lungs and vessels are those that `find_anatomy`
    sees before anything is drawn; vessels stay visible.
    """
    if not scans:
        raise ValueError("lesions need a scan to be drawn into: none was given")
    out, scan = Path(out), Path(scans[index % len(scans)])
    volume = read_volume(scan)
    anatomy = find_anatomy(volume)
    painted, truth = insert_lesions(
        volume.hu,
        anatomy.lungs,
        volume.spacing_mm,
        case_seed(seed, index),
        vessels=anatomy.vessels,
        kinds=case_kinds(seed, index),
    )
    case_id = f"inserted-{index:04d}"
    row = {"case_id": case_id, "image": f"images/{case_id}.nii.gz", "truth": f"truth/{case_id}.nii.gz"}
    for folder in ("images", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_volume(out / row["image"], replace(volume, hu=painted))
    write_labels(out / row["truth"], truth, volume)
    return row
