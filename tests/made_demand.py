"""A driver that asks an autoscaling cluster for what jobs ask for, with work that is nothing, and tells what came.

`python tests/made_demand.py PREPARE.yaml TRAIN.yaml FOLDER`: the settings of both jobs, and a folder that every node
reaches. The last line of its output is JSON: a stage to the kinds of node that were up and that worked.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from diffseglung_ray.cases import map_cases
from diffseglung_ray.cluster import case_workers, ray_cluster, train_workers
from diffseglung_ray.cohort import Case
from diffseglung_ray.config import RunConfig, load_config
from diffseglung_ray.training import _scaling

CASES, CASE_S = (
    4,
    6.0,
)  # long enough for Ray Data's own autoscaler, which looks each ten seconds, to want more
GONE_S = 90


def kinds_up() -> set[str]:
    """The kinds of worker nodes that are alive."""
    return {node["Labels"].get("pool", "") for node in ray.nodes() if node["Alive"]} - {"head"}


def kind_here() -> str:
    """The kind of the node that this process runs on."""
    here = ray.get_runtime_context().get_node_id()
    return next(node["Labels"]["pool"] for node in ray.nodes() if node["NodeID"] == here)


class Sleeper:
    """Takes a case as the actors of a preparation do."""

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        time.sleep(CASE_S)
        return pa.table({"kind": [kind_here()]})


def prepare(config: RunConfig) -> list[str]:
    """Where the cases of a preparation ran."""
    cases = [Case(case_id=f"case-{i}", image=f"{i}.nii.gz") for i in range(CASES)]
    return [row["kind"] for row in map_cases(Sleeper, (), cases, case_workers(config.resources), "prepare")]


def train(config: RunConfig, folder: Path) -> list[str]:
    """Where the processes of a training ran: Ray Train's own placement, with no network to train."""

    def process(told: dict[str, str]) -> None:
        rank = ray.train.get_context().get_world_rank()
        Path(told["folder"], f"rank-{rank}").write_text(kind_here())

    DataParallelTrainer(
        process,
        train_loop_config={"folder": str(folder)},
        scaling_config=_scaling(config, train_workers(config.resources), held=True),
        run_config=ray.train.RunConfig(name="none", storage_path=str(folder / "checkpoints")),
    ).fit()
    return [path.read_text() for path in sorted(folder.glob("rank-*"))]


def watched(work: Any) -> dict[str, list[str]]:
    """What `work` returns, and every kind of node that was up from its start until none was left."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.update(kinds_up())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    worked = work()
    until = time.monotonic() + GONE_S
    while kinds_up() and time.monotonic() < until:
        time.sleep(0.5)
    over.set()
    watcher.join()
    return {"worked": sorted(set(worked)), "up": sorted(seen), "left": sorted(kinds_up())}


def main() -> None:
    """Both demands, one after the other."""
    prepare_file, train_file, folder = map(Path, sys.argv[1:])
    first = load_config("smoke", prepare_file, ["resources.workers=2"])
    second = load_config("smoke", train_file, ["resources.workers=1"])
    with ray_cluster(first.resources):
        found = {"prepare": watched(lambda: prepare(first))}
        found["train"] = watched(lambda: train(second, folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
