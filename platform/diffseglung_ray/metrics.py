"""What a cluster's Prometheus sees of our work, through Ray's own metrics, and what its log collectors read of it.

Numbers carry the work (prepare, train, segment) and never a case. A case's end is also one line of JSON on its worker's
stderr, which Ray keeps among the node's logs: the case_id, and no path or reason, which may hold a patient's name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import torch
from ray.util.metrics import Counter, Gauge, Histogram

T = TypeVar("T")

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


def case_ended(work: str, row: Mapping[str, Any]) -> None:
    """Count a case's row, its seconds, also those of its `stages`, and its `patches`; say so in the worker's log."""
    status, seconds = row["status"], float(row.get("seconds") or 0.0)
    _cases().inc(1, {"work": work, "status": status})
    _case_seconds().observe(seconds, {"work": work})
    for stage, spent in {"case": seconds, **row.get("stages", {})}.items():
        _stage_seconds().inc(spent, {"work": work, "stage": stage})
    patches_seen(work, row.get("patches") or 0)
    say("case", work=work, case_id=row["case_id"], status=status, seconds=round(seconds, 3))


def patches_seen(work: str, count: int) -> None:
    """Count patches cut or learnt from, and what the GPU of this process holds (0 without one)."""
    if count:
        _patches().inc(count, {"work": work})
    held = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    _gpu_memory().set(held, {"work": work})


def counted_down(items: Iterable[T], total: int, work: str) -> Iterator[T]:
    """The same items, while the number still to come is shown."""
    _waiting().set(total, {"work": work})
    try:
        for done, item in enumerate(items, start=1):
            _waiting().set(total - done, {"work": work})
            yield item
    finally:
        _waiting().set(0, {"work": work})


def say(event: str, **facts: str | float) -> None:
    """One line of JSON for whoever collects this node's logs."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
    print(json.dumps(line), file=sys.stderr, flush=True)


@cache
def _cases() -> Counter:
    return Counter("diffseglung_cases", "Cases that have come to an end, by status.", ("work", "status"))


@cache
def _patches() -> Counter:
    return Counter("diffseglung_patches", "Patches cut from scans or learnt from.", ("work",))


@cache
def _case_seconds() -> Histogram:
    # For quantiles alone: Ray hands on the middle of each bucket, so that the sum is not the sum.
    return Histogram(
        "diffseglung_case_seconds", "Seconds that a case took on its worker.", SECONDS, ("work",)
    )


@cache
def _stage_seconds() -> Counter:
    text = "Seconds that cases spent in a stage; stage `case` is the whole of them."
    return Counter("diffseglung_stage_seconds", text, ("work", "stage"))


@cache
def _waiting() -> Gauge:
    return Gauge("diffseglung_cases_waiting", "Cases that have not come to an end yet.", ("work",))


@cache
def _gpu_memory() -> Gauge:
    text = "Most memory that a worker's tensors took of its GPU; 0 without one."
    return Gauge("diffseglung_gpu_memory_bytes", text, ("work",))
