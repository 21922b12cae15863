"""What real scans can tell without a truth: lesions found, slices ranked, healthy lungs left in peace.

Nobody outlined every voxel of a real scan. What is known of it lies beside it, and the names say what it is:

- `<case>_slices.json`: which axial slices are infected (COVID-CT-MD, Afshar et al., Scientific Data 2021);
- `<case>_tumour.nii.gz` (or another kind of image): a tumour's outline;
- `normal*`: a chest that looks healthy; `emphysema*`: lungs whose share below -950 HU is the known thing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffseglung.labels import DISEASES, Tissue
from diffseglung.scans import KINDS, file_suffix, find_scans
from diffseglung.volume import Volume, read_labels

EMPHYSEMA_HU = -950  # Gevenois et al., AJRCCM 154 (1996) 187
OPACITIES = (Tissue.GROUND_GLASS, Tissue.CONSOLIDATION)

MEASURES: dict[str, str] = {
    "slice_auroc": "area of ground glass and consolidation ranks infected slices above the others (AUROC)",
    "disease_auroc": "the same with the area of any disease: what is found, whatever it is called",
    "named_opacity_pct": "of what is called disease in infected slices, the share called ground glass or consolidation",
    "tumour_pct": "share of the tumour that is called disease",
    "tumour_opacity_pct": "share of the tumour that is called ground glass or consolidation",
    "diseased_pct": "share of a healthy-looking lung that is called disease",
    "emphysema_pct": "share of the lung that is called emphysema; beside it the share below -950 HU",
}
Measured = dict[str, str | float]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one real scan. `slices` (n,) 0 or 1 from the feet up, evenly over the scan's height."""

    case_id: str
    image: Path
    slices: tuple[int, ...] = ()
    tumour: Path | None = None
    healthy: bool = False
    emphysema: bool = False


def find_known(folder: Path | str) -> list[Known]:
    """Every scan of a folder of which something is known, by name. Raises ValueError where there is none."""
    folder = Path(folder)
    known = [one for scan in find_scans(folder) if scan.kind != "dicom" for one in _known(scan.path)]
    if not known:
        raise ValueError(
            f"{folder} holds no scan of which anything is known: name one normal-*.nii.gz or emphysema-*.nii.gz, or "
            "lay <scan>_slices.json or <scan>_tumour.nii.gz beside it"
        )
    return sorted(known, key=lambda one: one.case_id)


def measure(
    known: Known, method: str, volume: Volume, lungs: np.ndarray, labels: np.ndarray
) -> list[Measured]:
    """Everything that can be said of a method's labels on this scan: one row a measure of `MEASURES`.

    lungs bool and labels uint8 (z, y, x) on the volume's grid. A row holds case_id, method, measure, value and
    `expected`: what a perfect method would have, as far as that is known.
    """
    found: list[tuple[str, float, float]] = []
    if known.slices:
        for name, tissues in (("slice_auroc", OPACITIES), ("disease_auroc", DISEASES)):
            found.append((name, slice_auroc(np.isin(labels, tissues), lungs, known.slices), 1.0))
        found.append(("named_opacity_pct", named_opacity_pct(labels, known.slices), 100.0))
    if known.tumour:
        inside = labels[read_labels(known.tumour, volume) > 0]
        found.append(("tumour_pct", _pct(inside > Tissue.HEALTHY), 100.0))
        found.append(("tumour_opacity_pct", _pct(np.isin(inside, OPACITIES)), 100.0))
    if known.healthy:
        found.append(("diseased_pct", _pct(labels[lungs] > Tissue.HEALTHY), 0.0))
    if known.emphysema:
        called = _pct(labels[lungs] == Tissue.EMPHYSEMA)
        found.append(("emphysema_pct", called, _pct(volume.hu[lungs] < EMPHYSEMA_HU)))
    return [
        {"case_id": known.case_id, "method": method, "measure": name, "value": value, "expected": expected}
        for name, value, expected in found
    ]


