"""How right a segmentation is: overlap, distance and volume per tissue and scan, and what they sum to."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from diffseglung.labels import TISSUES

Row = dict[str, str | float | int]
Statistic = Callable[[np.ndarray], np.ndarray]

MEAN = "mean_of_diseases"
NUMBERS = ("dice", "hd95_mm", "truth_ml", "pred_ml", "false_ml")
RESAMPLES = 2000


def score_case(
    case_id: str, method: str, truth: np.ndarray, labels: np.ndarray, spacing_mm: Sequence[float]
) -> list[Row]:
    """Compare a segmentation with the truth, one row a tissue.

    truth, labels: uint8 tissue labels (z, y, x), or (y, x) of one slice. A row holds case_id, method, tissue,
    dice, hd95_mm, truth_ml, pred_ml and false_ml (called so, and not so). A tissue that the scan does not have
    earns no score: dice and hd95_mm are NaN and its false_ml counts. One that is there and was not found has a
    dice of 0 and the diagonal of the box of all tissues as its distance.
    """
    if truth.shape != labels.shape or truth.ndim != len(spacing_mm):
        raise ValueError(
            f"truth {truth.shape}, labels {labels.shape} and spacing {spacing_mm} do not fit together"
        )
    voxel_ml = float(np.prod(spacing_mm)) / 1000 if truth.ndim == 3 else float("nan")
    diagonal_mm = _diagonal_mm(truth > 0, spacing_mm)
    rows: list[Row] = []
    for tissue in TISSUES:
        real, called = truth == tissue, labels == tissue
        both, there, found = (int(np.count_nonzero(m)) for m in (real & called, real, called))
        distance = hd95_mm(real, called, spacing_mm) if there and found else diagonal_mm
        rows.append(
            {
                "case_id": case_id,
                "method": method,
                "tissue": tissue.key,
                "dice": 2 * both / (there + found) if there else float("nan"),
                "hd95_mm": distance if there else float("nan"),
                "truth_ml": there * voxel_ml,
                "pred_ml": found * voxel_ml,
                "false_ml": (found - both) * voxel_ml,
            }
        )
    return rows


def score_slices(
    case_id: str,
    method: str,
    truth: np.ndarray,
    labels: np.ndarray,
    spacing_mm: tuple[float, float, float],
    slices: Iterable[int],
) -> list[Row]:
    """The paper's protocol: each chosen axial slice is scored by itself, as if it were a scan of its own.

    Rows as in `score_case`, with case_id `<case_id>/z<index>`; a slice has no volume, so millilitres are NaN.
    """
    return [
        row
        for z in slices
        for row in score_case(f"{case_id}/z{z:03d}", method, truth[z], labels[z], spacing_mm[1:])
    ]


def hd95_mm(one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """How far two borders lie apart, all but the worst twentieth of them, in mm.

    The larger of the two directed 95th percentiles of surface distance, as MONAI's
    `compute_hausdorff_distance(percentile=95)`. Masks (z, y, x) or (y, x), neither of them empty.
    """
    box = _box(one | other)
    a, b = _surface(one[box]), _surface(other[box])
    points, targets = (np.argwhere(s) * np.asarray(spacing_mm) for s in (a, b))
    if not (len(points) and len(targets)):
        raise ValueError("the distance between borders needs two masks that are not empty")
    return max(_directed(a, b, targets, spacing_mm), _directed(b, a, points, spacing_mm))


def summarise(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """What each method scores over all scans: one row per method and tissue, and their mean over the diseases.

    dice with the bounds of a 95% bootstrap interval over scans (dice_low, dice_high); hd95_mm; the mean absolute
    volume error and the mean false volume, in ml; `scans` that have the tissue. `mean_of_diseases` is the mean of
    the five diseases' means.
    """
    summary: list[Row] = []
    for method in _methods(rows):
        table = _tables(rows, method)
        diseases = table["dice"][:, 1:]
        for column, tissue in enumerate(TISSUES):
            dice = table["dice"][:, [column]]
            summary.append(
                {
                    "method": method,
                    "tissue": tissue.key,
                    "scans": int(np.isfinite(dice).sum()),
                    **_interval("dice", dice, _mean_of_means, seed),
                    "hd95_mm": _mean(table["hd95_mm"][:, column]),
                    "volume_error_ml": _mean(np.abs(table["pred_ml"] - table["truth_ml"])[:, column]),
                    "false_ml": _mean(table["false_ml"][:, column]),
                }
            )
        summary.append(
            {
                "method": method,
                "tissue": MEAN,
                "scans": int(np.isfinite(diseases).any(axis=1).sum()),
                **_interval("dice", diseases, _mean_of_means, seed),
                "hd95_mm": float(_mean_of_means(table["hd95_mm"][None, :, 1:])[0]),
                "volume_error_ml": _mean(np.abs(table["pred_ml"] - table["truth_ml"])[:, 1:]),
                "false_ml": _mean(table["false_ml"][:, 1:]),
            }
        )
    return summary


def gain(rows: Sequence[Row], method: str, over: str, seed: int = 0) -> Row:
    """By how much one method beats another on the same scans: mean disease Dice, difference, 95% interval.

    Scans are resampled in pairs, so what makes a scan hard for both cancels.
    """
    ours, theirs = (_tables(rows, name) for name in (method, over))
    if ours["cases"].tolist() != theirs["cases"].tolist():
        raise ValueError(f"{method} and {over} were not scored on the same scans")
    paired = np.stack([ours["dice"][:, 1:], theirs["dice"][:, 1:]], axis=-1)

    def difference(samples: np.ndarray) -> np.ndarray:
        return _mean_of_means(samples[..., 0]) - _mean_of_means(samples[..., 1])

    return {"method": method, "over": over, **_interval("gain", paired, difference, seed)}


def called_diseased(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """What share of a healthy scan's lung is called diseased, per method: `share` with its 95% interval.

    A healthy scan is one whose truth holds healthy lung and no disease; `scans` says how many there were.
    """
    found: list[Row] = []
    for method in _methods(rows):
        table = _tables(rows, method)
        healthy = (table["truth_ml"][:, 0] > 0) & (table["truth_ml"][:, 1:] == 0).all(axis=1)
        pred_ml = table["pred_ml"][healthy]
        lung_ml = pred_ml.sum(axis=1, keepdims=True)
        share = np.divide(
            pred_ml[:, 1:].sum(axis=1, keepdims=True), lung_ml, where=lung_ml > 0, out=0 * lung_ml
        )
        found.append(
            {"method": method, "scans": int(healthy.sum()), **_interval("share", share, _mean_of_means, seed)}
        )
    return found


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for each scan, method and tissue that was scored with several seeds: the mean of their numbers."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["case_id"]), str(row["method"]), str(row["tissue"])), []).append(row)
    return [
        group[0] | {name: _mean(np.array([float(row[name]) for row in group])) for name in NUMBERS}
        for group in groups.values()
    ]


def agreement(rows: Sequence[Row]) -> list[Row]:
    """How far volumes agree, a row per method and tissue, over all scans, with and without it.

    bias_ml is the mean of called minus true volume; low_ml and high_ml are Bland and Altman's limits, between
    which 95 of 100 differences lie if they are normal (Lancet 327, 1986, 307): bias -+ 1.96 SD.
    """
    found: list[Row] = []
    for method in _methods(rows):
        table = _tables(rows, method)
        for column, tissue in enumerate(TISSUES):
            error_ml = (table["pred_ml"] - table["truth_ml"])[:, column]
            bias = _mean(error_ml)
            reach = 1.96 * float(np.std(error_ml, ddof=1)) if len(error_ml) > 1 else float("nan")
            found.append(
                {
                    "method": method,
                    "tissue": tissue.key,
                    "scans": len(error_ml),
                    "bias_ml": bias,
                    "low_ml": bias - reach,
                    "high_ml": bias + reach,
                }
            )
    return found


def agreement_markdown(rows: Sequence[Row]) -> str:
    """One line a method: bias and limits of agreement of each tissue's volume in ml."""
    found = {(str(row["method"]), str(row["tissue"])): row for row in agreement(rows)}
    header = ["method", *(f"{tissue.title}, ml" for tissue in TISSUES)]
    lines = [_line(header), _line(["---"] + ["---:"] * len(TISSUES))]
    for method in _methods(rows):
        cells = (found[method, tissue.key] for tissue in TISSUES)
        lines.append(
            _line(
                [method, *(f"{_ml(c['bias_ml'])} [{_ml(c['low_ml'])}, {_ml(c['high_ml'])}]" for c in cells)]
            )
        )
    return "\n".join(lines)


