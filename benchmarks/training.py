"""What does Ray Train cost training, beside torchrun with the same loop on the same patches?

Both train the recipe's network on the same prepared phantoms (or `--workspace`), one process with all cores of this
machine and with one less, which leaves a core to Ray's own processes, in turns; the first steps are not counted,
reports and checkpoints are. `held`: each process reads its share once. `fed`: Ray Data streams it, as it does for
workspaces that do not fit a process. Then training on all cores again beside somebody's busy process: with threads that
sleep while they wait, as `cluster.OWN_RAY` has it, and with threads that spin first, as OpenMP has it by itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import mlflow
import numpy as np
from record import record
from train_plain import FIRST

from diffseglung.phantom import write_cohort
from diffseglung_ray import training
from diffseglung_ray.cluster import ray_cluster, train_workers
from diffseglung_ray.config import RunConfig, load_config
from diffseglung_ray.preparation import prepare
from diffseglung_ray.tracking import start_run
from diffseglung_ray.workspace import fit_standardiser, open_workspace

QUESTION = "What does Ray Train cost training, beside torchrun with the same loop on the same patches?"
HERE = Path(__file__).parent
Numbers = dict[str, float]
# What GNU's OpenMP does where no policy is set; it goes before one that is.
SPINNING = {"GOMP_SPINCOUNT": "300000"}
BUSY = [sys.executable, "-c", "while True: pass"]
FEW = 20  # steps beside it: spinning takes seconds for each


def plain(place: str, words: list[str]) -> Numbers:
    """The loop under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += [str(HERE / "train_plain.py"), "--workspace", place, *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def on_ray(place: str, config: RunConfig, held: bool) -> Numbers:
    """The same loop under Ray Train, as jobs/train.py runs it."""
    before = training.MEMORY_BYTES
    training.MEMORY_BYTES = before if held else 0
    workspace = open_workspace(place, config.method)
    standardiser = fit_standardiser(workspace, config.method)
    with start_run(config.method, config.tracking, name="benchmark", manifest=workspace.manifest) as run:
        training.distil(config, workspace, standardiser, train_workers(config.resources), run)
    training.MEMORY_BYTES = before
    client = mlflow.MlflowClient()
    rate, wait = (
        np.array([m.value for m in client.get_metric_history(run.id, key) if m.step > FIRST])
        for key in ("patches_per_s", "data_wait_share")
    )
    seconds = 1 / rate
    return {"patches_per_s": 1 / seconds.mean(), "data_wait_share": (wait * seconds).sum() / seconds.sum()}


@contextmanager
def beside_another(environment: dict[str, str]) -> Iterator[None]:
    """A process that takes one core for as long as the block lasts, and what Ray's processes are told."""
    other = subprocess.Popen(BUSY)
    os.environ |= environment
    try:
        yield
    finally:
        other.kill()
        other.wait()
        for name in environment:
            del os.environ[name]


def main() -> None:
    """Measure in turns and record the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", help="what jobs/prepare.py left; phantoms are prepared without it")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    changes = [f"train.steps={args.steps}", "train.warmup=[1, 2]"]
    words = ["--recipe", args.recipe, *(word for change in changes for word in ("--set", change))]
    cores = os.cpu_count() or 1
    found: dict[tuple[str, int], list[Numbers]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        place = args.workspace or prepared(Path(scratch), load_config(args.recipe, None, changes))
        for _, threads in product(range(args.rounds), range(cores, max(0, cores - 2), -1)):
            own = ["resources.workers=1", f"resources.cpus_per_worker={threads}"]
            config = load_config(args.recipe, None, [*changes, *own])
            found["torchrun", threads].append(plain(place, [*words, "--threads", str(threads)]))
            with ray_cluster(config.resources):
                found["Ray Train, held", threads].append(on_ray(place, config, held=True))
                if threads == cores:
                    found["Ray Train, fed", threads].append(on_ray(place, config, held=False))
        own = [f"train.steps={FIRST + FEW}", "resources.workers=1", f"resources.cpus_per_worker={cores}"]
        few = load_config(args.recipe, None, [*changes, *own])
        for way, environment in (("asleep", {}), ("spinning", SPINNING)):
            with beside_another(environment), ray_cluster(few.resources):
                found[f"Ray Train, held, beside a busy process, {way}", cores].append(
                    on_ray(place, few, held=True)
                )
    lines = ["| way | threads | patches/s | times torchrun | waiting for data |", "|---|---|---|---|---|"]
    for (way, threads), rounds in found.items():
        rate, wait = (np.median([one[key] for one in rounds]) for key in ("patches_per_s", "data_wait_share"))
        base = np.median([one["patches_per_s"] for one in found["torchrun", threads]])
        lines.append(f"| {way} | {threads} | {rate:.1f} | {rate / base:.2f} | {100 * wait:.1f} % |")
    peak = max(one["peak_mib"] for one in found["torchrun", cores])
    lines += [
        "",
        f"{args.steps} steps of recipe {args.recipe} after the first {FIRST}; median of {args.rounds} rounds. "
        f"Beside a busy process: {FEW} steps, once.",
    ]
    lines += [f"The process under torchrun took {peak:.0f} MiB at its peak."]
    record(QUESTION, "\n".join(lines))


def prepared(scratch: Path, config: RunConfig) -> str:
    """A workspace of four phantoms."""
    write_cohort(scratch / "cohort", 4, seed=1)
    prepare(str(scratch / "cohort" / "manifest.csv"), str(scratch / "work"), config)
    return str(scratch / "work")


if __name__ == "__main__":
    main()
