"""What does Ray cost preparation, and does its memory grow with the cohort?

Cost: phantoms whose lungs have to be found, one to two seconds each, by a plain loop in one process and by Ray
with one and two workers. What a further case costs is counted from when a quarter of the cases is done: the start
of Ray and of its workers, and each worker's first case, are over then. Processor time counts the driver and
everything that it started; it does not depend on how busy the machine is, wall time does.

Memory: small phantoms with their lungs given, the same four files under 8, 80 and 800 names, by two workers.

Each run is a process of its own with an empty workspace.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from record import record

from diffseglung.phantom import PhantomConfig, write_cohort
from diffseglung_ray.cases import attempts_in, on_its_way
from diffseglung_ray.cluster import ray_cluster
from diffseglung_ray.cohort import find_cohort
from diffseglung_ray.config import RunConfig, load_config
from diffseglung_ray.preparation import CasePreparer, digest_of, prepare, prepared_settings
from diffseglung_ray.processes import use_threads
from diffseglung_ray.storage import Store

REAL = PhantomConfig(size_vox=(60, 80, 80), spacing_mm=(4.0, 4.0, 4.0))
TINY = PhantomConfig(size_vox=(24, 30, 30), spacing_mm=(4.5, 4.5, 4.5))
WAYS = {"plain loop": 0, "Ray, 1 worker": 1, "Ray, 2 workers": 2}
TICK = os.sysconf("SC_CLK_TCK")
QUESTION = "What does Ray cost preparation, and does its memory grow with the cohort?"

Found = dict[str, float]


def write_manifest(folder: Path, cases: int, lungs: bool) -> Path:
    """A cohort of so many names for the phantoms in `folder`, with or without their lungs."""
    images = sorted((folder / "images").iterdir())
    lines = ["case_id,image,lungs" if lungs else "case_id,image"]
    for i in range(cases):
        name = images[i % len(images)].name
        lines.append(f"case-{i:04d},images/{name}" + (f",truth/{name}" if lungs else ""))
    manifest = folder / f"cohort-{cases}.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def plain_loop(manifest: Path, place: Path, config: RunConfig) -> None:
    """What a worker does, case by case, in this process, on one thread as a worker has it."""
    use_threads(1)
    store = Store.at(place)
    with attempts_in(store) as attempts:
        worker = CasePreparer(store, config.method, digest_of(prepared_settings(config)), attempts, 1)
        for case in find_cohort(manifest):
            worker({name: [value] for name, value in on_its_way(case).items()})


class Watch(threading.Thread):
    """Looks twice a second at this process and all that it started: peaks of memory in MiB, processor seconds.

    `history` has at every look the cases done (files in `patches`), the processor seconds and the time until then.
    """

    def __init__(self, uses_ray: bool, patches: Path | None = None) -> None:
        super().__init__(daemon=True)
        self.uses_ray, self.patches, self.over = uses_ray, patches, threading.Event()
        self.history: list[tuple[int, float, float]] = []
        self.peaks = {"driver": 0.0, "worker": 0.0, "workers": 0.0, "store": 0.0}
        self.cpu: dict[int, float] = {}

    def run(self) -> None:
        """Until it is over, and once more then."""
        while not self.over.wait(0.5):
            self.look()
        self.look()

    def look(self) -> None:
        """Keep the largest, and each process's latest."""
        processes = list(family(os.getpid()))
        workers = [resident_mib(pid) for pid in processes if is_worker(pid)]
        self.note("driver", resident_mib(os.getpid()))
        self.note("worker", max(workers, default=0.0))
        self.note("workers", sum(workers))
        self.cpu |= {pid: cpu for pid in processes if (cpu := cpu_seconds(pid))}
        done = len(list(self.patches.glob("part-*.parquet"))) if self.patches else 0
        self.history.append((done, sum(self.cpu.values()), time.perf_counter()))
        if self.uses_ray:
            address = ray.get_runtime_context().gcs_address
            stats = get_memory_info_reply(get_state_from_address(address)).store_stats
            self.note("store", stats.object_store_bytes_used / 2**20)

    def further(self) -> Found:
        """What a case costs once a quarter is done."""
        last = self.history[-1]
        first = next(row for row in self.history if row[0] >= last[0] / 4)
        cases = max(1, last[0] - first[0])
        return {"cpu_a_case": (last[1] - first[1]) / cases, "seconds_a_case": (last[2] - first[2]) / cases}

    def note(self, what: str, mib: float) -> None:
        """Keep the largest."""
        self.peaks[what] = max(self.peaks[what], mib)


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; none where the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family(root: int) -> Iterable[int]:
    """A process and everything that it started, and that they started."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        fields = stat_of(int(place.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(place.name))
    open_ends = [root]
    while open_ends:
        pid = open_ends.pop()
        yield pid
        open_ends += children.get(pid, [])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 where it has ended."""
    fields = stat_of(pid)
    return (int(fields[11]) + int(fields[12])) / TICK if fields else 0.0


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")
    except OSError:
        return 0.0
    return int(fields[1].split()[0]) / 1024 if len(fields) > 1 else 0.0


