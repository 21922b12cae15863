"""Which label-free way is right: Dice, HD95 and volumes of every way on unseen phantoms, and what each part earns.

24 training, 24 validation and 24 test phantoms, one in eight of them healthy, whose seeds no other script uses. Each
is looked at once and each student trained once (`--students` of them with local contrast, as many with the published
global one and without the teacher); all that is kept in `--place`, so that a run may be stopped, and a change of the
mixture or of what follows it costs its scores alone. Settings are chosen on the validation scans, which are scored
by default; `--test` scores the test scans: once, at the end. `--student local-0=MODEL` takes a trained model's.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import ways
from ceilings import ceiling_ways
from chain import Seen
from looked import LABELLED_BY, LOOKED_BY, SPLITS, VARIANTS, Bench, key_of, named, say, source
from record import record
from ways import OURS, RULE, Labeller, Lessons, Way, baseline_ways, physics_ways, student_ways

from diffseglung.config import digest, recipe
from diffseglung.evaluate import (
    MEAN,
    agreement_markdown,
    called_diseased,
    gain,
    over_seeds,
    score_case,
    score_slices,
    summarise,
)
from diffseglung.labels import TISSUES
from diffseglung.refine import lung_box

QUESTION = "Which label-free way is right, and what does each part of ours earn?"
SLICE_MM = 10.0  # one axial slice in so many is scored by itself
AGREED = ("HU thresholds + enclosure", RULE, OURS)  # whose volumes are shown

Row = dict[str, str | float | int]


def scored(bench: Bench, split: str, way: Way, *, kept_only: bool = False) -> list[Row]:
    """The rows of one way on every scan of a split; those that were kept are not made again.

    None at all where some are missing and only the kept ones are asked for.
    """
    found: list[Row] = []
    made_by = source(*LOOKED_BY, *LABELLED_BY, "evaluate.py"), Path(ways.__file__).read_text(encoding="utf-8")
    key = key_of(*made_by, digest(bench.config), bench.version, way.depends, str(way.seed))
    labeller: Labeller | None = None
    for case_id in bench.cases(split):
        path = bench.place / "scores" / named(split) / f"{case_id}-{key}.json"
        if not path.exists():
            if kept_only:
                return []
            labeller = labeller or way.make(split)
            seen = bench.seen(split, case_id)
            with bench.costs(f"labels, {split}"):
                labels = labeller(seen)
            with bench.costs(f"scores, {split}"):
                rows = rows_of(seen, labels, way)
            path.parent.mkdir(parents=True, exist_ok=True)
            own = path.with_suffix(f".{os.getpid()}.part")  # another process may score the same
            own.write_text(json.dumps(rows))
            own.replace(path)
            say(way.title, way.seed, case_id, round(time.process_time()))
        found += json.loads(path.read_text())
    return found


def rows_of(seen: Seen, labels: np.ndarray, way: Way) -> list[Row]:
    """Scores of the scan, and of one axial slice in 1 cm (`protocol`: volume or slices)."""
    box = lung_box((seen.truth > 0) | (labels > 0)) or (slice(None),) * 3
    truth, found, spacing_mm = seen.truth[box], labels[box], seen.volume.spacing_mm
    step = max(1, round(SLICE_MM / spacing_mm[0]))
    rows = score_case(seen.case_id, way.title, truth, found, spacing_mm)
    slices = score_slices(seen.case_id, way.title, truth, found, spacing_mm, range(0, len(truth), step))
    marks = {"seed": way.seed}
    return [row | marks | {"protocol": "volume"} for row in rows] + [
        row | marks | {"protocol": "slices"} for row in slices
    ]


# ---- tables


def tables(rows: list[Row]) -> str:
    """Scores of the ways, what each part earns, and how volumes agree."""
    volumes = over_seeds([row for row in rows if row["protocol"] == "volume"])
    slices = over_seeds([row for row in rows if row["protocol"] == "slices"])
    titles = list(dict.fromkeys(str(row["method"]) for row in rows))
    parts = [title for title in titles if title.startswith(("-", "+"))]
    main = [title for title in titles if title not in parts]
    return "\n\n".join(
        [
            scores_table(main, rows, volumes, slices),
            "What each part earns: ours with one thing taken out (-) or put in (+). Difference: mean Dice of the "
            "diseases beside ours, with the 95 % interval of a bootstrap over scans, in pairs.",
            parts_table([OURS, *parts], rows, volumes),
            "Volumes: mean error in ml and Bland-Altman's 95 % limits of agreement, over all scans.",
            agreement_markdown([row for row in volumes if row["method"] in AGREED]),
        ]
    )


def scores_table(titles: Sequence[str], rows: list[Row], volumes: list[Row], slices: list[Row]) -> str:
    """A line a way."""
    summary, by_slice = (
        {(r["method"], r["tissue"]): r for r in summarise(each)} for each in (volumes, slices)
    )
    healthy = {row["method"]: row for row in called_diseased(volumes)}
    head = [
        *("way", "mean of diseases [95 %]", "over seeds", "gain over the rule [95 %]"),
        *(tissue.title for tissue in TISSUES),
        *("HD95, mm", "slices", "healthy called diseased"),
    ]
    lines = [line(head), line(["---"] * len(head))]
    for title in titles:
        mean = summary[title, MEAN]
        lines.append(
            line(
                [
                    title,
                    interval(mean, "dice"),
                    spread(rows, title),
                    "" if title == RULE else interval(gain(volumes, title, RULE), "gain", "+.3f"),
                    *(number(summary[title, tissue.key]["dice"]) for tissue in TISSUES),
                    f"{mean['hd95_mm']:.1f}",
                    number(by_slice[title, MEAN]["dice"]),
                    f"{100 * float(healthy[title]['share']):.1f} %",
                ]
            )
        )
    return "\n".join(lines)


def parts_table(titles: Sequence[str], rows: list[Row], volumes: list[Row]) -> str:
    """A line a part that was taken out or put in."""
    summary = {(r["method"], r["tissue"]): r for r in summarise(volumes)}
    head = [
        "way",
        "mean of diseases",
        "over seeds",
        "difference [95 %]",
        *(t.title for t in TISSUES),
        "HD95, mm",
    ]
    lines = [line(head), line(["---"] * len(head))]
    for title in titles:
        mean = summary[title, MEAN]
        difference = "" if title == OURS else interval(gain(volumes, title, OURS), "gain", "+.3f")
        dices = [number(summary[title, tissue.key]["dice"]) for tissue in TISSUES]
        lines.append(
            line(
                [
                    title,
                    number(mean["dice"]),
                    spread(rows, title),
                    difference,
                    *dices,
                    f"{mean['hd95_mm']:.1f}",
                ]
            )
        )
    return "\n".join(lines)


def spread(rows: list[Row], title: str) -> str:
    """The standard deviation of the mean Dice over seeds; nothing of a single one."""
    mine = [row for row in rows if row["method"] == title and row["protocol"] == "volume"]
    means = []
    for seed in sorted({int(row["seed"]) for row in mine}):
        found = summarise([row for row in mine if row["seed"] == seed])
        means.append(float(next(row["dice"] for row in found if row["tissue"] == MEAN)))
    return f"± {np.std(means, ddof=1):.3f} ({len(means)})" if len(means) > 1 else "one"


def interval(row: Row, name: str, form: str = ".3f") -> str:
    """A number and its bounds."""
    low, high = (f"{float(row[f'{name}_{end}']):{form}}" for end in ("low", "high"))
    return f"{float(row[name]):{form}} [{low}, {high}]"


def number(value: object) -> str:
    """Two digits, or a dash for what is not there."""
    return f"{float(value):.2f}" if np.isfinite(float(value)) else "-"  # type: ignore[arg-type]


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


# ---- the run


def given_students(texts: Sequence[str]) -> dict[str, Path]:
    """`local-0=MODEL` as {name: folder}."""
    given = dict(text.partition("=")[::2] for text in texts)
    for name in given:
        contrast, _, seed = name.rpartition("-")
        if contrast not in VARIANTS or not seed.isdigit():
            raise SystemExit(
                f"--student {name}: name it {' or '.join(VARIANTS)}, a hyphen and a seed, as local-0"
            )
    return {name: Path(folder) for name, folder in given.items()}


def all_ways(bench: Bench, seeds: int, students: int, given: dict[str, Path]) -> tuple[list[Way], list[str]]:
    """Every way in the order of the tables, and the students that they use, in words.

    Students of the first `students` seeds are trained where they are neither given nor kept.
    """
    found, used = list(baseline_ways()), []
    for seed in range(seeds):
        lessons = Lessons(bench, seed)
        found += physics_ways(lessons)
        found += ceiling_ways(lessons) if seed == 0 else ()
        for contrast in VARIANTS:
            student = bench.student(contrast, seed, given.get(f"{contrast}-{seed}"), train=seed < students)
            if student:
                found += student_ways(lessons, student)
                origin = ", trained elsewhere" if student.name in given else ""
                used.append(f"{student.name} ({student.steps} steps{origin})")
    # What is taken out comes last: a run that is stopped has the ways themselves.
    return sorted(found, key=lambda way: way.title.startswith(("- ", ways.LABELLED))), used


def main() -> None:
    """Look, train, score what is not there yet, and record the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/accuracy"), help="what is kept between runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800, help="of a student's training")
    parser.add_argument(
        "--student", action="append", default=[], metavar="NAME=MODEL", help="e.g. local-0=model/"
    )
    parser.add_argument("--students", type=int, default=3, metavar="SEEDS", help="0: those that are there")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--test", action="store_true", help="score the test scans: once, at the end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = recipe("demo")
    bench = Bench(args.place, replace(config, train=replace(config.train, steps=args.steps)))
    split = "test" if args.test else "validation"
    wanted, used = all_ways(bench, args.seeds, args.students, given_students(args.student))
    rows = [row for way in wanted for row in scored(bench, split, way, kept_only=args.table)]
    made = (
        f"{bench.counts[split]} {split} phantoms (seed {SPLITS[split][1]}, {bench.healthy(split)} of them healthy), "
        f"{bench.counts['train']} to learn from (seed {SPLITS['train'][1]}); recipe demo, config "
        f"{digest(bench.config)[:12]}; {args.seeds} seeds; students: {', '.join(used) or 'none'}. Over seeds: standard "
        "deviation of the mean. Slices: each axial slice in 1 cm scored by itself, as the paper does. HD95: a tissue "
        f"that was missed counts the diagonal of the lungs. Processor minutes: {bench.costs}."
    )
    record(QUESTION, f"{tables(rows)}\n\n{made}", section="accuracy_test" if args.test else "")


if __name__ == "__main__":
    main()
