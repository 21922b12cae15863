"""The cohort's report: one HTML file that opens from disk, with nothing fetched from anywhere.

Tables, numbers and charts are plain markup, there without JavaScript, in print and for a screen reader; the
script in `assets/` only sorts, filters and shows slices.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffseglung.labels import TISSUE_RGB, TISSUES
from diffseglung.report.case import Shown, make_case, shown_order, text
from diffseglung.report.checks import Row
from diffseglung.report.detail import case_detail
from diffseglung.report.markup import Html, join, tag
from diffseglung.report.pictures import CALLBACK, VIEWS, CasePictures, write_whole
from diffseglung.report.scores import Believed, calibration_section, scores_section
from diffseglung.report.summary import glance, header
from diffseglung.report.table import case_table
from diffseglung.report.trust import about_list, trust_section

Pictures = Mapping[str, CasePictures | Path]

EMBED_AT_MOST = 60
"""Cases whose slices are put inside the file; larger cohorts keep them beside it, one script a case."""
BESIDE = ("pictures.js", "thumbnail.webp")
FILES = ("segmentation.nii.gz", "anatomy.nii.gz", "segmentation.dcm", "preview.png")


def write_report(
    path: Path | str,
    rows: Sequence[Row],
    cases: Pictures,
    scores: Sequence[Row] | None = None,
    believed: Believed | None = None,
    *,
    title: str = "Lung tissue report",
    about: Mapping[str, Any] | None = None,
    embed: bool | None = None,
) -> None:
    """Write the report on a cohort, whole or not at all.

    `rows` are rows of the results table; `cases` gives pictures by case_id, or the path of a `pictures.json`,
    which is then read one at a time; `scores` are rows of the scores table where there is truth, and `believed`
    how well each method's posteriors are calibrated, by `calibration.PARTS`; `about` says
    which model, configuration, recipe, date and hardware made the results, and `note` what they are meant for.
    Up to `EMBED_AT_MOST` cases the pictures are inside the file; above, or with `embed=False`, each case's are in
    its own folder under `cases/`: a `thumbnail.webp`, loaded when its row comes into view, and a `pictures.js`,
    loaded when the case is opened.
    """
    path = Path(path)
    inside = len(cases) <= EMBED_AT_MOST if embed is None else embed
    shown = {}
    for number, row in enumerate(rows):
        found = cases.get(text(row.get("case_id")))
        if found is not None and (pictures := _shown(path.parent, number, found, inside)):
            shown[number] = pictures
    write_whole(path, report_html(rows, shown, scores, believed, title=title, about=about or {}))


def _shown(folder: Path, number: int, found: CasePictures | Path, inside: bool) -> Shown | None:
    try:
        pictures = found if isinstance(found, CasePictures) else CasePictures.load(found)
    except (OSError, ValueError):
        return None  # the page says that this scan has no pictures; its numbers stand
    # A case_id may be no file name at all, so pictures without a folder of their own go by number.
    home = found.parent if isinstance(found, Path) else folder / "cases" / f"_{number}"
    files = tuple((name, _url(home / name, folder)) for name in FILES if (home / name).is_file())
    if inside:
        return Shown(f"data:image/webp;base64,{pictures.thumbnail}", pictures.to_json(), None, files)
    script, thumbnail = (home / name for name in BESIDE)
    write_whole(script, f"{CALLBACK}({pictures.to_json()});\n")
    write_whole(thumbnail, base64.b64decode(pictures.thumbnail))
    return Shown(_url(thumbnail, folder), None, _url(script, folder), files)


def _url(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def report_html(
    rows: Sequence[Row],
    shown: Mapping[int, Shown],
    scores: Sequence[Row] | None = None,
    believed: Believed | None = None,
    *,
    title: str,
    about: Mapping[str, Any],
) -> str:
    """The page as text; `shown` gives pictures by the position of their row."""
    cases = sorted((make_case(number, row) for number, row in enumerate(rows)), key=shown_order)
    measured: dict[str, list[Row]] = {}
    for score in scores or ():
        measured.setdefault(text(score.get("case_id")), []).append(score)
    style = join([asset("style.css"), Html(_tissue_css())])
    script = asset("app.js")
    parts = {
        "policy": tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script, shown)),
        "title": join([title]),
        "style": style,
        "header": header(title, cases, about),
        "glance": glance(cases),
        "cases": case_table(cases, shown),
        "scores": join([scores_section(scores), calibration_section(believed)]),
        "trust": trust_section(about, scores),
        "about": about_list(about),
        "templates": join(case_detail(c, shown.get(c.number), measured.get(c.name, [])) for c in cases),
        "data": join(_data(shown)),
        "script": script,
    }
    return fill("page.html", parts)


def fill(name: str, parts: Mapping[str, str]) -> str:
    """A page of `assets/` with its parts put in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset(name))


def _data(shown: Mapping[int, Shown]) -> Iterator[Html]:
    shared = {
        "tissues": [{"value": int(t), "key": t.key, "title": t.title, "rgb": TISSUE_RGB[t]} for t in TISSUES],
        "views": {name: asdict(view) for name, view in VIEWS.items()},
        "callback": CALLBACK,
    }
    yield _json("shared", json.dumps(shared))
    for number, case in shown.items():
        if case.held is not None:
            yield _json(f"pictures-{number}", case.held)


def _json(name: str, content: str) -> Html:
    # Inside a script element only "<" could end it.
    safe = content.replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{name}">{safe}</script>\n')


def _tissue_css() -> str:
    lines = []
    for tissue, (red, green, blue) in TISSUE_RGB.items():
        lines.append(f".b{int(tissue)}{{background:rgb({red},{green},{blue})}}")
        lines.append(f".f{int(tissue)}{{fill:rgb({red},{green},{blue})}}")
    return "\n".join(lines)


def _policy(style: str, script: str, shown: Mapping[int, Shown]) -> str:
    """Only this page's own style and script may act, whatever text the results brought along."""
    beside = " 'self' file:" if any(case.url for case in shown.values()) else ""
    return (
        f"default-src 'none'; img-src data:{beside}; style-src {_digest(style)}; script-src {_digest(script)}{beside}; "
        "base-uri 'none'; form-action 'none'"
    )


def policy(style: str) -> str:
    """The same for a page without script: its own style and nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def asset(name: str) -> Html:
    """A file of `assets/`, as it is."""
    return Html((resources.files(__package__) / "assets" / name).read_text(encoding="utf-8"))
