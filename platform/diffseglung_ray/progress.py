"""One line of progress: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0


def progress(items: Iterable[T], total: int, label: str, unit: str = "case") -> Iterator[T]:
    """The same items, counted on stderr as they pass."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit=unit)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if count == total or now - last >= SECONDS_BETWEEN_LINES:
            print(f"{label}: {count}/{total} {unit}s, {now - start:.0f} s", file=sys.stderr, flush=True)
            last = now