def scores_table_markdown(rows: Sequence[Row], seed: int = 0) -> str:
    """One line a method for `scores.md`: Dice per tissue, their mean over diseases with its interval, HD95."""
    summary = {(str(r["method"]), str(r["tissue"])): r for r in summarise(rows, seed)}
    shares = {str(r["method"]): r for r in called_diseased(rows, seed)}
    titles = [tissue.title for tissue in TISSUES]
    header = ["method", *titles, "mean of diseases [95%]", "HD95 mm", "healthy scan called diseased"]
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for method in _methods(rows):
        mean, share = summary[method, MEAN], shares[method]
        dices = [_two(summary[method, tissue.key]["dice"]) for tissue in TISSUES]
        interval = f"{_two(mean['dice'])} [{_two(mean['dice_low'])}, {_two(mean['dice_high'])}]"
        called = f"{100 * float(share['share']):.1f}%" if share["scans"] else "-"
        lines.append(_line([method, *dices, interval, _one(mean["hd95_mm"]), called]))
    scans = len({r["case_id"] for r in rows})
    note = f"Dice per tissue, mean over the scans that have it; {scans} scans, intervals by bootstrap over scans."
    volumes = "Volumes, called minus true: mean and limits of agreement (Bland and Altman), over all scans."
    return "\n".join([*lines, "", note, "", volumes, "", agreement_markdown(rows), ""])


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.view(np.uint8))
    return found[0] if found else tuple(slice(0, 0) for _ in mask.shape)


