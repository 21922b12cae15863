"""The top of the page: the cohort in a sentence, in figures and in one chart."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffseglung.labels import DISEASES, TISSUES
from diffseglung.report.case import STATES, Case, swatch
from diffseglung.report.charts import cohort_strip, tissue_bar
from diffseglung.report.checks import finite
from diffseglung.report.markup import Html, tag


def header(title: str, cases: Sequence[Case], about: Mapping[str, Any]) -> Html:
    """Title, the outcome in words, counts and litres, and what made them."""
    litres = {t: _total(cases, f"{t.key}_ml") / 1000 for t in TISSUES}
    lung = _total(cases, "lung_ml") / 1000
    counts = {state: sum(case.state == state for case in cases) for state in STATES}
    figures = [figure(len(cases), "scan" if len(cases) == 1 else "scans", "all")]
    figures += [
        figure(count, STATES[state], state) for state, count in counts.items() if count or state != "skipped"
    ]
    figures.append(figure(f"{lung:,.1f} l", "of lung"))
    diseased = sum(litres[t] for t in DISEASES)
    whole = sum(litres.values())
    if whole:
        figures.append(figure(f"{100 * diseased / whole:.1f}%", "of it labelled diseased"))
    made = [about[key] for key in ("model_uri", "model_version", "recipe", "date") if about.get(key)]
    return tag(
        "header",
        tag("p", "DiffSegLung", class_="brand"),
        tag("h1", title),
        tag("p", _sentence(counts, len(cases)), class_="lead"),
        tag("ul", figures, class_="figures"),
        _tissue_legend(litres, whole) if whole else None,
        tag("p", " \N{MIDDLE DOT} ".join(map(str, made)), class_="made") if made else None,
        class_="top",
    )


def _sentence(counts: Mapping[str, int], total: int) -> str:
    if not total:
        return "No scan was found in this cohort."
    words = []
    if counts["failed"]:
        words.append(f"{counts['failed']} could not be segmented")
    if counts["flagged"]:
        words.append(f"{counts['flagged']} should be looked at before the numbers are used")
    if counts["skipped"]:
        words.append(f"{counts['skipped']} {'was' if counts['skipped'] == 1 else 'were'} skipped")
    if not words:
        return (
            "All scans were segmented, and no check found anything odd. That is not the same as right: look "
            "at some."
        )
    listed = ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]
    return f"Of {total} scan{'s' * (total > 1)}, {listed}."


def figure(value: Any, label: str, state: str = "total") -> Html:
    """A number and what it counts."""
    return tag("li", tag("strong", value), tag("span", label), class_=f"figure {state}")


def _tissue_legend(litres: Mapping[Any, float], whole: float) -> Html:
    items = [
        tag("li", swatch(t), t.title, " ", tag("span", f"{litres[t]:,.2f} l", class_="quiet"))
        for t in TISSUES
    ]
    bar = tissue_bar(
        {t: litres[t] / whole for t in TISSUES}, "Litres by tissue over the cohort", width=1000, height=14
    )
    return tag("div", bar, tag("ul", items, class_="legend"), class_="whole")


def glance(cases: Sequence[Case]) -> Html:
    """The spread of every disease over the cohort; nothing for fewer than three scans."""
    segmented = [case for case in cases if case.row.get("status") == "ok"]
    if len(segmented) < 3:
        return Html("")
    chart = cohort_strip([case.row for case in segmented], [case.number for case in segmented])
    note = "Share of the lung by disease. A dot is a scan, the line the median; square-root scale."
    return tag(
        "section",
        tag("h2", "The cohort at a glance", id="glance-title"),
        tag("p", note, class_="note"),
        tag("div", chart, class_="scroll"),
        aria_labelledby="glance-title",
        class_="card",
    )


def _total(cases: Sequence[Case], key: str) -> float:
    return sum(finite(case.row.get(key)) or 0 for case in cases)