def is_worker(pid: int) -> bool:
    """Whether a process is an actor of the pool."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return command.startswith(b"ray::") and b"CasePreparer" in command


def run_one(way: str, manifest: Path, place: Path) -> Found:
    """One run in this process: its seconds and its peaks."""
    workers = WAYS[way]
    config = load_config("smoke", None, [f"resources.workers={workers}", "resources.object_store_mb=200"])

    def timed(work: Callable[[], None]) -> Found:
        watch = Watch(workers > 0, place / "patches")
        watch.start()
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        watch.over.set()
        watch.join()
        return {"seconds": seconds, "cpu": watch.history[-1][1], **watch.further(), **watch.peaks}

    if not workers:
        return timed(lambda: plain_loop(manifest, place, config))
    with ray_cluster(config.resources):
        return timed(lambda: prepare(str(manifest), str(place), config))


def measured(way: str, manifest: Path) -> Found:
    """`run_one` in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--one", way, str(manifest), place]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    print(f"{manifest.stem}, {way}: {found}", flush=True)
    return found


def cost(cases: int) -> list[str]:
    """What a further case costs by each way, in processor and wall time."""
    lines = [
        "| way | CPU s a further case | against the plain loop | wall s a further case |",
        "|---" * 4 + "|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(folder, 4, seed=1, config=REAL)
        manifest = write_manifest(Path(folder), cases, lungs=False)
        found = {way: measured(way, manifest) for way in WAYS}
    for way, row in found.items():
        share = row["cpu_a_case"] / found["plain loop"]["cpu_a_case"]
        lines.append(f"| {way} | {row['cpu_a_case']:.2f} | {share:.2f} | {row['seconds_a_case']:.2f} |")
    return [*lines, "", f"The last three quarters of {cases} cases whose lungs are found."]


def memory(sizes: list[int]) -> list[str]:
    """Peaks of memory for cohorts of each size."""
    lines = [
        "| cases | driver, MiB | largest worker, MiB | both workers, MiB | object store, MiB | CPU s | wall s |",
        "|---" * 7 + "|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(folder, 4, seed=1, config=TINY)
        for cases in sizes:
            row = measured("Ray, 2 workers", write_manifest(Path(folder), cases, lungs=True))
            peaks = " | ".join(f"{row[key]:.0f}" for key in ("driver", "worker", "workers"))
            lines.append(
                f"| {cases} | {peaks} | {row['store']:.2f} | {row['cpu']:.0f} | {row['seconds']:.0f} |"
            )
    return lines


def main() -> None:
    """Measure and record; with `--one`, a single run for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", type=int, default=[8, 80, 800], help="cohorts to see memory grow"
    )
    parser.add_argument("--cost", type=int, default=24, help="cases to see the cost of one")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "MANIFEST", "PLACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, manifest, place = arguments.one
        with redirect_stdout(sys.stderr):
            found = run_one(way, Path(manifest), Path(place))
        print(json.dumps(found))
        return
    lines = [*cost(arguments.cost), "", *memory(arguments.cases)]
    load = os.getloadavg()[2]
    record(QUESTION, "\n".join([*lines, "", f"Load of the machine in the last 15 minutes: {load:.1f}."]))


if __name__ == "__main__":
    main()
