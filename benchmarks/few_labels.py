"""What do a few labelled scans add to the label-free mixture, by how many there are?

The phantoms of `accuracy.py` and what it keeps in `--place`: `--draws` times so many of the training scans are drawn,
their cells shown to `Mixture.taught` as `jobs/train.py --labels` does, and the validation scans labelled. No student is
asked. A picture goes to `--picture`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from chain import dice, diseases
from looked import SPLITS, Bench, say
from record import record
from ways import Lessons, labelled, observed

from diffseglung.config import recipe
from diffseglung.labels import DISEASES
from diffseglung.segment import decide

QUESTION = "What do a few labelled scans add to the label-free mixture?"
COUNTS = (0, 1, 2, 4, 8)


def drawn(count: int, draw: int, of: int) -> list[int]:
    """Which training scans are labelled; with more of them, the same and others."""
    return sorted(np.random.default_rng(draw).permutation(of)[:count].tolist())


def mean_dice(bench: Bench, label) -> list[float]:
    """Of each disease, over the validation scans that have it."""
    rows = []
    for case_id in bench.cases("validation"):
        seen = bench.seen("validation", case_id)
        rows.append(dice(seen.truth, label(seen)))
    return diseases(rows).tolist()


def measured(bench: Bench, lessons: Lessons, count: int, draw: int) -> list[float]:
    """The Dice of a draw, kept."""
    scans = drawn(count, draw, bench.counts["train"])
    path = (
        bench.place
        / "few_labels"
        / f"{bench.version}-{bench.config.mixture.correction_ridge:g}-{count}-{draw}.json"
    )
    if not path.exists():
        model = lessons.learned(bench.config)[1]
        label = labelled(lessons, scans) if count else lambda seen: decide(observed(seen), model).labels
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mean_dice(bench, label)))
    found = json.loads(path.read_text())
    say(count, scans, round(float(np.mean(found)), 3))
    return found


def draw_picture(path: Path, found: dict[int, np.ndarray]) -> None:
    """Mean Dice of the diseases by the number of labelled scans: a dot a draw, a line through their means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(found))
    axes.plot(places, [rows.mean() for rows in found.values()], color="#1b5e8f")
    for place, rows in zip(places, found.values(), strict=True):
        axes.plot([place] * len(rows), rows.mean(axis=1), "o", color="#1b5e8f", alpha=0.6)
    axes.set_xticks(list(places), [str(count) for count in found])
    axes.set(xlabel="labelled scans", ylabel="mean Dice of the diseases")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Label, score, record the table and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/accuracy"), help="as of accuracy.py")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.place, recipe("demo"))
    lessons = Lessons(bench, 0)
    found = {
        count: np.array([measured(bench, lessons, count, n) for n in range(args.draws if count else 1)])
        for count in COUNTS
    }
    head = ["labelled scans", "mean of diseases", "least and most", *(t.title for t in DISEASES)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for count, rows in found.items():
        means = rows.mean(axis=1)
        each = [f"{value:.2f}" for value in rows.mean(axis=0)]
        spread = f"{means.min():.3f} to {means.max():.3f}" if len(means) > 1 else ""
        lines.append("| " + " | ".join([str(count), f"{means.mean():.3f}", spread, *each]) + " |")
    made = (
        f"{bench.counts['validation']} validation phantoms (seed {SPLITS['validation'][1]}); {args.draws} draws from "
        f"{bench.counts['train']} training phantoms (seed {SPLITS['train'][1]}). 0: label-free, the default."
    )
    if args.picture:
        draw_picture(args.picture, found)
    record(QUESTION, "\n".join([*lines, "", made]))


if __name__ == "__main__":
    main()
