"""The kinds of node of cluster.yaml on this machine: jobs bring up those that they need, and idle ones go away."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_cluster import RAY, ROOT, free_ports, wait_for
from made_jobs import is_of_the_outside
from made_nodes import LocalNodes
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]

# No more than this on a node that has several of each: two cases fill a node, and this machine is what they share.
HERE = {"cpu": {"CPU": 2, "memory": 2**33}, "gpu": {"memory": 2**33}}
IDLE_S = 6


def here(gcs: int) -> dict[str, Any]:
    """cluster.yaml with nodes that are processes on this machine: two of a kind at most, nothing to install."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    kinds = config["available_node_types"]
    kinds[FAKE_HEAD_NODE_TYPE] = kinds.pop(config["head_node_type"])
    for name, most in HERE.items():
        resources = {key: min(count, most.get(key, count)) for key, count in kinds[name]["resources"].items()}
        kinds[name] |= {"resources": resources | {"object_store_memory": 100 * 2**20}, "max_workers": 2}
    commands = [key for key in config if key.endswith("_commands")]
    provider = {"gcs_address": f"127.0.0.1:{gcs}", "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True}
    return (
        config
        | {key: [] for key in commands}
        | {"head_node_type": FAKE_HEAD_NODE_TYPE, "idle_timeout_minutes": IDLE_S / 60, "file_mounts": {}}
        | {"provider": provider | {"type": "external", "module": f"{LocalNodes.__module__}.LocalNodes"}}
    )


def environment() -> dict[str, str]:
    """What the head, its autoscaler and the driver are started with."""
    own = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
    return own | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` sets these three
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_FAKE_CLUSTER": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "RAY_prestart_worker_first_driver": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }


@contextmanager
def started(folder: Path) -> Iterator[dict[str, str]]:
    """A head whose autoscaler starts nodes here; the environment of its drivers."""
    gcs, agent, client = free_ports(3)
    file, log, env = folder / "cluster.yaml", folder / "head.log", environment()
    file.write_text(yaml.safe_dump(here(gcs)))
    ports = {"port": gcs, "dashboard-agent-listen-port": agent, "ray-client-server-port": client}
    places = {"node-ip-address": "127.0.0.1", "temp-dir": folder, "autoscaling-config": file}
    size = {"num-cpus": 0, "object-store-memory": 100 * 2**20, "include-dashboard": "false"}
    options = [f"--{name}={value}" for name, value in (ports | places | size).items()]
    command = [*RAY, "start", "--head", "--block", "--labels=pool=head", *options]
    with log.open("w") as said:
        head = subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)
    try:
        wait_for(gcs, head, log)
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        end_all_of(folder)


def end_all_of(folder: Path) -> None:
    """The nodes that the provider started are nobody's children now; each has the folder in its command."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in place.read_bytes() and int(place.parent.name) != os.getpid():
                os.kill(int(place.parent.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, dict[str, list[str]]]]:
    """What a preparation and then a training found, on one cluster."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        with started(Path(name)) as env:
            files = [str(ROOT / "jobs" / f"on_{kind}_nodes.yaml") for kind in ("cpu", "gpu")]
            command = [sys.executable, str(ROOT / "tests" / "made_demand.py"), *files, name]
            ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
        assert ended.returncode == 0, ended.stderr
        yield json.loads(ended.stdout.splitlines()[-1])


def test_a_preparation_runs_on_cpu_nodes_and_brings_up_no_other(told: dict) -> None:
    assert told["prepare"]["worked"] == ["cpu"]
    assert told["prepare"]["up"] == ["cpu"]


def test_a_training_runs_on_gpu_nodes_and_brings_up_no_other(told: dict) -> None:
    assert told["train"]["worked"] == ["gpu"]
    assert told["train"]["up"] == ["gpu"]


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_idle_nodes_go_away(told: dict, stage: str) -> None:
    assert told[stage]["left"] == []
