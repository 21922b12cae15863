"""Can the posteriors be believed: are 80 in 100 voxels right that are called with 80 %, and is doubt where errors are?

The validation phantoms of `accuracy.py`, with what it keeps in `--place`: the prototypes alone, ours without fusion,
and ours. Truth is used for measuring alone; nothing is fitted to it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from looked import SPLITS, Bench
from record import record
from ways import OURS, Lessons, observed

from diffseglung.calibration import PARTS, Calibration, calibration_markdown, calibrations
from diffseglung.config import Config, recipe
from diffseglung.refine import OFF
from diffseglung.segment import decide
from diffseglung.volume import resample_labels

QUESTION = "Can the posteriors be believed, and is doubt where errors are?"
SHOWN = tuple(range(40, 101, 10))  # per cent of probability


def ways(config: Config) -> dict[str, tuple[Config, str]]:
    """What is asked: settings and mode."""
    unrefined = replace(config, refine=OFF)
    return {
        "prototypes alone": (config, "rule"),
        "ours, before fusion": (unrefined, "anchored"),
        OURS: (config, "anchored"),
    }


def curves(found: dict[str, dict[str, Calibration]]) -> str:
    """The reliability diagrams in numbers: share right of the voxels called with so much probability."""
    head = ["share right of voxels called with", "of", *(f"{low - 10}-{low} %" for low in SHOWN)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(SHOWN)]
    for way, parts in found.items():
        for part, one in parts.items():
            cells = []
            for low in SHOWN:
                bins = [i for i in range(len(one.voxels)) if low - 10 <= 100 * i / len(one.voxels) < low]
                voxels = one.voxels[bins].sum()
                cells.append(f"{100 * one.right[bins].sum() / voxels:.0f} %" if voxels else "")
            lines.append("| " + " | ".join([way, PARTS[part], *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Look where nobody looked yet, decide, count, and record the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/accuracy"), help="as of accuracy.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.place, recipe("demo"))
    lessons = Lessons(bench, 0)
    parts: dict[str, dict[str, list[Calibration]]] = {}
    for case_id in bench.cases("validation"):
        seen = bench.seen("validation", case_id)
        truth = resample_labels(seen.truth, seen.volume.grid, seen.scan.grid)
        for way, (config, mode) in ways(bench.config).items():
            found = decide(observed(seen), replace(lessons.learned(config)[1], config=config), mode)
            for part, one in calibrations(found.posteriors, truth).items():
                parts.setdefault(way, {}).setdefault(part, []).append(one)
        print(case_id, flush=True)
    total = {
        way: {part: Calibration.total(ones) for part, ones in each.items()} for way, each in parts.items()
    }
    made = (
        f"{bench.counts['validation']} validation phantoms (seed {SPLITS['validation'][1]}), mixture fitted on "
        f"{bench.counts['train']} others; voxels of 2 mm. Errors found by entropy: area under its curve."
    )
    record(QUESTION, f"{calibration_markdown(total)}\n\n{curves(total)}\n\n{made}")


if __name__ == "__main__":
    main()
