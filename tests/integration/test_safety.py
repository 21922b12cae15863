"""Nothing of ours can be reached from other machines; what comes from them neither runs nor writes where it likes."""

import pickle
from pathlib import Path

import mlflow
import psutil
import pytest
import ray
from made_s3 import started_s3

from diffseglung.gate import UnreadableScan, VolumeConfig
from diffseglung_ray.cohort import find_cohort, read_case
from diffseglung_ray.tracking import ModelNotFound, fetch_model


def listening() -> dict[str, str]:
    """Addresses that this process and those that its Ray has started listen on, with the program of each."""
    here = psutil.Process()
    found: dict[str, str] = {}
    for process in (here, *here.children(recursive=True)):
        try:
            sockets, name = process.net_connections("inet"), process.name()
        except psutil.NoSuchProcess:
            continue
        found |= {f"{s.laddr.ip}:{s.laddr.port}": name for s in sockets if s.status == psutil.CONN_LISTEN}
    return found


def test_a_ray_that_we_start_listens_on_loopback_alone() -> None:
    assert ray.get(ray.remote(num_cpus=1)(lambda: 1).remote()) == 1  # a worker listens too
    there = listening()
    assert {"gcs_server", "raylet"} <= set(there.values())
    beyond = {
        at: name
        for at, name in there.items()
        if not at.startswith(("127.0.0.1:", "::1:", "::ffff:127.0.0.1:"))
    }
    assert beyond == {}


def test_code_that_a_registered_model_brings_does_not_run_when_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "it-ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    hostile = tmp_path / "hostile"
    (hostile / "artifacts" / "model").mkdir(parents=True)
    (hostile / "python_model.pkl").write_bytes(pickle.dumps(Bomb()))
    (hostile / "registered_model.py").write_text(f"open({str(mark)!r}, 'w')")
    (hostile / "artifacts" / "model" / "student.safetensors").write_bytes(pickle.dumps(Bomb()))
    (hostile / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("hostile", artifact_location=(tmp_path / "a").as_uri()))
    client.log_artifacts(run.info.run_id, str(hostile), "model")
    with pytest.raises(ModelNotFound, match="no model that can be read"):
        fetch_model(f"runs:/{run.info.run_id}", tmp_path / "into")
    assert not mark.exists()


def test_a_name_in_a_bucket_does_not_lead_out_of_the_folder_it_is_fetched_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a" / "b" / "c"))
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    with started_s3() as s3:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        client = s3.client()
        for key in ("study/one/1.dcm", "study/one/../../../../../fetched.dcm"):
            client.put_object(Bucket="lab", Key=key, Body=b"no scan")
        cases = [case for case in find_cohort(s3.uri("study")) if case.image.endswith("/study/one")]
        (case,) = cases
        with pytest.raises(UnreadableScan, match="leads out of it"):
            read_case(case.row(), VolumeConfig())
    assert not list(tmp_path.rglob("fetched.dcm"))
