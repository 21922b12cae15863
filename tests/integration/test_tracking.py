"""A model goes into the registry and comes back the same, and an alias never points at one that does not work."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from diffseglung.config import recipe
from diffseglung.model import Model
from diffseglung.schemas import RESULTS
from diffseglung_ray.config import TrackingConfig
from diffseglung_ray.tracking import (
    ModelNotFound,
    ModelRefused,
    RegisteredModel,
    Run,
    fetch_model,
    register_model,
    start_run,
)

NAMES = TrackingConfig()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield folder


@pytest.fixture(scope="module")
def scan(cohort: Path) -> Path:
    return cohort.parent / "images" / "phantom-0000.nii.gz"


@pytest.fixture(scope="module")
def registered(registry: Path, model: Path, scan: Path) -> tuple[RegisteredModel, Run]:
    with start_run(recipe("smoke"), NAMES, name="train") as run:
        return register_model(model, run, NAMES, alias="candidate", check=scan), run


def test_every_address_of_a_model_leads_to_the_same_model(
    registered: tuple[RegisteredModel, Run], model: Path, tmp_path: Path
) -> None:
    version, run = registered
    digest = Model.load(model).sha256
    for address in (str(model), version.uri, f"models:/{version.name}@candidate", f"runs:/{run.id}"):
        fetched = fetch_model(address, tmp_path / address.replace("/", "_"))
        assert Model.load(fetched.path).sha256 == digest
        assert fetched.uri == address
    assert fetch_model(version.uri, tmp_path / "again").version == "1"
    assert fetch_model(model).version == digest[:12]


def test_a_registered_model_holds_no_pickle_and_one_line_of_code(
    registered: tuple[RegisteredModel, Run], registry: Path
) -> None:
    files = [p for p in (registry / "mlartifacts" / "models").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json", ".yaml", ".txt", ".py", ""}
    assert {p.name for p in files if not p.suffix} == {"MLmodel"}
    (code,) = (p for p in files if p.suffix == ".py")
    assert code.read_text().split('"""')[2].split() == [
        *["from", "diffseglung_ray.tracking", "import", "serve"],
        "serve()",
    ]


def test_a_served_model_answers_with_the_columns_of_the_results(
    registered: tuple[RegisteredModel, Run], scan: Path
) -> None:
    served = mlflow.pyfunc.load_model(registered[0].uri)
    assert [c.name for c in served.metadata.signature.outputs] == RESULTS.names
    rows = served.predict(pd.DataFrame({"image": [str(scan), "missing.nii.gz"]}))
    assert list(rows.columns) == RESULTS.names
    assert list(rows["status"]) == ["ok", "failed"]
    assert rows["lung_ml"][0] > 100
    assert "missing.nii.gz" in rows["reason"][1]


def test_the_picture_of_the_test_scan_stays_with_the_run(registered: tuple[RegisteredModel, Run]) -> None:
    client = mlflow.MlflowClient()
    assert [f.path for f in client.list_artifacts(registered[1].id, "pictures")] == ["pictures/check.png"]


def test_an_alias_does_not_move_to_a_version_that_fails(
    registered: tuple[RegisteredModel, Run], model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "scan.nii.gz"
    broken.write_bytes(b"no scan")
    with (
        start_run(recipe("smoke"), NAMES, name="train") as run,
        pytest.raises(ModelRefused, match="candidate was not moved"),
    ):
        register_model(model, run, NAMES, alias="candidate", check=broken)
    client = mlflow.MlflowClient()
    assert str(client.get_model_version_by_alias(NAMES.model, "candidate").version) == "1"
    refused = max(client.search_model_versions(f"name = '{NAMES.model}'"), key=lambda v: int(v.version))
    assert refused.tags["check"].startswith("failed")


def test_an_unknown_alias_is_answered_with_those_there_are(registered: tuple[RegisteredModel, Run]) -> None:
    with pytest.raises(ModelNotFound, match=r"no alias 'champion'; its aliases are: candidate \(version 1\)"):
        fetch_model(f"models:/{NAMES.model}@champion")
    with pytest.raises(ModelNotFound, match="no version 99; there are: 1"):
        fetch_model(f"models:/{NAMES.model}/99")
