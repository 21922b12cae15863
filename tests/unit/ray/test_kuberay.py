"""platform/kuberay as kubectl renders it: what KubeRay accepts, the nodes of cluster.yaml, a retry that is safe."""

import copy
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_v1 import RAY_CLUSTER, RAY_JOB, as_bytes
from made_jobs import call_job
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from diffseglung_ray.config import load_config

ROOT = Path(__file__).parents[3]
HERE = ROOT / "platform" / "kuberay"
JOBS = {"prepare", "train", "tune", "segment", "evaluate", "generate"}
IN_IMAGE = "/home/ray/diffseglung/"


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl", path=Path(sys.executable).parent) or "kubectl"
    done = subprocess.run([kubectl, "kustomize", HERE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def cluster(manifests: list) -> dict[str, Any]:
    (found,) = (one for one in manifests if one["kind"] == "RayCluster")
    return found


@pytest.fixture(scope="module")
def jobs(manifests: list) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == "RayJob"}


def test_kuberay_accepts_the_cluster_and_every_job(cluster: dict, jobs: dict) -> None:
    jsonschema.validate(cluster, RAY_CLUSTER)
    assert set(jobs) == JOBS
    for job in jobs.values():
        jsonschema.validate(job, RAY_JOB)
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("rayVersion", "2.51.0"),
        ("authOptions", {"mode": "basic"}),
        ("gcsFaultTolerance", {"redisAddress": "redis:6379"}),
        ("workerGroupSpecs", [{"groupName": "cpu"}]),
    ],
)
def test_what_kuberay_would_refuse_is_refused_here(cluster: dict, where: str, wrong: Any) -> None:
    broken = copy.deepcopy(cluster)
    broken["spec"][where] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, RAY_CLUSTER)


def test_the_cluster_asks_for_a_token_has_the_ray_that_is_installed_and_outlives_its_head(
    cluster: dict,
) -> None:
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == version("ray")
    assert spec["autoscalerOptions"]["version"] == "v2", "version 1 knows nothing of labels"
    assert "secretKeyRef" in spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in spec["headGroupSpec"]


def test_a_job_is_tried_again_on_a_new_cluster_which_goes_away(jobs: dict) -> None:
    for job in jobs.values():
        spec = job["spec"]
        assert (spec["backoffLimit"], spec["submissionMode"]) == (2, "K8sJobMode")
        assert spec["shutdownAfterJobFinishes"]


def test_pods_are_the_nodes_of_cluster_yaml(cluster: dict) -> None:
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    here = _derive_autoscaling_config_from_ray_cr(cluster)[
        "available_node_types"
    ]  # as Ray reads it in the head
    assert here["headgroup"]["resources"]["CPU"] == types["head"]["resources"]["CPU"] == 0
    for name in ("cpu", "gpu"):
        pod, node = here[name], types[name]
        assert {"pool": pod["labels"]["pool"]} == node["labels"]
        assert (pod["min_workers"], pod["max_workers"]) == (node["min_workers"], node["max_workers"])
        for resource in ("CPU", "GPU"):
            assert pod["resources"].get(resource, 0) == node["resources"].get(resource, 0)
        assert pod["resources"]["memory"] >= node["resources"]["memory"]


def test_what_is_requested_fits_where_it_is_limited(cluster: dict) -> None:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert int(requests["cpu"]) <= int(limits["cpu"])
        assert as_bytes(requests["memory"]) == as_bytes(limits["memory"]), "or a node would run out of it"
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


def test_every_job_is_a_command_that_its_program_accepts(jobs: dict, tmp_path: Path) -> None:
    for name, job in jobs.items():
        python, program, *words = shlex.split(job["spec"]["entrypoint"])
        assert (python, program) == ("python", f"{IN_IMAGE}jobs/{name}.py")
        assert all(
            word.startswith(("s3://diffseglung-example/", "models:/")) for word in words if ":/" in word
        )
        said = call_job(name, "--help", cwd=tmp_path).stdout
        assert [word for word in words if word.startswith("--") and word not in said] == []
        if "--config" in words:
            file = ROOT / words[words.index("--config") + 1].removeprefix(IN_IMAGE)
            sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            assert load_config("paper", file, sets).resources.nodes["pool"] == (
                "cpu" if name == "prepare" else "gpu"
            )


def test_nothing_secret_is_written_down(manifests: list) -> None:
    assert "Secret" not in {one["kind"] for one in manifests}
    texts = [path.read_text() for path in HERE.rglob("*.yaml")]
    assert len(texts) > len(JOBS)
    for text in texts:
        for word in ("password: ", "token: ", "AWS_SECRET", "stringData"):
            assert word not in text


def test_names_that_manifests_point_at_are_there(manifests: list, cluster: dict) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    assert {("ConfigMap", "diffseglung"), ("ServiceAccount", "diffseglung"), ("Service", "redis")} <= there
    assert cluster["spec"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert {one["metadata"]["namespace"] for one in manifests} == {"diffseglung"}