def slice_auroc(found: np.ndarray, lungs: np.ndarray, infected: Sequence[int]) -> float:
    """How well the area of what was found tells infected slices from the others.

    found, lungs bool (z, y, x), z towards the head; `infected` from the feet up, evenly over the same height. Slices
    without lung are left out: nobody could be wrong there. NaN where all slices that are left are alike.
    """
    from sklearn.metrics import roc_auc_score

    truth, area = np.array(infected), _per_slice(found, len(infected))
    seen = _per_slice(lungs, len(infected)) > 0
    return float(roc_auc_score(truth[seen], area[seen])) if len(set(truth[seen])) == 2 else float("nan")


def named_opacity_pct(labels: np.ndarray, infected: Sequence[int]) -> float:
    """Of the voxels called disease in infected slices, how many are called ground glass or consolidation, in %."""
    share = np.array(infected)[_label_of(labels.shape[0], len(infected))] > 0
    called = labels[share]
    return _pct(np.isin(called[called > Tissue.HEALTHY], OPACITIES))


def measures_markdown(rows: Sequence[Measured]) -> str:
    """One line a method, one column a scan and measure; what is expected stands in the second line."""
    columns = list(dict.fromkeys((str(r["measure"]), str(r["case_id"])) for r in rows))
    columns.sort(key=lambda column: (list(MEASURES).index(column[0]), column[1]))
    values = {(str(r["method"]), str(r["measure"]), str(r["case_id"])): float(r["value"]) for r in rows}
    expected = {(str(r["measure"]), str(r["case_id"])): float(r["expected"]) for r in rows}
    lines = [
        _line(
            ["method", *(f"{case} {name.replace('_', ' ').replace('pct', '%')}" for name, case in columns)]
        ),
        _line(["---"] + ["---:"] * len(columns)),
        _line(["expected", *(_shown(name, expected[name, case]) for name, case in columns)]),
    ]
    for method in dict.fromkeys(str(r["method"]) for r in rows):
        cells = [_shown(name, values.get((method, name, case), np.nan)) for name, case in columns]
        lines.append(_line([method, *cells]))
    used = [name for name in MEASURES if any(name == column[0] for column in columns)]
    notes = [f"- {name.replace('_', ' ').replace('pct', '%')}: {MEASURES[name]}" for name in used]
    return "\n".join([*lines, "", *notes, ""])


def _known(image: Path) -> Iterator[Known]:
    name = image.name[: -len(file_suffix(image))]
    slices = image.with_name(f"{name}_slices.json")
    outlines = (image.with_name(f"{name}_tumour{suffix}") for suffix in KINDS)
    one = Known(
        case_id=name,
        image=image,
        slices=read_slices(slices) if slices.is_file() else (),
        tumour=next((path for path in outlines if path.is_file()), None),
        healthy=name.startswith("normal"),
        emphysema=name.startswith("emphysema"),
    )
    if one.slices or one.tumour or one.healthy or one.emphysema:
        yield one


def read_slices(path: Path) -> tuple[int, ...]:
    """The slice labels of a file {"infected": [0, 1, ...], "z0": 0}. Raises ValueError in words."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(int(label > 0) for label in content["infected"][content.get("z0", 0) :])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no slice labels: a list `infected` of 0 and 1 is needed") from error


def _label_of(slices: int, labels: int) -> np.ndarray:
    """Which of so many labels, spread evenly over the height, each slice belongs to."""
    return ((np.arange(slices) + 0.5) * labels / slices).astype(int)


def _per_slice(mask: np.ndarray, labels: int) -> np.ndarray:
    """The area of a mask, in voxels, at the height of each label: linear between slices."""
    area = mask.sum(axis=(1, 2)).astype(float)
    at = (np.arange(labels) + 0.5) * len(area) / labels - 0.5
    return np.interp(at, np.arange(len(area)), area)


def _pct(chosen: np.ndarray) -> float:
    return 100 * float(chosen.mean()) if chosen.size else float("nan")


def _shown(measure: str, value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.3f}".removeprefix("0") if measure.endswith("auroc") else f"{value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
