"""The table of scans: a row each, those that failed or were flagged first."""

from collections.abc import Mapping, Sequence

from diffseglung.labels import DISEASES, TISSUES, Tissue
from diffseglung.report.case import STATES, Case, Shown, badge
from diffseglung.report.charts import tissue_bar
from diffseglung.report.checks import CHECKS, Row, diseased_pct, finite, flagged_by, signed
from diffseglung.report.markup import Html, join, tag

HEADS = {Tissue.EMPHYSEMA: "Emphy\N{SOFT HYPHEN}sema", Tissue.CONSOLIDATION: "Consoli\N{SOFT HYPHEN}dation"}
COLUMNS = (
    ("lung_ml", "Lungs", "ml", 0),
    *((f"{t.key}_pct", HEADS.get(t, t.title.capitalize()), "%", 1) for t in TISSUES),
    ("mean_lung_hu", "Mean", "HU", 0),
    ("laa950_pct", "LAA-950", "%", 1),
    ("uncertainty", "Uncer\N{SOFT HYPHEN}tainty", "0\N{EN DASH}1", 2),
    ("seconds", "Time", "s", 0),
)


def case_table(cases: Sequence[Case], shown: Mapping[int, Shown]) -> Html:
    """The table with its filter; `shown` gives pictures by case number."""
    heads = [
        tag("th", tag("span", "Picture", class_="hidden"), scope="col"),
        _head("Scan", "", "text"),
        _head("State", "", "state"),
        _head("Diseased", "% of lung", "share"),
        *(_head(title, unit, "number") for _, title, unit, _ in COLUMNS),
    ]
    counts = {state: sum(case.state == state for case in cases) for state in STATES}
    chips = [_chip("all", "All", len(cases), pressed=True)]
    chips += [_chip(state, STATES[state], count) for state, count in counts.items() if count]
    return tag(
        "section",
        tag("h2", "Scans", id="cases-title"),
        tag(
            "div",
            tag("div", chips, class_="chips", role="group", aria_label="Show scans by state"),
            tag(
                "label",
                tag("span", "Filter", class_="hidden"),
                tag(
                    "input",
                    type="search",
                    id="filter",
                    placeholder="Filter by name or remark",
                    autocomplete="off",
                ),
                class_="filter",
            ),
            tag("p", id="count", class_="quiet", role="status"),
            class_="tools script-only",
        ),
        _flags(cases),
        tag(
            "div",
            tag(
                "table",
                tag("caption", "One row a scan, those that failed or were flagged first", class_="hidden"),
                tag("thead", tag("tr", heads)),
                tag("tbody", [_row(case, shown.get(case.number)) for case in cases]),
                id="cases",
            ),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_labelledby="cases-title",
        ),
        tag("p", "No scan matches.", id="nothing", class_="note", hidden=True),
        aria_labelledby="cases-title",
        class_="card wide",
    )


def _head(title: str, unit: str, kind: str) -> Html:
    text = [title, tag("small", unit) if unit else None]
    first = "ascending" if kind in ("text", "state") else "descending"
    button = tag("button", text, type="button", class_="sort")
    return tag("th", button, scope="col", data_kind=kind, data_first=first, class_=kind)


def _chip(state: str, title: str, count: int, *, pressed: bool = False) -> Html:
    content = [title, tag("span", count)]
    return tag(
        "button", content, type="button", class_="chip", data_state=state, aria_pressed=str(pressed).lower()
    )


def _flags(cases: Sequence[Case]) -> Html | None:
    """How many scans each check remarks on; a click shows them."""
    counts = {check.name: sum(check.name in flagged_by(case.row) for case in cases) for check in CHECKS}
    chips = [
        tag(
            "button",
            name,
            tag("span", count),
            type="button",
            class_="chip",
            data_words=name.lower(),
            aria_pressed="false",
        )
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
        if count
    ]
    if not chips:
        return None
    title = tag("span", "Flagged for", class_="quiet", id="flags-title")
    return tag(
        "div", title, chips, class_="chips flags script-only", role="group", aria_labelledby="flags-title"
    )


def _row(case: Case, shown: Shown | None) -> Html:
    remarks = tag("ul", [tag("li", words) for words in case.words], class_="remarks") if case.words else None
    opener = tag("button", tag("bdi", case.name), type="button", class_="open")
    share = diseased_pct(case.row)
    bar = _mix(case.row, share) if share is not None else None
    cells = [
        tag("td", _thumbnail(shown), class_="thumb"),
        tag("th", opener, remarks, scope="row", data_sort=case.name),
        tag("td", badge(case.state), data_sort=list(STATES).index(case.state)),
        tag("td", bar, data_sort="" if share is None else share, class_="bar"),
    ]
    for key, _, _, digits in COLUMNS:
        value = finite(case.row.get(key))
        text = "" if value is None else signed(value, digits)
        cells.append(tag("td", text, data_sort="" if value is None else value, class_="number"))
    search = " ".join([case.name, STATES[case.state], *case.words, *flagged_by(case.row)]).lower()
    return tag(
        "tr", cells, data_case=case.number, data_id=case.name, data_state=case.state, data_search=search
    )


def _thumbnail(shown: Shown | None) -> Html:
    if shown is None:
        return tag("span", class_="no-picture")
    return tag("img", src=shown.thumbnail, alt="", loading="lazy")


def _mix(row: Row, share: float) -> Html:
    shares = {t: (finite(row.get(f"{t.key}_pct")) or 0) / 100 for t in DISEASES}
    words = ", ".join(f"{t.title} {100 * s:.1f}%" for t, s in shares.items() if s > 0) or "no disease"
    return join([tag("span", f"{share:.1f}", class_="share"), tissue_bar(shares, words)])