def _diagonal_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    edges = [(s.stop - s.start) * mm for s, mm in zip(_box(mask), spacing_mm, strict=True)]
    return float(np.linalg.norm(edges))


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that touch, face to face, what is outside it."""
    return mask & ~ndimage.binary_erosion(mask)


def _directed(
    border: np.ndarray, other: np.ndarray, others_mm: np.ndarray, spacing_mm: Sequence[float]
) -> float:
    """95th percentile of how far the voxels of one border lie from the other's; shared voxels need no search."""
    apart = np.argwhere(border & ~other) * np.asarray(spacing_mm)
    distances = np.zeros(int(np.count_nonzero(border)))
    if len(apart):
        distances[: len(apart)] = cKDTree(others_mm).query(apart)[0]
    return float(np.percentile(distances, 95))


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["method"]) for row in rows))


def _tables(rows: Sequence[Row], method: str) -> dict[str, np.ndarray]:
    """One method's rows as tables (scan, tissue), healthy first, scans in order of their name: `cases`."""
    mine = {(row["case_id"], row["tissue"]): row for row in rows if row["method"] == method}
    cases = sorted({str(case) for case, _ in mine})
    tables = {"cases": np.array(cases)}
    for name in NUMBERS:
        tables[name] = np.array([[mine[case, t.key][name] for t in TISSUES] for case in cases], dtype=float)
    return tables


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _mean_of_means(samples: np.ndarray) -> np.ndarray:
    """(resample, scan, tissue) -> (resample,): the mean over tissues of each one's mean over scans that have it."""
    known = np.isfinite(samples)
    counts = known.sum(axis=1)
    means = np.divide(
        np.where(known, samples, 0).sum(axis=1), counts, where=counts > 0, out=np.zeros(counts.shape)
    )
    tissues = (counts > 0).sum(axis=1)
    return np.divide(means.sum(axis=1), tissues, where=tissues > 0, out=np.full(len(samples), np.nan))


def _interval(name: str, values: np.ndarray, statistic: Statistic, seed: int) -> Row:
    """A statistic of (scan, ...) values and the 95% interval of its bootstrap over scans."""
    if not np.isfinite(values).any():
        return {name: float("nan"), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    spread = statistic(values[drawn])
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return {name: float(statistic(values[None])[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _two(value: object) -> str:
    value = float(value)  # type: ignore[arg-type]
    return "-" if not np.isfinite(value) else f"{value:.2f}".removeprefix("0")


def _ml(value: object) -> str:
    value = float(value)  # type: ignore[arg-type]
    return "-" if not np.isfinite(value) else f"{value:+.0f}"


def _one(value: object) -> str:
    value = float(value)  # type: ignore[arg-type]
    return "-" if not np.isfinite(value) else f"{value:.1f}"
