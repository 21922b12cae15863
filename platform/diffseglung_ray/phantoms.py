"""A cohort of digital patients, a Ray task for each, with the truth beside the images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ray

from diffseglung.phantom import Row, write_case, write_manifest
from diffseglung_ray.cluster import ray_cluster, refuse_fleeting
from diffseglung_ray.config import ResourceConfig, WrongArgument
from diffseglung_ray.progress import progress


def make_cohort(out: str | Path, cases: int, seed: int, workers: int | None = None) -> list[Row]:
    """`out/images`, `out/truth` and, last of all, `out/manifest.csv`; returns the manifest's rows.

    workers: cases at a time as Ray tasks; None for as many as there are CPUs, 0 to draw them in this process
    without Ray. The files are the same either way. Errors: WrongArgument, before anything is started.
    """
    if cases < 1:
        raise WrongArgument(f"--cases {cases}: a cohort has at least one case")
    if seed < 0:
        raise WrongArgument(f"--seed {seed}: a seed is a whole number from 0")
    if workers is not None and workers < 0:
        raise WrongArgument(f"--workers {workers}: a count from 0, where 0 is this process alone")
    refuse_fleeting(tracking=False, out=out)
    folder = _folder(out)
    if workers == 0:
        drawn = (write_case(folder, seed, index) for index in range(cases))
        rows = list(progress(drawn, cases, "phantom"))
    else:
        with ray_cluster(ResourceConfig(local_cpus=min(workers or 0, cases))):
            rows = list(progress(_as_finished(folder, cases, seed, workers), cases, "phantom"))
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


def _as_finished(folder: Path, cases: int, seed: int, workers: int | None) -> Iterator[Row]:
    """Rows in the order in which the cases are done; never more than `workers` at a time."""
    task = ray.remote(num_cpus=1)(write_case)
    at_once = workers or int(ray.cluster_resources().get("CPU", 1))
    waiting = list(range(cases))
    running: list[ray.ObjectRef] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(task.remote(str(folder), seed, waiting.pop(0)))
        done, running = ray.wait(running)
        yield from ray.get(done)
