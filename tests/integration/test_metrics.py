"""Seen from outside: metrics on the endpoint of a node, a dashboard that asks for these alone, logs without names."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from made_scans import ct_series, save_series

from diffseglung.config import Config
from diffseglung.phantom import PhantomConfig, make_phantom
from diffseglung_ray.config import RunConfig, load_config
from diffseglung_ray.preparation import prepare
from diffseglung_ray.segmentation import segment_cohort

DASHBOARD = Path(__file__).parents[2] / "platform" / "dashboards" / "diffseglung.json"
ONE = ["resources.workers=1"]
SECONDS_TO_WAIT = 60  # Ray's processes hand their numbers in every ten seconds
NAME, ID, BORN = "Doe^Jane", "MRN-4711-0815", "19600229"


def alone(own: Config) -> RunConfig:
    return load_config(own.name, None, ONE)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's DICOM series, and a file of the same patient that cannot be read."""
    folder = tmp_path_factory.mktemp("study")
    phantom = make_phantom(1, PhantomConfig(size_vox=(60, 100, 120), spacing_mm=(4.0, 3.0, 2.5)))
    series = ct_series(phantom.hu)
    for one in series:
        one.PatientName, one.PatientID, one.PatientBirthDate = NAME, ID, BORN
    save_series(folder / "good", series)
    save_series(folder / "torn", series[::2] + series[1:2])
    return folder


@pytest.fixture(scope="module")
def out(study: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both jobs leave, and what they print, in a folder."""
    place = tmp_path_factory.mktemp("out")
    prepare(str(study), str(place / "work"), load_config("smoke", None, ONE), max_failed=0.5)
    segment_cohort(str(study), str(model), str(place / "results"), alone, max_failed=0.5)
    return place


def logs() -> Path:
    """Where this Ray keeps what its processes say."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())


def exposed() -> str:
    """The text that Prometheus would get from this node."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def seen(out: Path) -> str:
    """The same, once all processes have handed in what they counted; or what there is when that takes too long."""
    until = time.monotonic() + SECONDS_TO_WAIT
    while True:
        text = exposed()
        counted = [total(text, "ray_diffseglung_cases_total", work=work) for work in ("prepare", "segment")]
        if (counted == [2, 2] and asked() <= names(text)) or time.monotonic() > until:
            return text
        time.sleep(1)


def names(seen: str) -> set[str]:
    """The metrics in a text for Prometheus."""
    return set(re.findall(r"^(ray_\w+)", seen, re.MULTILINE))


def total(seen: str, name: str, **labels: str) -> float:
    """The sum of the lines of a metric that have these labels."""
    lines = [line for line in seen.splitlines() if line.startswith(f"{name}{{")]
    chosen = [line for line in lines if all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.rsplit(" ", 1)[1]) for line in chosen)


@pytest.mark.parametrize("work", ["prepare", "segment"])
def test_every_case_is_counted_by_what_became_of_it(seen: str, work: str) -> None:
    assert total(seen, "ray_diffseglung_cases_total", work=work, status="ok") == 1
    assert total(seen, "ray_diffseglung_cases_total", work=work, status="failed") == 1
    assert total(seen, "ray_diffseglung_case_seconds_count", work=work) == 2


def test_the_stages_of_a_case_are_within_its_seconds(seen: str) -> None:
    stages = ("anatomy", "cavities", "cells", "features", "mixture", "refine", "labels")
    spent = [total(seen, "ray_diffseglung_stage_seconds_total", work="segment", stage=s) for s in stages]
    assert min(spent) > 0
    assert sum(spent) < total(seen, "ray_diffseglung_stage_seconds_total", work="segment", stage="case")


def test_patches_are_counted(seen: str) -> None:
    assert (
        total(seen, "ray_diffseglung_patches_total", work="prepare") == load_config("smoke").patches.per_case
    )


def queries() -> Iterator[str]:
    """Every query of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def asked() -> set[str]:
    """The metrics that the dashboard asks for."""
    return {name for query in queries() for name in re.findall(r"\bray_\w+", query)}


def test_the_dashboard_asks_for_nothing_that_is_not_exposed(seen: str) -> None:
    assert asked() - names(seen) == set()


def test_the_dashboard_shows_all_that_is_ours(seen: str) -> None:
    ours = {name for name in names(seen) if name.startswith("ray_diffseglung_")}
    assert {name for name in ours - asked() if not name.endswith(("_sum", "_count", "_created"))} == set()


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_asks_for_labels_that_its_metrics_have(seen: str, query: str) -> None:
    groups = re.findall(r"by \(([^)]*)\)", query)
    labels = {label.strip() for group in groups for label in group.split(",")}
    labels |= set(re.findall(r"[{,](\w+)!?=", query))
    labels -= {"", "instance", "le"}  # the last two are Prometheus's own: whom it asked, and a bucket's end
    for name in re.findall(r"\bray_\w+", query):
        lines = [line for line in seen.splitlines() if line.startswith(f"{name}{{")]
        assert {label for label in labels if not any(f'{label}="' in line for line in lines)} == set()


def test_a_cases_end_is_a_line_of_json_in_the_workers_log(out: Path) -> None:
    lines = [line for file in logs().glob("worker-*.err") for line in file.read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith('{"time"')]
    ends = {(e["work"], e["case_id"], e["status"]) for e in events if e["event"] == "case"}
    assert {
        (w, c, s) for w in ("prepare", "segment") for c, s in (("good", "ok"), ("torn", "failed"))
    } <= ends


def test_no_log_table_or_report_says_who_the_patient_is(
    out: Path, seen: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """All but the DICOM SEG, which belongs into the patient's study."""
    written = [p for p in (*out.rglob("*"), *logs().rglob("*")) if p.is_file() and p.suffix != ".dcm"]
    assert any(p.name == "results.csv" for p in written)
    for secret in (NAME, NAME.replace("^", " "), ID, BORN):
        telling = [p for p in written if secret.encode() in p.read_bytes()]
        assert telling == []
        assert secret not in seen
