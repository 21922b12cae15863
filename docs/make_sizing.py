"""The sizing table of docs/runbook.md, from what benchmarks/cases.py measured: `python docs/make_sizing.py`.

Prices are assumptions of 2026-11-26, AWS, us-east-1, Linux: on demand as the price list has had them since 2023, spot
at two fifths of that. Look both up before you plan with them; the arithmetic stays.
"""

import math
import re
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.md"
SCAN = "148x512x512"  # a whole chest, 2 mm slices, DICOM: the dearest that was measured
CPUS = 16  # of a cpu node in cluster.yaml, m7i.4xlarge
ON_DEMAND, SPOT, HEAD = 0.8064, 0.32, 0.4032  # dollars an hour; the head is on demand
BUSY = 0.8  # of the time that CPUs are paid for: what Ray and the last cases of a job take is assumed, not measured
UP_H = 10 / 60  # until a node is installed and works
REQUESTS, REQUEST = (
    12,
    5e-6,
)  # to the bucket for a scan, and dollars for each: all taken as writes, the dearer kind
COHORTS = ((1_000, 2), (10_000, 10), (126_000, 40))


def cpu_seconds() -> dict[str, float]:
    """Processor time of one scan, by job."""
    row = re.search(rf"^\| {SCAN} \|(.*)\|$", RESULTS.read_text(), re.MULTILINE)
    assert row, f"{RESULTS} has no row for {SCAN}"
    _read, _prepare, _segment, _write, prepare, _mib, segment, _peak = (
        float(cell) for cell in row[1].split("|")
    )
    return {"prepare": prepare, "segment": segment}


def line(job: str, scans: int, nodes: int) -> str:
    """One row: CPU hours, hours on so many nodes, and dollars."""
    cpu_hours = scans * cpu_seconds()[job] / 3600
    hours = cpu_hours / (nodes * CPUS * BUSY)
    node_hours = nodes * (hours + UP_H)
    beside = HEAD * (hours + UP_H) + scans * REQUESTS * REQUEST
    spot, demand = (math.ceil(node_hours * price + beside) for price in (SPOT, ON_DEMAND))
    return f"| {job} | {scans:,} | {cpu_hours:,.0f} | {nodes} | {hours + UP_H:.1f} | {spot} | {demand} |"


def table() -> str:
    """The table in Markdown."""
    head = "| job | scans | CPU hours | nodes | hours | $ spot | $ on demand |"
    rows = [line(job, scans, nodes) for job in ("prepare", "segment") for scans, nodes in COHORTS]
    return "\n".join([head, "|---" * 7 + "|", *rows])


if __name__ == "__main__":
    print(table())
