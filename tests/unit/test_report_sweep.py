"""The page of a sweep: every trial is on it, the winner stands out, and it acts and fetches nothing."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from made_browser import CHROMIUM, Page, browser

from diffseglung.report.sweep import importance, pareto, sweep_page

HOSTILE = '</style><script>document.title="taken"</script>'


def training(number: int, **more: Any) -> dict[str, Any]:
    """A row of the sweep's table whose score depends on its temperature alone."""
    rng = np.random.default_rng(number)
    temperature = float(np.exp(rng.uniform(math.log(0.02), math.log(0.5))))
    score = 0.9 - 0.1 * abs(math.log(temperature / 0.1))
    finished = number % 3 == 0
    row = {
        "sweep": "s", "stage": "train", "trial": number, "run_id": "r", "reason": "", "best": False,
        "status": "finished" if finished else "stopped", "rung": 3 if finished else 1, "step": 200,
        "temperature": temperature, "weight": float(rng.uniform(0.1, 1)), "embedding": int(rng.choice([64, 128, 256])),
        "lr": float(10 ** rng.uniform(-4, -3)), "lr_heads": float(10 ** rng.uniform(-4, -3)),
        "timesteps": str(rng.choice(["10", "10+50", "5+20+100"])), "combine": "concatenate", "clusters": 5,
        "covariance": "full", "potts": 2.0, "flow_time": 16.8, "edge_hu": 60.0, "criterion": "hu_purity",
        "score": score, "scores": [score] * (3 if finished else 1), "scan_seconds": float(rng.uniform(5, 30)),
        "seconds": 60.0,
    }  # fmt: skip
    return row | more


def setting(number: int) -> dict[str, Any]:
    """A row of the features' search."""
    rng = np.random.default_rng(number)
    sets = ["5", "10", "50", "5+10", "10+50", "10+100", "5+10+50", "10+50+150", "20+50+100", "5+20", "50+100"]
    none = dict.fromkeys(("temperature", "weight", "embedding", "lr", "lr_heads"))
    timesteps = str(rng.choice(sets))
    found = {
        "stage": "features", "status": "finished", "rung": 1, "step": 0, "timesteps": timesteps,
        "combine": str(rng.choice(["average", "concatenate"])), "clusters": int(rng.choice([4, 5, 6, 8, 10])),
        "covariance": str(rng.choice(["full", "diag", "tied", "spherical"])), "potts": float(rng.choice([0, 1, 2, 4])),
        "flow_time": float(rng.choice([0, 2.8, 8.4, 16.8])), "edge_hu": float(rng.choice([30, 60, 120])),
        "scan_seconds": 6.0 * (timesteps.count("+") + 1),
    }  # fmt: skip
    return training(number) | none | found


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    trainings = [training(i) for i in range(16)]
    failed = training(
        16, status="failed", score=None, scores=None, rung=None, scan_seconds=None, reason=HOSTILE
    )
    settings = [setting(i) for i in range(40)]
    for some in (trainings, settings):
        max(some, key=lambda row: (row["rung"], row["score"]))["best"] = True
    return [*trainings, failed, *settings]


@pytest.fixture(scope="module")
def soup(rows: list[dict[str, Any]]) -> BeautifulSoup:
    page = sweep_page(rows, title="Sweep", about={"run": "abc", "note": "take care of this"})
    return BeautifulSoup(page, "html.parser")


def charts(soup: BeautifulSoup, label: str) -> list[Any]:
    found = [svg for svg in soup.find_all("svg") if label in svg["aria-label"]]
    assert found, label
    return found


def test_every_trial_with_a_score_is_a_line_and_a_dot(soup: BeautifulSoup) -> None:
    lines = [len(svg.select("polyline.path")) for svg in charts(soup, "parallel coordinates")]
    assert lines == [16, 40]
    (dots,) = charts(soup, "Criterion against temperature")
    assert len(dots.select("circle")) == 16
    assert len(dots.select("circle.stopped")) == sum(i % 3 != 0 for i in range(16))


def test_the_winners_stand_out_and_are_said_in_words(soup: BeautifulSoup, rows: list[dict[str, Any]]) -> None:
    for svg in charts(soup, "parallel coordinates"):
        (best,) = svg.select("polyline.best")
        assert svg.select("polyline")[-1] is best, "the winner lies on top"
    best = next(row for row in rows if row["best"])
    assert f"temperature {best['temperature']:.3g}" in soup.find(class_="lead").text
    assert "Take care of this." in soup.find(class_="warning").text


def test_lines_and_dots_stay_within_their_charts(soup: BeautifulSoup) -> None:
    for svg in soup.find_all("svg"):
        _, _, width, height = map(float, svg["viewbox"].split())
        for line in svg.find_all("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        for dot in svg.find_all("circle"):
            assert 0 < float(dot["cx"]) < width
            assert 0 < float(dot["cy"]) < height


def test_what_made_the_score_is_what_mattered() -> None:
    found = importance([training(i) for i in range(40)], ("temperature", "weight", "lr"))
    assert next(iter(found)) == "temperature"
    assert found["temperature"] > 0.6
    assert sum(found.values()) == pytest.approx(1)


def test_of_few_trials_nothing_is_said_to_matter() -> None:
    assert importance([training(0), training(1)], ("temperature",)) == {}
    assert importance([training(0)] * 9, ("temperature",)) == {}


@pytest.mark.timeout(60)  # it took ten minutes once
def test_importance_is_told_of_two_hundred_settings_with_a_hundred_sets_of_timesteps() -> None:
    rows = [
        setting(i)
        | {"timesteps": f"{i % 92 + 1}", "score": i % 5 / 10, "scores": [i % 5 / 10], "clusters": 4 + i % 5}
        for i in range(200)
    ]
    found = importance(rows, ("timesteps", "combine", "clusters"))
    assert sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "clusters", "the score is a function of nothing else"


def test_nothing_is_both_better_and_cheaper_than_the_front(rows: list[dict[str, Any]]) -> None:
    front = pareto(rows)
    assert len(front) > 1
    known = [row for row in rows if row["score"] is not None]
    for one in front:
        better = [
            row
            for row in known
            if row["score"] >= one["score"] and row["scan_seconds"] <= one["scan_seconds"]
        ]
        assert better == [one]
    assert max(known, key=lambda row: row["score"])["score"] == front[-1]["score"]


def test_a_reason_is_never_markup(soup: BeautifulSoup) -> None:
    assert not soup.find_all("script")
    assert HOSTILE in soup.text
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"(src|href)=", str(soup.main))


@pytest.fixture(scope="module")
def page(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    place = tmp_path_factory.mktemp("page") / "sweep.html"
    place.write_text(sweep_page(rows, title="Sweep", about={"run": "abc", "note": "take care"}))
    with browser() as opened:
        opened.open(place.as_uri())
        yield opened


def test_a_browser_shows_it_without_complaint(page: Page, tmp_path: Path) -> None:
    assert page.js("document.title") == "Sweep"
    assert page.complaints == []
    page.picture(tmp_path / "sweep.png")


@pytest.mark.parametrize("width", [1400, 700, 390])
def test_nothing_is_wider_than_the_window_or_written_over(page: Page, width: int) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    assert page.js("document.documentElement.scrollWidth <= window.innerWidth")
    overlap = """[...document.querySelectorAll('svg')].map((svg) => {
        const boxes = [...svg.querySelectorAll('text')].map((text) => text.getBoundingClientRect());
        return boxes.filter((a, i) => boxes.some((b, j) => j > i && a.left < b.right && b.left < a.right
            && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length; })"""
    assert not any(page.js(overlap))
