"""One case on a worker: whatever happens to it becomes a row with a reason, and the job goes on."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from diffseglung_ray.cluster import Workers
from diffseglung_ray.cohort import Case
from diffseglung_ray.config import UserError
from diffseglung_ray.credentials import without_credentials
from diffseglung_ray.metrics import counted_down
from diffseglung_ray.progress import progress
from diffseglung_ray.storage import CannotWrite, Store

Row = dict[str, Any]
# A worker that dies (killed for memory, or a crash in a decoder) is started anew by Ray, for ever. After so
# many deaths on the same case, the case is the reason.
MOST_DEATHS = 2
# So many cases in a row whose results could not be written, and the output is at fault: a full disk would fail
# all that are left, after the work of segmenting each.
MOST_UNWRITTEN = 3
UNWRITTEN = "its results could not be written"
GO_ON = "what is done is kept; mend that, and the same command goes on from here"
RUNS = ".runs"


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often this run has begun each case: what is left of an attempt that took its worker down."""

    store: Store
    run: str

    def guarded(self, case_id: str, work: Callable[[], Row]) -> Row:
        """The row that `work` gives, or a failed one that says why there is none."""
        began = time.perf_counter()
        name = f"{RUNS}/{self.run}/{hashlib.sha256(case_id.encode()).hexdigest()[:16]}"
        deaths = int(self.store.read(name) or 0)
        if deaths >= MOST_DEATHS:
            self.forget(name)
            return failed(
                case_id,
                f"the worker on this case died {deaths} times, most likely for want of memory: give each "
                "more with resources.memory_gb_per_worker, or run fewer with resources.workers",
            )
        try:
            self.store.write(name, str(deaths + 1))
            row = work()
        except CannotWrite as error:
            row = failed(case_id, f"{UNWRITTEN}: {error}")
        except Exception as error:
            row = failed(case_id, in_words(error))
        self.forget(name)
        return {"seconds": time.perf_counter() - began} | row

    def forget(self, name: str) -> None:
        """Remove the memory of an attempt, where that can be done."""
        with suppress(OSError):
            self.store.remove(name)


@contextmanager
def attempts_in(store: Store) -> Iterator[Attempts]:
    """A run's memory of its attempts, for as long as the block lasts."""
    attempts = Attempts(store, uuid.uuid4().hex)
    try:
        yield attempts
    finally:
        with suppress(OSError):  # a read-only output says so elsewhere
            store.remove(f"{RUNS}/{attempts.run}")
            if not store.names(RUNS):
                store.remove(RUNS)


def failed(case_id: str, reason: str) -> Row:
    """The row of a case that could not be done."""
    return {"case_id": case_id, "status": "failed", "reason": without_credentials(reason)}


def in_words(error: Exception) -> str:
    """One line for the table. An error that is not about the scan also says where in the program it arose."""
    said = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError) and said:
        return said
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "the memory of the worker does not hold this scan; run fewer at once with resources.workers"
    at = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(at.filename).name}:{at.lineno}"
    return f"an error in the program, not in the scan: {type(error).__name__}: {said} ({where})"


def map_cases(
    worker: type, arguments: tuple[Any, ...], cases: list[Case], workers: Workers, label: str
) -> Iterator[Row]:
    """The rows that actors of class `worker` give for the cases, as they are done, in any order.

    An actor takes one case at a time, as `only_case` reads it, and gives a table of one row. Only names travel
    through the plan: actors read the voxels themselves. Cases with a problem are failed rows at once.
    Errors: CannotWrite where the output takes no more results.
    """
    yield from (failed(case.case_id, case.problem) | {"image": case.image} for case in cases if case.problem)
    cases = [case for case in cases if not case.problem]
    if not cases:
        return
    # A pool of fixed size: on an autoscaling cluster a growing pool of GPU actors stays at one.
    pool = ActorPoolStrategy(
        size=min(workers.count, len(cases)), max_tasks_in_flight_per_actor=2, max_concurrent_calls_per_actor=1
    )
    rows = ray.data.from_items(
        [on_its_way(case) for case in cases], override_num_blocks=len(cases)
    ).map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        compute=pool,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
        memory=workers.memory_bytes,
        label_selector=workers.label_selector,
    )
    unwritten = 0
    for row in counted_down(progress(rows_of(rows), len(cases), label), len(cases), label):
        unwritten = unwritten + 1 if (row.get("reason") or "").startswith(UNWRITTEN) else 0
        if unwritten >= MOST_UNWRITTEN:
            raise CannotWrite(f"{row['reason'].removeprefix(f'{UNWRITTEN}: ')}; {GO_ON}")
        yield row


def rows_of(dataset: ray.data.Dataset) -> Iterator[Row]:
    """The rows of a dataset as they are made.

    `iter_rows` would send Ray's statistics, in which each block has its entry, off with a row every few seconds: with
    126,000 cases that takes longer than those seconds, and the driver does nothing else.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in ray.get(list(bundle.block_refs)):
            yield from block.to_pylist()


def on_its_way(case: Case) -> dict[str, str]:
    """A case as it travels, a table of its own: in one column, since each column is serialised apart."""
    return {"case": json.dumps(case.row())}


def only_case(batch: Mapping[str, Sequence[str]]) -> Row:
    """The single case of a batch, as `on_its_way` sent it."""
    (said,) = batch["case"]
    row: Row = json.loads(said)
    return row


def report_failures(rows: list[Row], max_failed: float, table: str, most: int = 10) -> None:
    """Say which cases failed, `most` of them. Errors: UserError where they are more than the share `max_failed`."""
    bad = sorted((row for row in rows if row["status"] == "failed"), key=lambda row: row["case_id"])
    for row in bad[:most]:
        print(f"failed: {row['case_id']}: {row['reason']}")
    if len(bad) > most:
        print(f"and {len(bad) - most} more: see {table}")
    if len(bad) > max_failed * len(rows):
        raise UserError(
            f"{len(bad)} of {len(rows)} cases failed, more than --max-failed {max_failed:g} allows; "
            f"the reasons are in {table}"
        )
