"""Start a Ray for this job, or join the one that `RAY_ADDRESS` names; say what a worker gets."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import ray
import ray.data
from ray import PlacementGroupID
from ray._private import ray_constants
from ray.util.placement_group import PlacementGroup

from diffseglung_ray.config import ResourceConfig, WrongArgument

KNOWN_NOISE = b"ray/issues/53727"

# For the processes of a Ray that we start, unless the environment says otherwise.
OWN_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nobody takes away the machine under one's own Ray: one process less for each training to wait for.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Training's helpers are many and idle; Ray warns at four times this number of processes.
    "RAY_worker_maximum_startup_concurrency": "4",
    # Ray's workers are nice, so a thread beside anyone's other job hardly runs. Others that spin while they wait for
    # it keep the free cores from it; asleep, they leave it one: eleven times faster (benchmarks/training.py).
    "OMP_WAIT_POLICY": "PASSIVE",
}

# Hours may pass on one very large case; Ray Data's own limit of 30 minutes would call that a hang.
NO_PROGRESS_TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True)
class Workers:
    """How many workers, and what each gets; `memory_bytes` None where nothing is reserved.

    They run on nodes that carry the labels `nodes`, and on any where it is empty.
    """

    count: int
    cpus: int
    gpus: float
    memory_bytes: int | None
    nodes: dict[str, str] = field(default_factory=dict)

    @property
    def label_selector(self) -> dict[str, str] | None:
        """The labels as Ray asks for them."""
        return dict(self.nodes) or None


@contextmanager
def ray_cluster(resources: ResourceConfig) -> Iterator[None]:
    """Ray, for as long as the block lasts. A Ray that is already there is used and left running.

    Without `RAY_ADDRESS` a new one is started on this machine alone, so that no stranger's cluster is joined.
    """
    if ray.is_initialized():
        _quieten()
        yield
        return
    _drop_known_noise()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        _start(resources)
    try:
        _quieten()
        yield
    finally:
        ray.shutdown()


def keep_to_this_machine() -> None:
    """Let a Ray that is started from here listen on loopback alone; by itself it listens on every network.

    What it does where it knows no clusters (macOS, Windows) it does here too: there is no option for it.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # read from there when Ray was imported


def _start(resources: ResourceConfig) -> None:
    keep_to_this_machine()
    for name, value in OWN_RAY.items():
        os.environ.setdefault(name, value)
    # That the cluster asks for a token is as it should be, and no reason for a warning.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=resources.local_cpus or None,
        object_store_memory=resources.object_store_mb * 2**20 or None,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )


@cache
def _drop_known_noise() -> None:
    """Keep one line of Ray's compiled code from the terminal: it is written for every pool of actors.

    It says that an actor whose arguments are lost cannot be restarted; ours hold theirs until the end. Python's
    own stderr is left as it is, and everything else that is written there passes.
    """
    terminal = os.dup(2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)

    def forward() -> None:
        with os.fdopen(read, "rb") as lines:
            for line in lines:
                if KNOWN_NOISE not in line:
                    os.write(terminal, line)

    threading.Thread(target=forward, name="stderr", daemon=True).start()


