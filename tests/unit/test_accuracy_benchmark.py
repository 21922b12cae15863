"""The benchmark of accuracy labels as the product does, keeps what it scored, and takes out what it says."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_model import SMALL

from diffseglung.config import recipe
from diffseglung.labels import Tissue
from diffseglung.segment import segment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import ways  # noqa: E402
from ceilings import ceiling_ways  # noqa: E402
from looked import Bench  # noqa: E402

COUNTS = {"train": 2, "validation": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), recipe("smoke"), COUNTS, SMALL)


@pytest.fixture(scope="module")
def lessons(bench: Bench) -> ways.Lessons:
    return ways.Lessons(bench, 0)


@pytest.fixture(scope="module")
def found(bench: Bench, lessons: ways.Lessons) -> dict[str, ways.Way]:
    return {way.title: way for way in (*ways.baseline_ways(), *ways.physics_ways(lessons))}


def labels_of(bench: Bench, way: ways.Way) -> np.ndarray:
    return way.make("validation")(bench.seen("validation", "phantom-0000"))


def test_a_scan_that_was_looked_at_once_is_labelled_as_the_product_does(bench, lessons, found) -> None:
    seen = bench.seen("validation", "phantom-0000")
    _, model = lessons.learned(bench.config)
    expected = segment(seen.volume, model).labels  # which does not look at the student's features either
    np.testing.assert_array_equal(labels_of(bench, found[ways.OURS]), expected)
    assert set(np.unique(expected)) > {0, 1}


def test_each_way_labels_the_lungs_in_its_own_way(bench, found) -> None:
    lungs = bench.seen("validation", "phantom-0000").anatomy.lungs
    labels = {title: labels_of(bench, way) for title, way in found.items()}
    for title, each in labels.items():
        assert ((each > 0) == lungs).all(), title
    assert not (labels["- enclosure"] == Tissue.CAVITY).any()
    different = {each.tobytes() for each in labels.values()}
    assert len(different) > len(labels) - 3  # a phantom without cavity leaves two pairs alike


def test_what_was_scored_is_not_done_again(bench, found) -> None:
    way = found["HU thresholds"]
    assert accuracy.scored(bench, "validation", way, kept_only=True) == []
    rows = accuracy.scored(bench, "validation", way)

    def never(_: str) -> ways.Labeller:
        raise AssertionError("it was made again")

    assert accuracy.scored(bench, "validation", replace(way, make=never)) == rows
    assert {row["protocol"] for row in rows} == {"volume", "slices"}
    with pytest.raises(AssertionError, match="made again"):
        accuracy.scored(bench, "validation", replace(way, make=never, seed=1))


def test_the_table_tells_what_each_part_earns(bench, found) -> None:
    wanted = ("HU thresholds + enclosure", ways.RULE, ways.OURS, ways.ALONE, "- enclosure")
    rows = [row for title in wanted for row in accuracy.scored(bench, "validation", found[title])]
    lines = accuracy.tables(rows).splitlines()
    assert sum(line.startswith(f"| {ways.OURS} |") for line in lines) == 3
    assert sum(line.startswith(f"| {ways.RULE} |") for line in lines) == 2  # the scores and the volumes
    for title in (ways.ALONE, "- enclosure"):
        (without,) = [line for line in lines if line.startswith(f"| {title} |")]
        assert len(without.split("|")) == 13


def test_a_student_is_named_by_its_contrast_and_seed() -> None:
    assert accuracy.given_students(["local-0=m", "undistilled-2=n"]) == {
        "local-0": Path("m"),
        "undistilled-2": Path("n"),
    }
    with pytest.raises(SystemExit, match="local or global or undistilled"):
        accuracy.given_students(["best=m"])


def test_told_the_truth_of_each_stage_the_score_rises(bench, lessons, found) -> None:
    seen = bench.seen("validation", "phantom-0000")
    told = {way.title.removeprefix(ways.LABELLED): way for way in ceiling_ways(lessons)}
    labels = {title: labels_of(bench, way) for title, way in told.items()} | {
        "ours": labels_of(bench, found[ways.OURS])
    }
    inside = seen.anatomy.lungs & (seen.truth > 0)
    right = {title: (each == seen.truth)[inside].mean() for title, each in labels.items()}
    assert right["truth, cut to our lungs"] == 1
    assert right["ours"] < right["true cells"] <= right["true cells and cavities"] < 1
