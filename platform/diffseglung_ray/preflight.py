"""What a segmentation of a cohort would do, told from headers alone: nothing is started, nothing is written."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from diffseglung.gate import VolumeConfig
from diffseglung.volume import Grid, read_grid
from diffseglung_ray.cases import failed, in_words, report_failures
from diffseglung_ray.cluster import Workers, case_workers, ray_cluster
from diffseglung_ray.cohort import Case, local_copy
from diffseglung_ray.config import ResourceConfig
from diffseglung_ray.progress import progress
from diffseglung_ray.segmentation import Configure, PlacedModel, prepared_run, read_result
from diffseglung_ray.storage import Store

READERS = 16  # at once: what a header costs on a share is mostly waiting
HEADER_BYTES = 2**18  # of each remote file; headers are at the front, and few are longer
# A worker of one CPU, recipe `demo`: 15 s for 150x180x180 voxels, 34 s and 2.2 GiB for 600x512x512 on a core of
# AMD EPYC (Zen 1). The memory here leaves half a GiB for Ray.
SECONDS, SECONDS_PER_MVOX = 14.0, 0.13
GIB, GIB_PER_MVOX = 1.0, 0.012


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to be expected of one case: its grid, or why there is none; whether results of it are there."""

    case: Case
    grid: Grid | None = None
    reason: str = ""
    seconds_before: float | None = None

    @property
    def mvox(self) -> float:
        """Millions of voxels; 0 where nothing will be read."""
        z, y, x = self.grid.shape if self.grid else (0, 0, 0)
        return z * y * x / 1e6


def dry_run(cohort: str, model: str, out: str, configure: Configure, *, max_failed: float = 0.1) -> None:
    """Print what `segment_cohort` would do with these arguments, what not and why, and how long it would take.

    Errors: WrongArgument; UserError where more than `max_failed`, a share, would fail already.
    """
    cases, placed, config, store = prepared_run(cohort, model, out, configure)
    began = time.monotonic()
    look = partial(outlook, config=placed.config.volume, model=placed, store=store)
    with ThreadPoolExecutor(READERS) as pool:
        found = list(progress(pool.map(look, cases), len(cases), "read headers"))
    print(f"headers of {len(cases)} cases read in {time.monotonic() - began:.0f} s; nothing was started")
    good = [one for one in found if one.grid]
    done = [one for one in good if one.seconds_before is not None]
    will = [one for one in good if one.seconds_before is None]
    print(f"will run: {len(will)} cases, {sum(one.mvox for one in will):,.0f} million voxels")
    print(f"done before, skipped if the files are still the same: {len(done)} cases")
    workers, memory_gib = available_workers(config.resources)
    for line in (*in_time(will, done, workers), *in_memory(good, workers, memory_gib)):
        print(line)
    bad = [failed(one.case.case_id, one.reason) for one in found if one.grid is None]
    print(f"will not run: {len(bad)} cases")
    rows = [*bad, *({"status": "ok"} for _ in good)]
    report_failures(rows, max_failed, "the lines above", most=len(bad))


def outlook(case: Case, config: VolumeConfig, model: PlacedModel, store: Store) -> Outlook:
    """What the headers of one case say. Whatever happens, it is said in words."""
    if case.problem:
        return Outlook(case, reason=case.problem)
    try:
        with local_copy(case.image, HEADER_BYTES) as place:
            grid = read_grid(place, series=case.series or None, config=config)
        if case.lungs:
            with local_copy(case.lungs, HEADER_BYTES) as place:
                read_grid(place, config=config)
    except Exception as error:
        return Outlook(case, reason=in_words(error))
    before = read_result(store, case.case_id)
    same = before is not None and all(before[key] == value for key, value in model.origin.items())
    return Outlook(case, grid, seconds_before=before["seconds"] if before and same else None)


def available_workers(resources: ResourceConfig) -> tuple[Workers, float]:
    """The workers that a run would have, and the memory in GiB that they share where they share a machine.

    A cluster that `RAY_ADDRESS` names is asked; otherwise it is this machine.
    """
    if os.environ.get("RAY_ADDRESS"):
        with ray_cluster(resources):
            return case_workers(resources), 0.0
    here: dict[str, float] = {
        "CPU": resources.local_cpus or os.cpu_count() or 1,
        "GPU": torch.cuda.device_count(),
    }
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return case_workers(resources, here), memory_gib


def in_time(will: list[Outlook], done: list[Outlook], workers: Workers) -> Iterator[str]:
    """How long the run would take: by what cases of this run took before, or by what was measured elsewhere."""
    if not will:
        return
    pace = [(one.seconds_before or 0) / seconds_of(one) for one in done if one.seconds_before]
    factor = statistics.median(pace) if pace else 1.0
    each = [factor * seconds_of(one) for one in will]
    count = min(workers.count, len(will))
    source = f"by what {len(pace)} cases took here before" if pace else "by what one slow core needs"
    yield (
        f"time: about {duration(max(sum(each) / count, max(each)))} with {count} workers of {workers.cpus} CPUs "
        f"and {workers.gpus:g} GPUs, {min(each):.0f} to {max(each):.0f} s a case ({source})"
    )


def seconds_of(one: Outlook) -> float:
    """What a case was measured to take, by its size."""
    return SECONDS + SECONDS_PER_MVOX * one.mvox


def in_memory(good: list[Outlook], workers: Workers, memory_gib: float) -> Iterator[str]:
    """The memory that the largest case takes, and whether the machine has it for as many as run at once."""
    if not good:
        return
    largest = max(good, key=lambda one: one.mvox)
    gib = GIB + GIB_PER_MVOX * largest.mvox
    yield f"memory: the largest case, {largest.case.case_id}, takes its worker about {gib:.1f} GiB"
    held = gib * min(workers.count, len(good))
    if memory_gib and held > memory_gib:
        fits = max(1, int(memory_gib // gib))
        yield (
            f"memory: {workers.count} such at once would need {held:.0f} GiB, this machine has {memory_gib:.0f}: set "
            f"resources.workers={fits}, or resources.memory_gb_per_worker={gib:.0f}"
        )


def duration(seconds: float) -> str:
    """`90 s`, `25 min`, `13.5 hours`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
