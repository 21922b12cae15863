"""The report's charts, as SVG that prints and needs no script."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffseglung.labels import DISEASES, TISSUES, Tissue
from diffseglung.report.checks import Row, finite
from diffseglung.report.markup import Html, tag

METHODS_DRAWN = 6
DOTS_DRAWN = 40
"""Above so many scans the dots of a bar would hide it."""
SHARES_PCT = (0, 1, 5, 10, 25, 50, 75, 100)


def tissue_bar(shares: Mapping[Tissue, float], label: str, *, width: int = 128, height: int = 10) -> Html:
    """One horizontal bar, a segment per tissue, in shares of the whole (0 to 1)."""
    parts, x = [], 0.0
    for tissue, share in shares.items():
        if share > 0:
            size = {"x": f"{x * width:.2f}", "width": f"{max(share * width, 0.5):.2f}", "height": height}
            parts.append(tag("rect", class_=f"f{int(tissue)}", **size))
            x += share
    return _picture(parts, width, height, label, class_="mix", preserveAspectRatio="none")


def cohort_strip(rows: Sequence[Row], numbers: Sequence[int]) -> Html:
    """A line per disease, a dot per case: its share of the lung, on a square-root scale; a tick at the median.

    `numbers[i]` is the number under which the page knows `rows[i]`.
    """
    left, width, step = 128, 860, 40
    height = step * len(DISEASES) + 34
    shares = {t: [finite(row.get(f"{t.key}_pct")) for row in rows] for t in DISEASES}
    highest = max((s for line in shares.values() for s in line if s is not None), default=1.0)
    top = next((t for t in SHARES_PCT[2:] if t >= highest), 100)

    def place(share: float) -> str:
        return f"{left + width * float(np.sqrt(min(share, top) / top)):.1f}"

    drawn = []
    for t in (t for t in SHARES_PCT if t <= top):
        drawn.append(tag("line", class_="grid", x1=place(t), x2=place(t), y1=4, y2=height - 28))
        drawn.append(tag("text", f"{t}%", class_="tick", x=place(t), y=height - 10, text_anchor="middle"))
    for line, (tissue, values) in enumerate(shares.items()):
        y = 4 + step * (line + 0.5)
        drawn.append(tag("text", tissue.title, class_="name", x=left - 14, y=y + 4, text_anchor="end"))
        known = [v for v in values if v is not None]
        if known:
            x = place(float(np.median(known)))
            drawn.append(tag("line", class_="median", x1=x, x2=x, y1=y - 14, y2=y + 14))
        for i, value in enumerate(values):
            if value is not None:
                title = tag("title", f"{rows[i]['case_id']}: {tissue.title} {value:.1f}%")
                at = {"cx": place(value), "cy": f"{y + 18 * (_spread(i) - 0.5):.1f}", "r": 5}
                drawn.append(tag("circle", title, class_=f"dot f{int(tissue)}", data_case=numbers[i], **at))
    return _picture(drawn, left + width + 24, height, "Share of the lung per disease, one dot a case")


def dice_chart(dice: Mapping[str, Mapping[str, list[float]]]) -> Html:
    """Bars of mean Dice, grouped by tissue, a bar per method, a dot per case."""
    methods = list(dice)[:METHODS_DRAWN]
    present = [t for t in TISSUES if any(dice[m].get(t.key) for m in methods)]
    left, width, base = 44, 940, 230
    group = width / max(len(present), 1)
    bar = min(26.0, group * 0.8 / max(len(methods), 1))
    drawn = []
    for level in (0, 0.25, 0.5, 0.75, 1):
        y = base - 220 * level
        drawn.append(tag("line", class_="grid", x1=left, x2=left + width, y1=y, y2=y))
        drawn.append(tag("text", f"{level:g}", class_="tick", x=left - 10, y=y + 4, text_anchor="end"))
    for g, tissue in enumerate(present):
        middle = left + group * (g + 0.5)
        at = {"x": f"{middle:.1f}", "y": base + 22}
        drawn.append(tag("text", tissue.title, class_="name", text_anchor="middle", **at))
        for m, method in enumerate(methods):
            x = middle + (m - len(methods) / 2) * bar
            label = f"{method}, {tissue.title}"
            drawn += _dice_bar(dice[method].get(tissue.key, []), label, f"m{m}", x, bar, base)
    return _picture(drawn, left + width + 8, base + 34, "Mean Dice by tissue and method")


def _dice_bar(values: list[float], label: str, kind: str, x: float, width: float, base: float) -> list[Html]:
    if not values:
        return []
    mean = float(np.mean(values))
    title = tag("title", f"{label}: mean Dice {mean:.3f} of {len(values)}")
    size = {"x": f"{x + 1:.1f}", "y": f"{base - 220 * mean:.1f}"}
    size |= {"width": f"{width - 2:.1f}", "height": f"{220 * mean:.1f}"}
    dots = values if 1 < len(values) <= DOTS_DRAWN else []
    return [
        tag("rect", title, class_=kind, **size),
        *(
            tag(
                "circle", class_="case-dot", r=1.8, cx=f"{x + width * across:.1f}", cy=f"{base - 220 * v:.1f}"
            )
            for v, across in ((v, 0.3 + 0.4 * _spread(i)) for i, v in enumerate(dots))
        ),
    ]


def reliability_chart(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> Html:
    """Share right over mean confidence, a line per curve; a dot's area goes with its share of the voxels."""
    left, size, top = 52, 300, 8
    drawn: list[Html] = []

    def place(x: float, y: float) -> tuple[str, str]:
        return f"{left + size * x:.1f}", f"{top + size * (1 - y):.1f}"

    for level in (0, 0.25, 0.5, 0.75, 1):
        (x, y), (right, bottom) = place(level, level), place(1, 0)
        drawn.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        drawn.append(tag("text", f"{level:g}", class_="tick", x=left - 8, y=float(y) + 4, text_anchor="end"))
        drawn.append(
            tag("text", f"{level:g}", class_="tick", x=x, y=float(bottom) + 18, text_anchor="middle")
        )
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    drawn.append(tag("line", class_="median", x1=x0, y1=y0, x2=x1, y2=y1))
    for number, (name, curve) in enumerate(curves.items()):
        whole = sum(voxels for _, _, voxels in curve)
        points = [place(confidence, right) for confidence, right, _ in curve]
        drawn.append(
            tag("polyline", class_=f"curve m{number}", points=" ".join(f"{x},{y}" for x, y in points))
        )
        for (x, y), (confidence, accuracy, voxels) in zip(points, curve, strict=True):
            share = voxels / whole
            words = (
                f"{name}: called with {confidence:.2f}, right {accuracy:.2f}; {100 * share:.1f} % of voxels"
            )
            at = {"cx": x, "cy": y, "r": f"{2 + 10 * float(np.sqrt(share)):.1f}"}
            drawn.append(tag("circle", tag("title", words), class_=f"m{number}", **at))
    middle = {"x": left + size / 2, "y": top + size + 36}
    drawn.append(tag("text", "probability", class_="name", text_anchor="middle", **middle))
    return _picture(drawn, left + size + 14, top + size + 44, "Share of voxels that is right, by probability")


def _spread(i: int) -> float:
    """A place between 0 and 1 that keeps neighbours in a list apart: steps of the golden ratio."""
    return (i * 0.618034) % 1


def _picture(parts: Sequence[Html], width: float, height: float, label: str, **more: Any) -> Html:
    held = {"class_": "chart", "viewBox": f"0 0 {width} {height}", "role": "img", "aria_label": label}
    return tag("svg", parts, **(held | more))