def _quieten() -> None:
    """One progress line of our own says more to a user than a bar for each of Ray's operators."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    # Ray Data warns that its bars are off, and that a cohort smaller than the cluster does not fill it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)


def case_workers(resources: ResourceConfig, available: dict[str, float] | None = None) -> Workers:
    """Workers that take one case at a time: as many as asked for, or as many as the nodes that are up can hold.

    `available` are the resources of a cluster that is not there yet.
    """
    available = _available(resources) if available is None else available
    gpus = _gpus_per_worker(resources, available)
    room = int(available.get("CPU", 1) // resources.cpus_per_worker)
    if gpus:
        room = min(room, int(available.get("GPU", 0) / gpus + 1e-9))
    if room < 1 and not resources.workers:
        raise WrongArgument(
            f"no node has room for a worker with {resources.cpus_per_worker} CPUs and {gpus:g} GPUs: "
            "set resources.cpus_per_worker and resources.gpus_per_worker to what there is"
        )
    memory = int(resources.memory_gb_per_worker * 2**30) or None
    return Workers(resources.workers or room, resources.cpus_per_worker, gpus, memory, resources.nodes)


def train_workers(resources: ResourceConfig) -> Workers:
    """Training processes: as many as asked for; otherwise one for each GPU, or one with all CPUs of a node."""
    available = _available(resources)
    gpus = _gpus_per_worker(resources, available)
    count = resources.workers or (max(1, int(available.get("GPU", 0) // gpus)) if gpus else 1)
    alone = not resources.workers and not gpus
    cpus = max(resources.cpus_per_worker, _most_cpus(resources)) if alone else resources.cpus_per_worker
    return Workers(count, cpus, gpus, None, resources.nodes)


def _available(resources: ResourceConfig) -> dict[str, float]:
    """What the nodes that are up and may be worked on hold together. Errors: WrongArgument where there are none.

    An autoscaler starts nodes for workers that are asked for, and cannot be asked how many it could start.
    """
    nodes = _nodes(resources)
    if not nodes and not resources.workers:
        labels = ", ".join(f"{key}={value}" for key, value in resources.nodes.items())
        raise WrongArgument(
            f"no node with the label {labels} is up: say how many workers shall run, resources.workers=N, so that an "
            "autoscaling cluster starts nodes for them"
        )
    return dict(sum((Counter(node) for node in nodes), Counter()))


def _most_cpus(resources: ResourceConfig) -> int:
    return max((int(node.get("CPU", 1)) for node in _nodes(resources)), default=1)


def _nodes(resources: ResourceConfig) -> list[dict[str, float]]:
    """The resources of each node that is up and carries the labels."""
    wanted = resources.nodes.items()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and wanted <= node["Labels"].items()]


def _gpus_per_worker(resources: ResourceConfig, available: dict[str, float]) -> float:
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if available.get("GPU", 0) >= 1 else 0.0


def is_submitted() -> bool:
    """Whether `ray job submit` started this process: its working folder is then a copy that goes away."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def is_uri(place: str | Path) -> bool:
    """Whether a place is `scheme:/...` and not a path on this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(place)) is not None


def placements() -> list[str]:
    """The placement groups of this process's own Ray that hold resources; none where it has joined a cluster.

    What a dead controller of Ray Train had reserved is given back by a helper that asks Ray's dashboard, which only
    clusters have.
    """
    node = ray._private.worker._global_node
    if node is None or not node.head:
        return []
    table = ray.util.placement_group_table()
    return [name for name, group in table.items() if group["state"] != "REMOVED"]


def free_placements(names: Iterable[str]) -> None:
    """Give back what these placement groups hold."""
    for name in names:
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def refuse_fleeting(tracking: bool = True, **places: str | Path | None) -> None:
    """In a submitted job, refuse what would vanish with its working folder.

    `places` are the job's arguments by name. `tracking` also asks for an MLflow server.
    Errors: WrongArgument.
    """
    if not is_submitted():
        return
    for name, place in places.items():
        if place is not None and not is_uri(place) and not Path(place).is_absolute():
            raise WrongArgument(
                f"--{name} {place} is a relative path, and a submitted job works in a temporary copy of your "
                "folder that is deleted with it: give an absolute path on shared storage, or a URI"
            )
    if tracking:
        _refuse_fleeting_tracking(os.environ.get("MLFLOW_TRACKING_URI", ""))


def _refuse_fleeting_tracking(uri: str) -> None:
    advice = "put it under env_vars in jobs/runtime_env.yaml, or set it where the cluster is started"
    if not uri:
        raise WrongArgument(f"a submitted job needs MLFLOW_TRACKING_URI, or its runs would be lost: {advice}")
    relative_sqlite = re.match(r"sqlite:///[^/]", uri) is not None
    if relative_sqlite or (not is_uri(uri) and not Path(uri).is_absolute()):
        raise WrongArgument(f"MLFLOW_TRACKING_URI={uri} is a file in the job's temporary folder: {advice}")
