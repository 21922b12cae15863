"""How well the labels match where there is truth: means over cases, by tissue and method."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffseglung.calibration import PARTS, Calibration
from diffseglung.labels import DISEASES, TISSUES
from diffseglung.report.charts import METHODS_DRAWN, dice_chart, reliability_chart
from diffseglung.report.checks import Row, finite
from diffseglung.report.markup import Html, tag

Grouped = dict[str, dict[str, list[float]]]
Believed = Mapping[str, Mapping[str, Calibration]]


def group(scores: Sequence[Row], key: str) -> Grouped:
    """Known values of a score, by method and tissue key; a tissue that is not there has none."""
    held: Grouped = {}
    for score in scores:
        tissues = held.setdefault(str(score.get("method") or "DiffSegLung"), {})
        value = finite(score.get(key))
        if value is not None:
            tissues.setdefault(str(score.get("tissue")), []).append(value)
    return held


def disease_mean(tissues: Mapping[str, list[float]]) -> float | None:
    """Mean over diseases of the mean over cases."""
    means = [float(np.mean(tissues[t.key])) for t in DISEASES if tissues.get(t.key)]
    return float(np.mean(means)) if means else None


def best_first(dice: Grouped) -> Grouped:
    """Methods in the order of their mean over the diseases."""
    return dict(sorted(dice.items(), key=lambda item: -(disease_mean(item[1]) or 0)))


def scores_section(scores: Sequence[Row] | None) -> Html:
    """The chart and the table of a cohort with truth; nothing without."""
    if not scores:
        return Html("")
    dice = best_first(group(scores, "dice"))
    count = len({str(score.get("case_id")) for score in scores})
    legend = [
        tag("li", tag("span", class_=f"swatch n{i}"), method)
        for i, method in enumerate(list(dice)[:METHODS_DRAWN])
    ]
    note = (
        f"Dice over {count} scan{'s' * (count != 1)} with truth: 1 is full overlap, 0 none. Bars are means, "
        "dots are scans. A tissue that is neither in the truth nor in the labels of a scan has no score there."
    )
    return tag(
        "section",
        tag("h2", "Against the truth", id="scores-title"),
        tag("p", note, class_="note"),
        tag("ul", legend, class_="legend"),
        tag("div", dice_chart(dice), class_="scroll"),
        tag("div", score_table(scores), class_="scroll"),
        aria_labelledby="scores-title",
        class_="card",
    )


def calibration_section(believed: Believed | None) -> Html:
    """A reliability diagram for each method whose posteriors met a truth; nothing without."""
    if not believed:
        return Html("")
    note = (
        "Voxels by the probability of the tissue that they are called, and the share of them that is right. On the "
        "diagonal probabilities can be taken at their word; below it they boast. Doubt (entropy) tells errors as often "
        "as it is larger in a wrong voxel than in a right one: an AUROC of 0.5 is chance."
    )
    legend = [tag("li", tag("span", class_=f"swatch n{i}"), words) for i, words in enumerate(PARTS.values())]
    drawn = [
        tag(
            "figure",
            reliability_chart({PARTS[part]: one.curve for part, one in parts.items()}),
            tag("figcaption", tag("b", method), [tag("p", line) for line in _in_words(parts)]),
        )
        for method, parts in believed.items()
    ]
    return tag(
        "section",
        tag("h2", "Can the probabilities be believed?", id="calibration-title"),
        tag("p", note, class_="note"),
        tag("ul", legend, class_="legend"),
        tag("div", drawn, class_="reliability"),
        aria_labelledby="calibration-title",
        class_="card",
    )


def _in_words(parts: Mapping[str, Calibration]) -> list[str]:
    return [
        f"{PARTS[part].capitalize()}: expected calibration error {100 * one.error:.1f} %, mean probability "
        f"{100 * one.overconfidence:+.1f} % beside accuracy, entropy tells errors with an AUROC of "
        f"{one.error_detection:.2f}."
        for part, one in parts.items()
        if one.voxels.sum()
    ]


def score_table(scores: Sequence[Row], *, single: bool = False) -> Html:
    """Mean Dice by method and tissue, HD95 in mm under it; the best of each column in bold."""
    dice, hd95 = best_first(group(scores, "dice")), group(scores, "hd95_mm")
    columns = [t for t in TISSUES if any(tissues.get(t.key) for tissues in dice.values())]
    best = {
        t.key: max(float(np.mean(tissues[t.key])) for tissues in dice.values() if tissues.get(t.key))
        for t in columns
    }
    best["mean"] = max((disease_mean(tissues) or 0 for tissues in dice.values()), default=0.0)
    lines = []
    for method, tissues in dice.items():
        mean = disease_mean(tissues)
        cells = [_cell(mean, None, 0, mean == best["mean"])]
        for t in columns:
            values, distances = tissues.get(t.key, []), hd95[method].get(t.key, [])
            value = float(np.mean(values)) if values else None
            distance = float(np.mean(distances)) if distances else None
            cells.append(_cell(value, distance, 0 if single else len(values), value == best[t.key]))
        lines.append(tag("tr", tag("th", method, scope="row"), cells))
    heads = [tag("th", "Method", scope="col"), tag("th", "Diseases, mean", scope="col")]
    heads += [tag("th", t.title.capitalize(), scope="col") for t in columns]
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines), class_="scores")
    return tag(
        "div",
        table,
        tag(
            "p",
            "Dice; below it HD95 in mm" + ("." if single else " and the number of scans."),
            class_="quiet",
        ),
    )


def _cell(dice: float | None, distance_mm: float | None, count: int, best: bool) -> Html:
    if dice is None:
        return tag("td", class_="number")
    under = [f"{distance_mm:.1f} mm" if distance_mm is not None else "", f"n {count}" if count else ""]
    small = tag("small", ", ".join(part for part in under if part)) if any(under) else None
    return tag("td", tag("b" if best else "span", f"{dice:.3f}"), small, class_="number")
