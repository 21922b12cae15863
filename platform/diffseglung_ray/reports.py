"""Reports on their way from the training processes to the driver.

A module of its own, and a light one: Ray imports it in two processes more, which need nothing of the training.
"""

from __future__ import annotations

from typing import Any

import ray.train

Report = dict[str, float]


class Mailbox:
    """Reports on their way from the controller to the driver."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def put(self, report: Report) -> None:
        """Leave one."""
        self.reports.append(report)

    def take(self) -> list[Report]:
        """All that have come since last time, in order."""
        taken, self.reports = self.reports, []
        return taken


class Relay(ray.train.UserCallback):
    """Lives in Ray Train's controller; passes rank 0's reports on to the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        """Called once all processes have reported."""
        self.mailbox.put.remote(metrics[0])
