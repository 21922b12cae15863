"""How many workers a job has, what each gets, and which nodes they may run on."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from diffseglung_ray import cluster
from diffseglung_ray.cluster import OWN_RAY, Workers, case_workers, ray_cluster, train_workers
from diffseglung_ray.config import ResourceConfig, WrongArgument

CPU_NODE = {"Alive": True, "Labels": {"pool": "cpu"}, "Resources": {"CPU": 16.0}}
GPU_NODE = {"Alive": True, "Labels": {"pool": "gpu"}, "Resources": {"CPU": 8.0, "GPU": 1.0}}
DEAD = {"Alive": False, "Labels": {"pool": "gpu"}, "Resources": {"CPU": 8.0, "GPU": 1.0}}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the cluster consists of; a test adds to it."""
    there: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "nodes", lambda: there)
    return there


def test_a_job_fills_the_nodes_that_carry_its_labels_and_no_others(nodes: list) -> None:
    nodes += [CPU_NODE, CPU_NODE, GPU_NODE, DEAD]
    on_cpus = case_workers(ResourceConfig(nodes={"pool": "cpu"}, cpus_per_worker=2))
    assert (on_cpus.count, on_cpus.gpus, on_cpus.label_selector) == (16, 0.0, {"pool": "cpu"})
    on_gpus = case_workers(ResourceConfig(nodes={"pool": "gpu"}))
    assert (on_gpus.count, on_gpus.gpus, on_gpus.label_selector) == (1, 1.0, {"pool": "gpu"})
    assert train_workers(ResourceConfig(nodes={"pool": "cpu"})).cpus == 16


def test_without_labels_every_node_counts_and_ray_is_asked_for_none(nodes: list) -> None:
    nodes += [CPU_NODE, GPU_NODE]
    anywhere = case_workers(ResourceConfig(gpus_per_worker=0))
    assert (anywhere.count, anywhere.label_selector) == (24, None)


@pytest.mark.parametrize("workers", [case_workers, train_workers])
def test_for_nodes_that_are_not_up_yet_the_job_has_to_say_how_many_workers(nodes: list, workers: Any) -> None:
    nodes += [CPU_NODE, DEAD]
    with pytest.raises(WrongArgument, match="label pool=gpu is up: say how many") as refusal:
        workers(ResourceConfig(nodes={"pool": "gpu"}))
    assert "\n" not in str(refusal.value)
    asked = workers(ResourceConfig(nodes={"pool": "gpu"}, workers=4, gpus_per_worker=1, cpus_per_worker=6))
    assert (asked.count, asked.cpus, asked.gpus) == (4, 6, 1)


def test_a_trial_of_a_sweep_gets_a_workers_share_on_the_same_nodes() -> None:
    from diffseglung_ray.tuning import trial_resources

    trial = trial_resources(Workers(2, 6, 1.0, None, {"pool": "gpu"}))
    assert trial.bundles == [{"CPU": 6, "GPU": 1}]
    assert trial._bound.kwargs["bundle_label_selector"] == [{"pool": "gpu"}]
    assert "bundle_label_selector" not in trial_resources(Workers(2, 1, 0.0, None))._bound.kwargs


@pytest.mark.parametrize(("asked", "got"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_our_workers_sleep_while_they_wait_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, got: str
) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": asked} if asked else {})
    seen: list[str | None] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by another test
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("OMP_WAIT_POLICY")))
    for owner, name in ((ray, "shutdown"), (cluster, "_drop_known_noise"), (cluster, "keep_to_this_machine")):
        monkeypatch.setattr(owner, name, lambda: None)
    with ray_cluster(ResourceConfig()):
        pass
    assert seen == [got]


def test_on_a_cluster_they_sleep_too() -> None:
    submitted = yaml.safe_load((Path(__file__).parents[3] / "jobs/runtime_env.yaml").read_text())
    assert submitted["env_vars"]["OMP_WAIT_POLICY"] == OWN_RAY["OMP_WAIT_POLICY"]
