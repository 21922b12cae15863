"""The kinds of node of cluster.yaml on this machine: jobs bring up those that they need, and idle ones go away."""

import json
import os
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

pytestmark = pytest.mark.timeout(600)

# No more than this on a node that has several of each: two cases fill a node, and this machine is what they share.
HERE = {"cpu": {"CPU": 2, "memory": 2**33}, "gpu": {"memory": 2**33}}
IDLE_S = 6


def local_kinds() -> dict[str, Any]:
    """Labels and resources of the nodes in cluster.yaml; two of a kind at most."""
    kinds = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    head = kinds.pop("head") | {"node_config": {}, "max_workers": 0}
    local: dict[str, Any] = {FAKE_HEAD_NODE_TYPE: head}
    for name, kind in kinds.items():
        resources = {key: min(count, HERE[name].get(key, count)) for key, count in kind["resources"].items()}
        small = {"object_store_memory": 100 * 2**20}
        local[name] = kind | {"resources": resources | small, "max_workers": 2}
    return local


@contextmanager
def started(folder: Path) -> Iterator[dict[str, str]]:
    """A head with Ray's provider of nodes that are processes here; the environment of its jobs."""
    gcs, dashboard, agent, client = free_ports(4)
    config = {
        "cluster_name": "here",
        "max_workers": 4,
        "upscaling_speed": 4,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": f"{LocalNodes.__module__}.{LocalNodes.__qualname__}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{gcs}",
            "launch_multiple": True,
        },
        "auth": {"ssh_user": "nobody"},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": local_kinds(),
        **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{
            key: []
            for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        },
        "file_mounts": {},
        "cluster_synced_files": [],
        "docker": {},
    }
    file = folder / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config))
    env = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 32,
        "RAY_FAKE_CLUSTER": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_prestart_worker_first_driver": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports["ray-client-server-port"] = client
    options = [f"--{name}={value}" for name, value in ports.items()]
    options += ["--node-ip-address=127.0.0.1", f"--autoscaling-config={file}", f"--temp-dir={folder}"]
    options += ["--num-cpus=0", "--labels=pool=head", f"--object-store-memory={100 * 2**20}"]
    log = folder / "head.log"
    with log.open("w") as said:
        head = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *options],
            env=env,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
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
