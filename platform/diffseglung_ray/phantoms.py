"""A cohort of digital patients, or of lesions in real scans, a Ray task for each; the truth lies beside the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import ray

from diffseglung.phantom import Row, write_case, write_inserted, write_manifest
from diffseglung_ray.cluster import ray_cluster, refuse_fleeting
from diffseglung_ray.config import ResourceConfig, WrongArgument
from diffseglung_ray.progress import progress

Draw = Callable[[int], Row]


def make_cohort(
    out: str | Path, cases: int, seed: int, workers: int | None = None, into: list[str] | None = None
) -> list[Row]:
    """`out/images`, `out/truth` and, last of all, `out/manifest.csv`; returns the manifest's rows.

    into: healthy scans to draw the lesions into, in turns, instead of digital patients.
    workers: cases at a time as Ray tasks; None for as many as there are CPUs, 0 to draw them in this process
    without Ray. The files are the same either way. Errors: WrongArgument, before anything is started.
    """
    if cases < 1:
        raise WrongArgument(f"--cases {cases}: a cohort has at least one case")
    if seed < 0:
        raise WrongArgument(f"--seed {seed}: a seed is a whole number from 0")
    if workers is not None and workers < 0:
        raise WrongArgument(f"--workers {workers}: a count from 0, where 0 is this process alone")
    scans = into or []
    refuse_fleeting(tracking=False, out=out, **{f"into {n}": scan for n, scan in enumerate(scans)})
    missing = [scan for scan in scans if not Path(scan).exists()]
    if missing:
        raise WrongArgument(f"--into {missing[0]}: there is no scan")
    folder = _folder(out)
    draw: Draw = partial(write_case, str(folder), seed)
    if scans:
        draw = partial(write_inserted, str(folder), [str(Path(scan).absolute()) for scan in scans], seed)
    if workers == 0:
        rows = list(progress(map(draw, range(cases)), cases, "phantom"))
    else:
        with ray_cluster(ResourceConfig(local_cpus=min(workers or 0, cases))):
            rows = list(progress(_as_finished(draw, cases, workers), cases, "phantom"))
    rows.sort(key=lambda row: row["case_id"])
    write_manifest(folder, rows)
    return rows


def _folder(out: str | Path) -> Path:
    folder = Path(out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongArgument(f"--out {out} cannot be made a folder: {error.strerror or error}") from error
    return folder


def _as_finished(draw: Draw, cases: int, workers: int | None) -> Iterator[Row]:
    """Rows in the order in which the cases are done; never more than `workers` at a time."""
    task = ray.remote(num_cpus=1)(_drawn)
    at_once = workers or int(ray.cluster_resources().get("CPU", 1))
    waiting = list(range(cases))
    running: list[ray.ObjectRef] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(task.remote(draw, waiting.pop(0)))
        done, running = ray.wait(running)
        yield from ray.get(done)


def _drawn(draw: Draw, index: int) -> Row:
    return draw(index)
