"""Reports on their way from the training processes to the driver.

A module of its own, and a light one: Ray imports it in a process that needs nothing of the training.
"""

Report = dict[str, float]


class Mailbox:
    """Where rank 0 leaves its reports and the driver finds them.

    They do not go by `ray.train.report`: Ray Train takes one report in two seconds, and lets training wait for that.
    """

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def put(self, report: Report) -> None:
        """Leave one."""
        self.reports.append(report)

    def take(self) -> list[Report]:
        """All that have come since last time, in order."""
        taken, self.reports = self.reports, []
        return taken
