"""A password that stands in an address or an error goes no further."""

import os
import subprocess
import sys

import mlflow
import pytest
import ray
from ray.tune.execution import class_cache

from diffseglung_ray import tracking
from diffseglung_ray.cases import failed
from diffseglung_ray.cohort import find_cohort
from diffseglung_ray.config import UserError, WrongArgument, run_job
from diffseglung_ray.credentials import keep_from_trials, without_credentials
from diffseglung_ray.storage import Store
from diffseglung_ray.tracking import check_tracking

SECRET = "hunter2hunter2"
ADDRESSES = [
    f"https://lab:{SECRET}@scans.lab/a/b.nii.gz",
    f"s3://{SECRET}:{SECRET}@bucket/a",
    f"postgresql://mlflow:{SECRET}@db.lab/mlflow",
    f"https://bucket.lab/a.nii.gz?X-Amz-Date=1&X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
    f"https://store.lab/a.nii.gz?sv=2&sig={SECRET}",
    f"https://lab:{SECRET}@scans.lab/a?token={SECRET}&n=1",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_text_is_told_without_its_credentials_and_nothing_else_is_lost(address: str) -> None:
    said = without_credentials(f"no answer from {address} in 3 s")
    assert SECRET not in said
    assert said.startswith("no answer from ")
    assert said.endswith(" in 3 s")


@pytest.mark.parametrize(
    "text",
    ["s3://lab/a@b/c.nii.gz", "models:/diffseglung@champion", "/data/a@b", "https://lab/a?n=1", "a@b.org"],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert without_credentials(text) == text


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_place_with_credentials_is_refused_without_repeating_them(address: str) -> None:
    for use in (Store.at, find_cohort):
        with pytest.raises(WrongArgument, match="environment") as refusal:
            use(address)
        assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_reason_of_a_failed_case_does_not_hold_them(address: str) -> None:
    assert SECRET not in failed("a", f"{address} cannot be read")["reason"]


def test_a_registry_that_does_not_answer_is_named_without_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://lab:{SECRET}@127.0.0.1:9")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "another, to be taken away again")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def main() -> None:
        check_tracking(nodes=1)

    with pytest.raises(SystemExit) as end:
        run_job(main)
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert "no MLflow at http://127.0.0.1:9" in said
    assert SECRET not in said


def test_the_login_of_a_registry_reaches_mlflow_beside_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://lab:{SECRET}%40@127.0.0.1:9/mlflow")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "taken away again at the end of the test")
        monkeypatch.delenv(name)
    tracking._mlflow()
    assert tracking.tracking_uri() == mlflow.get_tracking_uri() == "http://127.0.0.1:9/mlflow"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == (
        "lab",
        f"{SECRET}@",
    )


def test_an_error_that_nobody_expected_keeps_its_traceback_but_not_the_password() -> None:
    code = (
        "from diffseglung_ray.config import run_job\n"
        f"def main(): raise KeyError('http://lab:{SECRET}@mlflow.lab/api')\n"
        "run_job(main)"
    )
    ended = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "KeyError: 'http://***@mlflow.lab/api'" in ended.stderr
    assert SECRET not in ended.stderr


def test_an_error_of_a_user_is_said_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError(f"{ADDRESSES[0]} is empty")

    with pytest.raises(SystemExit):
        run_job(main)
    assert SECRET not in capsys.readouterr().err


def test_a_trial_is_handed_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", class_cache.ENV_VARS_TO_PROPAGATE)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    handed = []
    monkeypatch.setattr(ray, "remote", lambda runtime_env: lambda cls: handed.append(runtime_env))
    class_cache._ActorClassCache().get(object)
    assert SECRET in str(handed[0])  # were it not, we could leave it alone
    keep_from_trials()
    class_cache._ActorClassCache().get(object)
    assert SECRET not in str(handed[1])
