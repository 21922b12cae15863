"""What is reported of one scan: litres, percentages, checks, and the files that carry them."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffseglung import report
from diffseglung.densities import Densities
from diffseglung.dicom_seg import write_dicom_seg
from diffseglung.gate import find_peaks
from diffseglung.grid import resample_map
from diffseglung.labels import TISSUES
from diffseglung.segment import Segmentation
from diffseglung.volume import WRITING, Volume, write_labels, write_map

LAA_HU = -950  # low-attenuation area: emphysema's usual threshold on thin slices (Gevenois 1996)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One row of the cohort's table. Volumes in ml, percentages of the lung, `uncertainty` 0 (sure) to 1.

    `uncertain_pct` is the share of the lung that was close to a guess; `teacher_distance` is how far the scan is
    from those that the model was trained on (see `segment.teacher_distance`); the peaks are those of `gate.Peaks`;
    `flags` says in words what makes it worth a look (`report.checks`).
    """

    case_id: str
    status: str = "ok"
    reason: str = ""
    lung_ml: float | None = None
    tissue_ml: tuple[float, ...] | None = None  # in the order of TISSUES
    mean_lung_hu: float | None = None
    laa950_pct: float | None = None
    uncertainty: float | None = None
    uncertain_pct: float | None = None
    teacher_distance: float | None = None
    air_peak_hu: float | None = None
    tissue_peak_hu: float | None = None
    seconds: float | None = None
    right_lung_ml: float | None = None
    left_lung_ml: float | None = None
    flags: str = ""
    notes: str = ""
    model_uri: str = ""
    model_version: str = ""
    config_sha256: str = ""
    input_sha256: str = ""

    def row(self) -> dict[str, Any]:
        """Columns of `schemas.RESULTS`."""
        row: dict[str, Any] = {}
        for f in fields(self):
            if f.name != "tissue_ml":
                row[f.name] = getattr(self, f.name)
                continue
            ml: tuple[float | None, ...] = self.tissue_ml or (None,) * len(TISSUES)
            total = sum(self.tissue_ml or ())
            row |= {f"{t.key}_ml": v for t, v in zip(TISSUES, ml, strict=True)}
            row |= {
                f"{t.key}_pct": None if v is None or not total else 100 * v / total
                for t, v in zip(TISSUES, ml, strict=True)
            }
        return row

    @staticmethod
    def from_row(row: dict[str, Any]) -> "CaseResult":
        """Back from `row`."""
        ml = tuple(row[f"{t.key}_ml"] for t in TISSUES)
        plain = {f.name: row[f.name] for f in fields(CaseResult) if f.name != "tissue_ml"}
        return CaseResult(**plain, tissue_ml=None if None in ml else ml)


def case_result(case_id: str, volume: Volume, segmentation: Segmentation, **origin: str) -> CaseResult:
    """Measure a segmentation. `origin` holds model_uri, model_version and config_sha256.

    Density is that of the lung mask without airways; LAA-950 is the share of its voxels below -950 HU.
    """
    seen, voxel_ml = Densities.of(volume.hu, segmentation.labels), volume.grid.voxel_ml
    tissue_ml = voxel_ml * seen.voxels[1:]
    peaks = find_peaks(seen.counts.sum(axis=0))
    result = CaseResult(
        case_id=case_id,
        lung_ml=float(tissue_ml.sum()),
        tissue_ml=tuple(float(tissue_ml[t - 1]) for t in TISSUES),
        mean_lung_hu=seen.mean_hu(),
        laa950_pct=100 * seen.share_below(LAA_HU),
        uncertainty=segmentation.uncertainty,
        uncertain_pct=segmentation.uncertain_pct,
        teacher_distance=segmentation.teacher_distance,
        air_peak_hu=float(peaks.dark),
        tissue_peak_hu=float(peaks.bright),
        seconds=sum(segmentation.seconds.values()),
        right_lung_ml=float(segmentation.anatomy.right_ml),
        left_lung_ml=float(segmentation.anatomy.left_ml),
        notes="; ".join((*volume.source.notes, *segmentation.anatomy.notes)),
        input_sha256=volume.source.sha256,
        **origin,
    )
    return replace(result, flags="; ".join(report.flags(result.row())))


def write_case(
    folder: str | os.PathLike[str],
    volume: Volume,
    segmentation: Segmentation,
    result: CaseResult,
    *,
    probabilities: bool = False,
) -> None:
    """Everything a case leaves behind, in a folder that appears whole or not at all.

    `segmentation.nii.gz`, `anatomy.nii.gz`, `preview.png`, `pictures.json` (for the report), `segmentation.dcm`
    where the input was DICOM, `probabilities.nii.gz` if asked for, and `result.json`.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder.parent))
    try:
        _write_files(beside, volume, segmentation, result, probabilities)
        beside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_files(
    folder: Path, volume: Volume, segmentation: Segmentation, result: CaseResult, probabilities: bool
) -> None:
    labels, anatomy = segmentation.labels, segmentation.anatomy.labels
    write_labels(folder / "segmentation.nii.gz", labels, volume)
    write_labels(folder / "anatomy.nii.gz", anatomy, volume)
    report.case_preview(folder / "preview.png", volume.hu, labels, anatomy, volume.spacing_mm, result.case_id)
    report.case_pictures(volume.hu, labels, volume.spacing_mm).save(folder / "pictures.json")
    if volume.source.kind == "dicom":
        write_dicom_seg(folder / "segmentation.dcm", labels, volume, result.model_uri, result.model_version)
    if probabilities:
        fine = [resample_map(p, segmentation.scan.grid, volume.grid) for p in segmentation.posteriors]
        write_map(folder / "probabilities.nii.gz", np.stack(fine), volume)
    (folder / "result.json").write_text(json.dumps(result.row(), indent=1) + "\n", encoding="utf-8")
