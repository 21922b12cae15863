"""The page of a sweep: what was tried, what the criterion said of it, and which settings mattered. One HTML file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffseglung.criteria import IN_WORDS
from diffseglung.report.checks import Row
from diffseglung.report.markup import Html, join, tag
from diffseglung.report.page import asset, fill, policy
from diffseglung.report.summary import figure

TITLES = {
    "temperature": "temperature",
    "weight": "weight",
    "embedding": "projection",
    "lr": "learning rate",
    "lr_heads": "rate of heads",
    "timesteps": "timesteps",
    "combine": "combined",
    "clusters": "clusters",
    "covariance": "covariance",
    "potts": "neighbours",
    "flow_time": "fusion time",
    "edge_hu": "edge in HU",
}
STAGES = {
    "train": ("Trainings", ("temperature", "weight", "embedding", "lr", "lr_heads")),
    "features": (
        "Features of the trained student",
        ("timesteps", "combine", "clusters", "covariance", "potts", "flow_time", "edge_hu"),
    ),
}
LOGARITHMIC = ("temperature", "lr", "lr_heads", "embedding")
NAMES_ON_AXIS = 8  # an axis of more names than that shows only some
ROWS_SHOWN = 12
FEWEST = 4  # trials with a score, below which no importance is told

_STATUS = {"finished": "judged to the end", "stopped": "stopped early", "failed": "failed"}


def sweep_page(rows: Sequence[Row], *, title: str, about: Mapping[str, Any]) -> str:
    """The page as text. `rows` are those of `sweep.parquet`; `about` says the `run`, and a `note` on the criterion."""
    style = join([asset("style.css"), asset("sweep.css")])
    stages = [(name, [row for row in rows if row["stage"] == name]) for name in STAGES]
    sections = [_stage(name, some) for name, some in stages if some]
    return fill(
        "sweep.html",
        {
            "policy": tag("meta", http_equiv="Content-Security-Policy", content=policy(style)),
            "title": join([title]),
            "style": style,
            "header": _header(title, rows, about),
            "sections": join([*sections, _pareto(rows), _about(rows, about)]),
        },
    )


def _header(title: str, rows: Sequence[Row], about: Mapping[str, Any]) -> Html:
    counts = {status: sum(row["status"] == status for row in rows) for status in _STATUS}
    figures = [figure(len(rows), "trials", "all")]
    figures += [
        figure(count, _STATUS[status], "failed" if status == "failed" else "all")
        for status, count in counts.items()
        if count
    ]
    best = [row for row in rows if row["best"]]
    figures += [figure(f"{best[-1]['score']:.3f}", f"best {best[-1]['criterion']}", "ok")] if best else []
    note = about.get("note")
    return tag(
        "header",
        tag("p", "DiffSegLung", class_="brand"),
        tag("h1", title),
        tag("p", " ".join(_winner(row) for row in best), class_="lead"),
        tag("ul", figures, class_="figures"),
        tag("p", tag("strong", "Take care."), " ", f"{note[0].upper()}{note[1:]}.", class_="warning")
        if note
        else None,
        class_="top",
    )


def _winner(row: Row) -> str:
    said = ", ".join(f"{TITLES[name]} {_value(row[name])}" for name in STAGES[row["stage"]][1])
    return f"{'Best training' if row['stage'] == 'train' else 'Best features'}: {said}."


def _value(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _stage(name: str, rows: Sequence[Row]) -> Html:
    title, parameters = STAGES[name]
    note = "A line is a trial, from its settings to its score; the better, the stronger. The thick one is the winner."
    parts = [
        tag("h2", title),
        tag("p", note, class_="note"),
        tag("div", parallel(rows, parameters), class_="scroll"),
    ]
    aside = [_importance(rows, parameters)]
    if name == "train":
        aside.insert(0, tag("div", tag("h3", "Criterion against temperature"), against(rows, "temperature")))
    parts += [tag("div", aside, class_="pair"), _table(rows, parameters)]
    return tag("section", parts, class_="card")


def parallel(rows: Sequence[Row], parameters: Sequence[str]) -> Html:
    """Parallel coordinates: an axis for each parameter and one for the score, a line for each trial with a score."""
    known = sorted(
        (row for row in rows if row["score"] is not None), key=lambda row: (row["best"], row["score"])
    )
    names = [*parameters, "score"]
    width, height, top, left = 960, 300, 44, 90
    step = (width - 2 * left) / (len(names) - 1)
    scales = [_Scale([row[name] for row in known], name in LOGARITHMIC) for name in names]
    drawn, labels = [], []
    for i, (name, scale) in enumerate(zip(names, scales, strict=True)):
        x = left + i * step
        drawn.append(tag("line", class_="axis", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=top, y2=top + height))
        drawn.append(
            tag("text", TITLES.get(name, name), class_="name", x=f"{x:.1f}", y=top - 22, text_anchor="middle")
        )
        for share, label in scale.ticks():
            y = top + height * (1 - share)
            labels.append(tag("text", label, class_="tick halo", x=f"{x + 7:.1f}", y=f"{y + 4:.1f}"))
    for rank, row in enumerate(known):
        points = " ".join(
            f"{left + i * step:.1f},{top + height * (1 - scale.place(row[name])):.1f}"
            for i, (name, scale) in enumerate(zip(names, scales, strict=True))
        )
        quarter = 1 + 4 * rank // len(known)
        title = tag("title", _said(row, parameters))
        drawn.append(
            tag("polyline", title, class_=f"path {'best' if row['best'] else f'q{quarter}'}", points=points)
        )
    return _svg(
        drawn + labels, width, top + height + 24, "Settings and score of each trial, in parallel coordinates"
    )


def against(rows: Sequence[Row], name: str) -> Html:
    """The score over one parameter, a dot a trial; hollow where it was stopped before its last rung."""
    known = [row for row in rows if row["score"] is not None and row[name] is not None]
    return _scatter(known, name, TITLES.get(name, name), name in LOGARITHMIC, [])


def _scatter(rows: Sequence[Row], name: str, title: str, log: bool, front: Sequence[Row]) -> Html:
    width, height, left, top = 560, 250, 58, 12
    across, up = _Scale([row[name] for row in rows], log), _Scale([row["score"] for row in rows], False)
    drawn = []

    def at(row: Row) -> tuple[float, float]:
        return left + (width - left - 20) * across.place(row[name]), top + height * (
            1 - up.place(row["score"])
        )

    for share, label in up.ticks():
        level = round(top + height * (1 - share), 1)
        drawn.append(tag("line", class_="grid", x1=left, x2=width - 20, y1=level, y2=level))
        drawn.append(tag("text", label, class_="tick", x=left - 8, y=level + 4, text_anchor="end"))
    for share, label in across.ticks():
        middle = round(left + (width - left - 20) * share, 1)
        drawn.append(tag("text", label, class_="tick", x=middle, y=top + height + 20, text_anchor="middle"))
    drawn.append(
        tag("text", title, class_="name", x=(left + width) / 2, y=top + height + 42, text_anchor="middle")
    )
    if len(front) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, front))
        drawn.append(tag("polyline", class_="front", points=points))
    for row in sorted(rows, key=lambda row: row["best"]):
        x, y = at(row)
        state = "best" if row["best"] else row["status"]
        words = tag("title", _said(row, STAGES[row["stage"]][1]))
        drawn.append(
            tag(
                "circle",
                words,
                class_=f"point {state}",
                cx=f"{x:.1f}",
                cy=f"{y:.1f}",
                r=7 if row["best"] else 5,
            )
        )
    return _svg(drawn, width, top + height + 52, f"Criterion against {title}", narrow=True)


def importance(rows: Sequence[Row], parameters: Sequence[str]) -> dict[str, float]:
    """Share of what a forest of trees explains of the criterion, by parameter (decrease in impurity; Breiman 2001).

    Largest first. By the score at the first rung, where all trials were judged. Empty where there are too few trials,
    or all are the same. Functional ANOVA would say what each explains alone, and takes minutes for the hundred sets of
    timesteps among 60 trials.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    known = [row for row in rows if row["scores"] and all(row[name] is not None for name in parameters)]
    scores = [row["scores"][0] for row in known]
    if len(known) < FEWEST or max(scores) - min(scores) <= 0:
        return {}
    space: dict[str, BaseDistribution] = {}
    for name in parameters:
        values = sorted({row[name] for row in known})
        if len(values) < 2:
            continue
        if name in ("temperature", "weight", "lr", "lr_heads"):
            space[name] = FloatDistribution(values[0], values[-1], log=name in LOGARITHMIC)
        else:
            space[name] = CategoricalDistribution(values)
    if not space:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: row[name] for name in space}, distributions=space, value=row["scores"][0]
            )
            for row in known
        ]
    )
    evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _importance(rows: Sequence[Row], parameters: Sequence[str]) -> Html:
    found = importance(rows, parameters)
    if not found:
        return tag(
            "div",
            tag("h3", "What mattered"),
            tag("p", "Too few trials to tell, or all came to the same.", class_="note"),
        )
    width, step, left = 560, 44, 130
    drawn = []
    for i, (name, share) in enumerate(found.items()):
        y = 16 + i * step
        size = max(1.0, (width - left - 60) * share)
        drawn.append(tag("text", TITLES[name], class_="name", x=left - 12, y=y + 17, text_anchor="end"))
        drawn.append(tag("rect", class_="bar", x=left, y=y, width=f"{size:.1f}", height=24, rx=4))
        drawn.append(tag("text", f"{100 * share:.0f}%", class_="tick", x=f"{left + size + 8:.1f}", y=y + 17))
    note = "Share of what a forest of trees explains of the criterion, by setting (first judgement of each)."
    chart = _svg(drawn, width, 16 + len(found) * step, "Importance of each setting", narrow=True)
    return tag("div", tag("h3", "What mattered"), chart, tag("p", note, class_="note"))


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The trials that no other beats in both score and seconds a scan, cheapest first."""
    known = [row for row in rows if row["score"] is not None and row["scan_seconds"] is not None]
    front: list[Row] = []
    for row in sorted(known, key=lambda row: (row["scan_seconds"], -row["score"])):
        if not front or row["score"] > front[-1]["score"]:
            front.append(row)
    return front


def _pareto(rows: Sequence[Row]) -> Html:
    known = [row for row in rows if row["score"] is not None and row["scan_seconds"] is not None]
    if not known:
        return Html("")
    front = pareto(known)
    items = [tag("li", f"{row['scan_seconds']:.1f} s: {row['score']:.3f} ({_called(row)})") for row in front]
    return tag(
        "section",
        tag("h2", "Criterion against seconds a scan"),
        tag(
            "p",
            "What the student's features of a usual scan would take where the sweep ran: seconds a tile, as measured, "
            "times tiles and timesteps. Along the dashed line nothing is both better and cheaper.",
            class_="note",
        ),
        tag(
            "div",
            _scatter(known, "scan_seconds", "seconds a scan", True, front),
            tag("ul", items),
            class_="pair",
        ),
        class_="card",
    )


def _called(row: Row) -> str:
    kind = "training" if row["stage"] == "train" else "features"
    return f"{kind}, trial {row['trial'] + 1}: timesteps {row['timesteps']}, {row['combine']}"


def _table(rows: Sequence[Row], parameters: Sequence[str]) -> Html:
    best = sorted(
        (row for row in rows if row["score"] is not None),
        key=lambda row: (not row["best"], -row["rung"], -row["score"]),
    )
    failed = [row for row in rows if row["score"] is None]
    shown = best[:ROWS_SHOWN] + failed[:ROWS_SHOWN]
    head = ["trial", *(TITLES[name] for name in parameters), "judged", "score", "outcome"]
    lines = []
    for row in shown:
        cells = [tag("th", row["trial"] + 1, scope="row")]
        cells += [tag("td", _value(row[name])) for name in parameters]
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        cells += [
            tag("td", row["rung"] or 0),
            tag("td", score),
            tag("td", row["reason"] or _STATUS[row["status"]]),
        ]
        lines.append(tag("tr", cells, class_="best" if row["best"] else None))
    heading = (
        "All trials" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} trials, the best first"
    )
    table = tag(
        "table",
        tag("thead", tag("tr", [tag("th", name, scope="col") for name in head])),
        tag("tbody", lines),
        class_="trials",
    )
    return join([tag("h3", heading), tag("div", table, class_="scroll")])


def _about(rows: Sequence[Row], about: Mapping[str, Any]) -> Html:
    criterion = rows[0]["criterion"]
    said = [
        (
            "Criterion",
            f"{criterion}: {IN_WORDS.get(criterion, '')}. On cases that no trial learned from; no label is used.",
        ),
        ("Sweep", f"MLflow run {about['run']}" if about.get("run") else "-"),
    ]
    return tag(
        "section",
        tag("h2", "What was asked"),
        tag("dl", [tag("div", tag("dt", name), tag("dd", words)) for name, words in said], class_="about"),
        class_="card",
    )


def _said(row: Row, parameters: Sequence[str]) -> str:
    settings = ", ".join(f"{TITLES[name]} {_value(row[name])}" for name in parameters)
    return f"trial {row['trial'] + 1}: {settings}; score {row['score']:.4f}, {_STATUS[row['status']]}"


class _Scale:
    """Where values lie between 0 and 1: numbers by size (or its logarithm), names in their order."""

    def __init__(self, values: Sequence[Any], log: bool) -> None:
        values = [value for value in values if value is not None]
        self.names = sorted(set(values), key=_natural) if any(isinstance(v, str) for v in values) else None
        self.log = log and all(value > 0 for value in values)
        if self.names is None:
            at = [self._size(value) for value in values] or [0.0]
            self.low, self.high = min(at), max(at)

    def _size(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def place(self, value: Any) -> float:
        """0 at the lowest, 1 at the highest; the middle where all are one."""
        if self.names is not None:
            return self.names.index(value) / (len(self.names) - 1) if len(self.names) > 1 else 0.5
        if value is None or self.high <= self.low:
            return 0.5
        return (self._size(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and what stands there: three numbers, or names."""
        if self.names is not None:
            every = max(1, -(-len(self.names) // NAMES_ON_AXIS))
            return [(self.place(name), name) for name in self.names[::every]]
        if self.high <= self.low:
            return [(0.5, _value(self._back(self.low)))]
        return [
            (share, _value(self._back(self.low + share * (self.high - self.low))))
            for share in (0.0, 0.5, 1.0)
        ]

    def _back(self, size: float) -> float:
        return math.exp(size) if self.log else size


def _natural(name: str) -> tuple:
    parts = name.split("+")
    return (len(parts), *(int(part) if part.isdigit() else part for part in parts))


def _svg(parts: Sequence[Html], width: float, height: float, label: str, *, narrow: bool = False) -> Html:
    kind = "chart narrow" if narrow else "chart"
    return tag("svg", parts, class_=kind, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)
