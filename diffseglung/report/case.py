"""A row of results as the page shows it, and where its pictures are."""

import re
from dataclasses import dataclass
from typing import Any

from diffseglung.labels import Tissue
from diffseglung.report.checks import Row, flags
from diffseglung.report.markup import Html, tag

STATES = {"failed": "Failed", "flagged": "Flagged", "skipped": "Skipped", "ok": "OK"}
"""In the order of the table."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row of results as the page shows it: its number on the page, its state and the remarks on it."""

    number: int
    row: Row
    state: str
    remarks: tuple[str, ...]

    @property
    def name(self) -> str:
        return text(self.row.get("case_id")) or "?"

    @property
    def words(self) -> list[str]:
        """Why it failed, or what is odd about it."""
        return [words for words in (text(self.row.get("reason")), *self.remarks) if words]


@dataclass(frozen=True, slots=True)
class Shown:
    """Where a case's pictures are: inside the page (`held`) or in a script beside it (`url`).

    `thumbnail` is the address of the small one, which holds the picture itself where all are inside.
    """

    thumbnail: str
    held: str | None
    url: str | None
    files: tuple[tuple[str, str], ...] = ()


def make_case(number: int, row: Row) -> Case:
    """Check a row and name its state; a status that is not known counts as failed."""
    remarks = tuple(flags(row))
    status = text(row.get("status"))
    state = "flagged" if status == "ok" and remarks else status if status in STATES else "failed"
    return Case(number, row, state, remarks)


def shown_order(case: Case) -> tuple[Any, ...]:
    """Failed, flagged, skipped, the rest; `scan-9` before `scan-10`."""
    parts = re.split(r"([0-9]+)", case.name)
    natural = [int(part) if i % 2 else part for i, part in enumerate(parts)]
    return list(STATES).index(case.state), -len(case.remarks), natural


def text(value: Any) -> str:
    """What a cell of a table says, without the NaN that pandas puts where nothing was written."""
    return "" if value is None or value != value else str(value).strip()


def badge(state: str) -> Html:
    return tag("span", STATES[state], class_=f"badge {state}")


def swatch(tissue: Tissue) -> Html:
    return tag("span", class_=f"swatch b{int(tissue)}", aria_hidden="true")
