"""What does Ray cost preparation, and does its memory grow with the cohort?

The same four small phantoms, with their lungs given, under 8 and 80 names (or as `--cases` says; with `--full`
also 800): by a plain loop in one process, and by Ray with one and two workers. Each run is a process of its
own with an empty workspace. The start of Ray and of its workers is in the seconds of a run, and not in the
seconds of a further case: (time of the larger cohort - time of the smaller) / cases between.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from record import record

from diffseglung.phantom import PhantomConfig, write_cohort
from diffseglung_ray.cases import attempts_in
from diffseglung_ray.cluster import ray_cluster
from diffseglung_ray.cohort import find_cohort
from diffseglung_ray.config import RunConfig, load_config
from diffseglung_ray.preparation import CasePreparer, digest_of, prepare, prepared_settings
from diffseglung_ray.storage import Store

PHANTOM = PhantomConfig(size_vox=(24, 30, 30), spacing_mm=(4.5, 4.5, 4.5))
WAYS = {"plain loop": 0, "Ray, 1 worker": 1, "Ray, 2 workers": 2}
QUESTION = "What does Ray cost preparation, and does its memory grow with the cohort?"


def write_manifest(folder: Path, cases: int) -> Path:
    """A cohort of so many names for the four phantoms in `folder`."""
    images = sorted((folder / "images").iterdir())
    names = [images[i % len(images)].name for i in range(cases)]
    lines = [f"case-{i:04d},images/{name},truth/{name}" for i, name in enumerate(names)]
    manifest = folder / f"cohort-{cases}.csv"
    manifest.write_text("\n".join(["case_id,image,lungs", *lines]) + "\n")
    return manifest


def plain_loop(manifest: Path, place: Path, config: RunConfig) -> None:
    """What a worker does, case by case, in this process."""
    store = Store.at(place)
    with attempts_in(store) as attempts:
        worker = CasePreparer(store, config.method, digest_of(prepared_settings(config)), attempts, 1)
        for case in find_cohort(manifest):
            worker({name: [value] for name, value in case.row().items()})


class Watch(threading.Thread):
    """Peaks of resident memory, in MiB: this process, the largest worker, and what lies in the object store."""

    def __init__(self, uses_ray: bool) -> None:
        super().__init__(daemon=True)
        self.uses_ray, self.over = uses_ray, threading.Event()
        self.peaks = {"driver": 0.0, "worker": 0.0, "store": 0.0}

    def run(self) -> None:
        """Look twice a second."""
        while not self.over.wait(0.5):
            self.note("driver", resident_mib(os.getpid()))
            if self.uses_ray:
                for pid in pids_of_workers():
                    self.note("worker", resident_mib(pid))
                address = ray.get_runtime_context().gcs_address
                stats = get_memory_info_reply(get_state_from_address(address)).store_stats
                self.note("store", stats.object_store_bytes_used / 2**20)

    def note(self, what: str, mib: float) -> None:
        """Keep the largest."""
        self.peaks[what] = max(self.peaks[what], mib)


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")
    except OSError:
        return 0.0
    return int(fields[1].split()[0]) / 1024 if len(fields) > 1 else 0.0


def pids_of_workers() -> list[int]:
    """Actors of the pool on this machine."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = place.read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::") and b"CasePreparer" in command:
            found.append(int(place.parent.name))
    return found


def run_one(way: str, manifest: Path, place: Path) -> dict[str, float]:
    """One run in this process: its seconds and its peaks."""
    workers = WAYS[way]
    config = load_config("smoke", None, [f"resources.workers={workers}", "resources.object_store_mb=200"])

    def timed(work: Callable[[], None]) -> dict[str, float]:
        watch = Watch(uses_ray=workers > 0)
        watch.start()
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        watch.over.set()
        watch.join()
        return {"seconds": seconds, **watch.peaks}

    if not workers:
        return timed(lambda: plain_loop(manifest, place, config))
    with ray_cluster(config.resources):
        return timed(lambda: prepare(str(manifest), str(place), config))


def measure(folder: Path, sizes: list[int]) -> dict[tuple[str, int], dict[str, float]]:
    """Every way on every size, each in a process of its own, the ways in turn."""
    found = {}
    for cases in sizes:
        manifest = write_manifest(folder, cases)
        for number, way in enumerate(WAYS):
            place = folder / f"work-{cases}-{number}"
            command = [sys.executable, __file__, "--one", way, str(manifest), str(place)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way, cases] = json.loads(done.stdout.splitlines()[-1])
            print(f"{cases} cases, {way}: {found[way, cases]}", flush=True)
    return found


def table(found: dict[tuple[str, int], dict[str, float]], sizes: list[int]) -> str:
    """Seconds, and the peaks of memory."""
    further = {
        way: (found[way, sizes[-1]]["seconds"] - found[way, sizes[0]]["seconds"]) / (sizes[-1] - sizes[0])
        for way in WAYS
    }
    lines = ["| cases | way | s | driver, MiB | largest worker, MiB | object store, MiB |", "|---" * 6 + "|"]
    for cases in sizes:
        for way in WAYS:
            row = found[way, cases]
            memory = " | ".join(f"{row[key]:.0f}" if row[key] else "" for key in ("driver", "worker"))
            store = f"{row['store']:.2f}" if WAYS[way] else ""
            lines.append(f"| {cases} | {way} | {row['seconds']:.1f} | {memory} | {store} |")
    lines += ["", "| way | s a further case | against the plain loop |", "|---|---|---|"]
    plain = further["plain loop"]
    for way, seconds in further.items():
        lines.append(f"| {way} | {seconds:.3f} | {seconds / plain:.2f} |")
    load = os.getloadavg()[2]
    return "\n".join([*lines, "", f"Load of the machine in the last 15 minutes: {load:.1f}."])


def main() -> None:
    """Measure and record; with `--one`, a single run for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", type=int, default=[8, 80], help="sizes of the cohort, rising")
    parser.add_argument("--full", action="store_true", help="also 800 cases")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "MANIFEST", "PLACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, manifest, place = arguments.one
        with redirect_stdout(sys.stderr):
            found = run_one(way, Path(manifest), Path(place))
        print(json.dumps(found))
        return
    sizes = [*arguments.cases, 800] if arguments.full else arguments.cases
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(folder, 4, seed=1, config=PHANTOM)
        record(QUESTION, table(measure(Path(folder), sizes), sizes))


if __name__ == "__main__":
    main()
