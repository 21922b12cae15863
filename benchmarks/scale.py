"""Does one driver carry 10,000 and 126,000 cases, and what does it then take?

The plan of the segmentation job itself (`map_cases`, its attempts on disk, its table of results) runs on a local Ray
whose workers sleep where they would segment: each case for the seconds of one of ten real scans, drawn by the case's
name, divided by `--scale`. What is real: the plan, the actors, the driver's memory, the object store, the files of the
attempts. What is not: the work, and a network between machines. Scheduling is not sped up with the sleep, so the share
of the time that workers sleep is a lower bound of what a cluster would be used. With `--scale 0` they do not sleep at
all: the rate is then the driver's own, and how many workers it can feed follows from it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from preparation import Watch
from record import record

from diffseglung.patches import seed_of
from diffseglung.schemas import RESULTS
from diffseglung_ray.cases import Attempts, attempts_in, map_cases, only_case
from diffseglung_ray.cluster import Workers, ray_cluster
from diffseglung_ray.cohort import find_cohort
from diffseglung_ray.config import ResourceConfig
from diffseglung_ray.segmentation import write_results
from diffseglung_ray.storage import Store

QUESTION = "Does one driver carry 10,000 and 126,000 cases, and what does it then take?"
# The column `seconds` of ten real scans (docs/log.md, 2026-11-26): read, segmented and written by two workers of one
# CPU each with the demo's model, 148 to 300 slices and one crop.
REAL_SCANS_S = (39.9, 56.0, 26.1, 15.8, 1.7, 27.8, 30.6, 37.1, 33.9, 18.8)
PUBLISHED_HOURS, PUBLISHED_CASES = 9, 126_000


class Sleeper:
    """An actor that takes a case as the segmenter does, and sleeps instead of segmenting it."""

    def __init__(self, attempts: Attempts, seconds: Sequence[float], scale: float) -> None:
        self.attempts, self.seconds, self.scale = attempts, seconds, scale

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """One case in, its row of the results table out."""
        case = only_case(batch)
        row = self.attempts.guarded(case["case_id"], lambda: self.sleep(case["case_id"]))
        return pa.Table.from_pylist([row], schema=RESULTS)

    def sleep(self, case_id: str) -> dict[str, Any]:
        """A row as full as a real one."""
        if self.scale:
            time.sleep(drawn(case_id, self.seconds) / self.scale)
        row: dict[str, Any] = {f.name: "" if pa.types.is_string(f.type) else 1.0 for f in RESULTS}
        digests = {"config_sha256": "0" * 64, "input_sha256": "0" * 64, "model_uri": "models:/diffseglung/1"}
        return row | digests | {"case_id": case_id, "status": "ok"}


def drawn(case_id: str, seconds: Sequence[float]) -> float:
    """The seconds of a case, the same in every run."""
    return seconds[seed_of(0, case_id) % len(seconds)]


def write_manifest(folder: Path, cases: int) -> Path:
    """So many names, of scans that nobody opens."""
    manifest = folder / "cohort.csv"
    lines = (f"patient-{i:06d},s3://lab/scans/patient-{i:06d}/ct.nii.gz" for i in range(cases))
    manifest.write_text("\n".join(["case_id,image", *lines]) + "\n")
    return manifest


def run_one(cases: int, workers: int, scale: float, seconds: Sequence[float]) -> dict[str, float]:
    """One cohort in this process and a Ray of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store, began = Store.at(Path(folder) / "out"), time.perf_counter()
        cohort = find_cohort(write_manifest(Path(folder), cases))
        read = time.perf_counter() - began
        with ray_cluster(ResourceConfig(local_cpus=workers, object_store_mb=500)):
            watch = Watch(uses_ray=True)
            watch.start()
            began = time.perf_counter()
            rows, first = [], 0.0
            with attempts_in(store) as attempts:
                arguments = (attempts, seconds, scale)
                for row in map_cases(Sleeper, arguments, cohort, Workers(workers, 1, 0.0, None), "scale"):
                    first = first or time.perf_counter() - began
                    rows.append(row)
            span = time.perf_counter() - began
            write_results(store, rows)
            watch.over.set()
            watch.join()
        assert len(rows) == cases
        assert all(row["status"] == "ok" for row in rows)
    slept = sum(drawn(case.case_id, seconds) for case in cohort) / scale if scale else 0.0
    return {
        "cases": cases,
        "workers": workers,
        "scale": scale,
        "read": read,
        "first": first,
        "span": span,
        "rate": (cases - 1) / (span - first),
        "used": slept / (workers * span),
        "used_after_start": slept / (workers * (span - first)),
        "driver": watch.peaks["driver"],
        "store": watch.peaks["store"],
    }


