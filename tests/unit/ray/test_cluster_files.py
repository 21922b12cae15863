"""cluster.yaml and platform/onpremises.yaml: what Ray accepts, what jobs ask of it, and nothing open or secret."""

import copy
import os
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
import yaml
from jsonschema import ValidationError
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelectorOperator

from diffseglung_ray.cluster import Workers, case_workers, train_workers
from diffseglung_ray.config import load_config

ROOT = Path(__file__).parents[3]
FILES = ("cluster.yaml", "platform/onpremises.yaml")
ON_CPUS, ON_GPUS = (ROOT / "jobs" / f"on_{kind}_nodes.yaml" for kind in ("cpu", "gpu"))
IN = LabelSelectorOperator.LABEL_OPERATOR_IN


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def prepared(name: str) -> dict[str, Any]:
    """As Ray completes the file before it uses it."""
    return prepare_config(copy.deepcopy(read(name)))


@pytest.fixture(autouse=True)
def _only_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster before any job: a head that takes no work."""
    head = {"Alive": True, "Labels": {"pool": "head"}, "Resources": {"memory": 2.0**34}}
    monkeypatch.setattr(ray, "nodes", lambda: [head])


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepared(name))
    wrong = prepared(name) | {"idle_timeout": 5}
    with pytest.raises(ValidationError):
        validate_config(wrong)


@pytest.mark.parametrize("name", FILES)
def test_every_ray_asks_for_a_token_that_is_a_file_and_nothing_listens_to_the_outside(name: str) -> None:
    config, text = read(name), (ROOT / name).read_text()
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in config["file_mounts"].values()
    assert "RAY_AUTH_TOKEN=" not in text
    assert not re.search(r"0\.0\.0\.0|AKIA[A-Z0-9]{16}|[0-9a-f]{32}", text)
    (head,) = (command for command in starts if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    (server,) = (command for command in commands if "mlflow server" in command and "ray start" not in command)
    assert "--host 127.0.0.1" in server
    port = re.search(r"--port (\d+)", server)
    assert port
    assert f"MLFLOW_TRACKING_URI=http://127.0.0.1:{port[1]}" in head


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_mlflow_is_started_once_and_does_not_hold_the_shell_that_started_it(
    name: str, answers: bool, tmp_path: Path
) -> None:
    (command,) = (one for one in read(name)["head_start_ray_commands"] if "mlflow server" in one)
    for program, body in {
        "curl": f"exit {int(not answers)}",
        "mlflow": 'echo "$@" > ~/started; sleep 60',
    }.items():
        file = tmp_path / program
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    # SSH waits for whoever holds its output, as this does.
    shell = subprocess.Popen(
        ["bash", "-c", command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = shell.communicate(timeout=30)
        time.sleep(0.5)
        assert said == b""
        assert (tmp_path / "started").exists() is not answers
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)


@pytest.mark.parametrize("name", FILES)
def test_the_package_comes_from_this_folder_with_the_versions_that_were_tested(name: str) -> None:
    config = read(name)
    here = [local for local in config["file_mounts"].values() if not local.startswith("~")]
    assert {"constraints.txt", "pyproject.toml", "diffseglung", "platform"} <= set(here)
    assert [local for local in here if not (ROOT / local).exists()] == []
    (install,) = (command for command in config["setup_commands"] if "pip install" in command)
    assert "--constraint ~/diffseglung/constraints.txt" in install


def test_the_head_takes_no_work_and_every_machine_of_a_kind_is_what_the_file_says() -> None:
    types = read("cluster.yaml")["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    with mock_aws():
        client = boto3.client(
            "ec2", "us-east-1", aws_access_key_id="testing", aws_secret_access_key="testing"
        )
        names = [kind["node_config"]["InstanceType"] for kind in types.values()]
        listed = client.describe_instance_types(InstanceTypes=sorted(set(names)))["InstanceTypes"]
    offered = {each["InstanceType"]: each for each in listed}
    for kind in (types["cpu"], types["gpu"]):
        machine = offered[kind["node_config"]["InstanceType"]]
        gpus = sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", []))
        assert (kind["resources"]["CPU"], kind["resources"].get("GPU", 0)) == (
            machine["VCpuInfo"]["DefaultVCpus"],
            gpus,
        )
        objects = 4 * 2**30  # of worker_start_ray_commands; and a twentieth for the system
        assert kind["resources"]["memory"] + objects < 0.95 * machine["MemoryInfo"]["SizeInMiB"] * 2**20


@pytest.mark.parametrize(("file", "kind", "left"), [(ON_CPUS, "cpu", 0), (ON_GPUS, "gpu", 1)])
def test_what_a_job_asks_for_fills_one_kind_of_node(file: Path, kind: str, left: int) -> None:
    types, resources = read("cluster.yaml")["available_node_types"], load_config("paper", file).resources
    assert [name for name, one in types.items() if resources.nodes.items() <= one["labels"].items()] == [kind]
    workers, has = case_workers(resources), types[kind]["resources"]
    fits = int(min(has["CPU"] // workers.cpus, has["GPU"] // workers.gpus if workers.gpus else 99))
    assert fits >= 1
    assert has["CPU"] - fits * workers.cpus >= left, "the readers that feed a training need a CPU"
    assert (workers.memory_bytes or 0) * fits <= has["memory"]


def demand(workers: Workers) -> list[Any]:
    """What the autoscaler hears of workers that wait."""
    bundle = {"CPU": workers.cpus, "GPU": workers.gpus, "memory": workers.memory_bytes or 0}
    labels = [[(key, IN, [value]) for key, value in workers.nodes.items()]]
    return [
        ResourceRequestUtil.make({k: float(v) for k, v in bundle.items() if v}, label_selectors=labels)
        for _ in range(workers.count)
    ]


def launched(**waiting: Any) -> dict[str, int]:
    """The nodes that Ray's scheduler would start for it, by kind."""
    config = AutoscalingConfig(prepared("cluster.yaml"), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        **waiting,
    )
    reply = ResourceDemandScheduler().schedule(request)
    counts = Counter({one.instance_type: one.count for one in reply.to_launch})
    counts.pop("head", None)  # the scheduler starts from nothing, and one head belongs to it
    return dict(counts)


@pytest.mark.parametrize(("scans_at_once", "nodes"), [(16, 1), (17, 2), (320, 20), (10_000, 40)])
def test_a_preparation_brings_up_cpu_nodes_alone(scans_at_once: int, nodes: int) -> None:
    resources = load_config("paper", ON_CPUS, [f"resources.workers={scans_at_once}"]).resources
    waiting = [ResourceRequestByCount(request=one, count=1) for one in demand(case_workers(resources))]
    assert launched(resource_requests=waiting) == {"cpu": nodes}


@pytest.mark.parametrize("processes", [1, 8])
def test_a_training_asks_for_as_many_gpu_nodes_as_it_has_processes(processes: int) -> None:
    resources = load_config("paper", ON_GPUS, [f"resources.workers={processes}"]).resources
    gang = GangResourceRequest(requests=demand(train_workers(resources)))
    assert launched(gang_resource_requests=[gang]) == {"gpu": processes}
