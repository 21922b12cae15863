"""What opens when a scan is chosen: its remarks, its numbers, its scores, its files."""

from collections.abc import Sequence

from diffseglung.labels import DISEASES, TISSUES
from diffseglung.report.case import Case, Shown, badge, swatch, text
from diffseglung.report.checks import Row, finite, signed
from diffseglung.report.markup import Html, tag
from diffseglung.report.scores import score_table


def case_detail(case: Case, shown: Shown | None, scores: Sequence[Row]) -> Html:
    """A template that the script copies into the dialog; `scores` are those of this case."""
    row = case.row
    facts = [
        ("Right lung", row.get("right_lung_ml"), 0, " ml"),
        ("Left lung", row.get("left_lung_ml"), 0, " ml"),
        ("Mean density", row.get("mean_lung_hu"), 0, " HU"),
        ("Under \N{MINUS SIGN}950 HU (LAA-950)", row.get("laa950_pct"), 1, "%"),
        ("Uncertainty (0 to 1)", row.get("uncertainty"), 2, ""),
        ("Close to a guess", row.get("uncertain_pct"), 1, "% of lung"),
        ("From the training cohort", row.get("teacher_distance"), 2, " spreads"),
        ("Peak of air or lung", row.get("air_peak_hu"), 0, " HU"),
        ("Peak of fat or muscle", row.get("tissue_peak_hu"), 0, " HU"),
        ("Time", row.get("seconds"), 1, " s"),
    ]
    terms = [
        [tag("dt", name), tag("dd", f"{signed(value, digits)}{unit}")]
        for name, number, digits, unit in facts
        if (value := finite(number)) is not None
    ]
    made = [("Model", row.get("model_uri")), ("Version", row.get("model_version"))]
    made += [
        ("Input", text(row.get("input_sha256"))[:12]),
        ("Configuration", text(row.get("config_sha256"))[:12]),
    ]
    terms += [[tag("dt", name), tag("dd", value, class_="digest")] for name, value in made if value]
    words = case.words + [line for line in text(row.get("notes")).splitlines() if line.strip()]
    links = [tag("li", tag("a", name, href=url)) for name, url in (shown.files if shown else ())]
    content = [
        tag("ul", [tag("li", w) for w in words], class_=f"remarks box {case.state}") if words else None,
        _numbers(row, shown is not None) if finite(row.get("lung_ml")) is not None else None,
        tag(
            "figure",
            tag("figcaption", "HU by tissue, each scaled to its own peak"),
            class_="histogram",
            hidden=True,
        ),
        [tag("h3", "Against the truth"), score_table(scores, single=True)] if scores else None,
        tag("dl", terms, class_="facts") if terms else None,
        [tag("h3", "Files"), tag("ul", links, class_="files")] if links else None,
    ]
    heading = tag("span", badge(case.state), class_="state")
    return tag(
        "template", heading, tag("div", content), data_case=case.number, data_url=shown.url if shown else None
    )


def _numbers(row: Row, pictures: bool) -> Html:
    lines = []
    for t in TISSUES:
        # Healthy lung covers most of every slice: shown only when asked for.
        box = tag("input", type="checkbox", data_tissue=int(t), checked=t in DISEASES) if pictures else None
        name = tag("label" if pictures else "span", box, swatch(t), t.title)
        values = [(finite(row.get(f"{t.key}_ml")), 0), (finite(row.get(f"{t.key}_pct")), 1)]
        cells = [tag("td", "" if v is None else signed(v, d), class_="number") for v, d in values]
        lines.append(tag("tr", tag("th", name, scope="row"), cells))
    total = tag(
        "tr",
        tag("th", "Both lungs", scope="row"),
        tag("td", signed(finite(row.get("lung_ml")) or 0), class_="number"),
        tag("td"),
    )
    heads = [tag("th", "Tissue", scope="col"), tag("th", "ml", scope="col"), tag("th", "%", scope="col")]
    return tag(
        "table", tag("thead", tag("tr", heads)), tag("tbody", lines), tag("tfoot", total), class_="tissues"
    )