def measured(path: Path | None) -> tuple[float, ...]:
    """The seconds of the cases of a results.parquet, or those of the ten real scans."""
    if path is None:
        return REAL_SCANS_S
    rows = pq.read_table(path, columns=["status", "seconds"]).to_pylist()
    return tuple(row["seconds"] for row in rows if row["status"] == "ok")


def table(runs: list[dict[str, float]], seconds: Sequence[float]) -> str:
    """A row a run, and what follows for a cluster."""
    mean = float(np.mean(seconds))
    lines = [
        "| cases | workers | times faster | makespan, s | so for real, h | workers used | once started | cases/s "
        "| driver, MiB | object store, MiB |",
        "|---" * 10 + "|",
    ]
    for run in runs:
        sleeps = run["scale"] > 0
        hours = f"{run['span'] * run['scale'] / 3600:.0f}" if sleeps else ""
        used = [f"{100 * run[key]:.0f} %" if sleeps else "" for key in ("used", "used_after_start")]
        cells = (
            f"{run['cases']:.0f}", f"{run['workers']:.0f}", f"{run['scale']:g}" if sleeps else "no sleep",
            f"{run['span']:.0f}", hours, *used, f"{run['rate']:.0f}", f"{run['driver']:.0f}", f"{run['store']:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    rate = max(run["rate"] for run in runs)
    needed = PUBLISHED_CASES * mean / (PUBLISHED_HOURS * 3600)
    load = os.getloadavg()[2]
    return "\n".join(
        [
            *lines,
            "",
            f"A case takes {mean:.1f} s in the mean, on one CPU ({len(seconds)} cases, {min(seconds)} to "
            f"{max(seconds)} s). "
            f"At the best rate seen, {rate:.0f} cases a second, one driver feeds {rate * mean:.0f} workers. "
            f"{PUBLISHED_CASES} cases in {PUBLISHED_HOURS} hours are {PUBLISHED_CASES / PUBLISHED_HOURS / 3600:.1f} "
            f"a second: {needed:.0f} workers, were all of them always at work.",
            f"Load of the machine in the last 15 minutes: {load:.1f}.",
        ]
    )


def main() -> None:
    """Measure and record; with `--one`, a single run for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", type=int, default=[10_000, 126_000], help="sizes of the cohort")
    parser.add_argument("--workers", type=int, default=8, help="processes that sleep (8)")
    parser.add_argument(
        "--scale", type=float, default=1000, help="times faster than real; 0 does not sleep (1000)"
    )
    parser.add_argument("--seconds", type=Path, help="a results.parquet to draw the seconds of a case from")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds = measured(arguments.seconds)
    if arguments.one:
        with redirect_stdout(sys.stderr):
            found = run_one(arguments.cases[0], arguments.workers, arguments.scale, seconds)
        print(json.dumps(found))
        return
    runs = []
    for cases, scale in [(arguments.cases[0], 0.0), *((cases, arguments.scale) for cases in arguments.cases)]:
        own = ["--one", f"--cases={cases}", f"--scale={scale}", f"--workers={arguments.workers}"]
        own += [f"--seconds={arguments.seconds}"] if arguments.seconds else []
        done = subprocess.run([sys.executable, __file__, *own], check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(runs[-1], flush=True)
    record(QUESTION, table(runs, seconds))


if __name__ == "__main__":
    main()
