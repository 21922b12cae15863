"""Preparation on Ray leaves what the contract says, goes on where it stopped, and survives bad cases."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_model import to_numpy

from diffseglung.prepare import prepare_case
from diffseglung.schemas import CASES
from diffseglung.teacher import TEACHER
from diffseglung.volume import read_volume
from diffseglung_ray.cases import Attempts, attempts_in, map_cases, only_case
from diffseglung_ray.cluster import Workers
from diffseglung_ray.cohort import Case
from diffseglung_ray.config import RunConfig, UserError, WrongArgument, load_config
from diffseglung_ray.preparation import part_name, prepare
from diffseglung_ray.storage import Store


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("smoke")


ONE = "resources.workers=1"  # the workspace is made by two; each worker more is seconds of imports


@pytest.fixture(scope="module")
def alone() -> RunConfig:
    return load_config("smoke", None, [ONE])


@pytest.fixture(scope="module")
def workspace(cohort: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("work")
    prepare(str(cohort), str(place), config, max_failed=0.5)
    return place


def rows_of(workspace: Path) -> dict[str, dict[str, Any]]:
    return {row["case_id"]: row for row in pq.read_table(workspace / "cases.parquet").to_pylist()}


def test_plain_pyarrow_reads_tensors_with_their_shape_and_names(workspace: Path, config: RunConfig) -> None:
    table = pq.read_table(workspace / "patches")
    size = config.patches.size_vox
    assert table.schema.field("hu").type == pa.fixed_shape_tensor(pa.int16(), size)
    assert table.schema.field("lungs").type == pa.fixed_shape_tensor(pa.uint8(), size)
    assert table.schema.field("teacher").type == pa.fixed_shape_tensor(pa.float32(), (34,))
    assert {"case_id", "z0", "y0", "x0"} <= set(table.column_names)
    assert json.loads(table.schema.metadata[b"teacher.names"]) == list(TEACHER.names)
    assert set(table["case_id"].to_pylist()) == {"phantom-0000", "phantom-0001"}


def test_the_cluster_prepares_what_one_process_prepares(
    workspace: Path, cohort: Path, config: RunConfig
) -> None:
    volume = read_volume(cohort.parent / "images" / "phantom-0001.nii.gz", config=config.volume)
    alone = prepare_case("phantom-0001", volume, config)
    made = pq.read_table(workspace / part_name("phantom-0001"))
    assert made.schema == alone.schema
    for name in alone.column_names:
        np.testing.assert_array_equal(to_numpy(made[name]), to_numpy(alone[name]), err_msg=name)


def test_every_case_has_a_row_and_a_bad_one_a_reason(workspace: Path) -> None:
    rows = rows_of(workspace)
    assert list(rows) == sorted(rows) == ["broken", "phantom-0000", "phantom-0001"]
    assert pq.read_schema(workspace / "cases.parquet").names == CASES.names
    assert rows["phantom-0000"]["status"] == "ok"
    assert rows["phantom-0000"]["patches"] == 12
    assert rows["broken"]["status"] == "failed"
    assert "broken.nii.gz" in rows["broken"]["reason"]


def test_the_manifest_counts_and_seals_what_is_there(workspace: Path) -> None:
    manifest = json.loads((workspace / "manifest.json").read_text())
    assert (manifest["cases"], manifest["failed"], manifest["patches"]) == (2, 1, 24)
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((workspace / "patches" / name).read_bytes()).hexdigest() == digest
    assert not (workspace / ".runs").exists()


def test_a_second_run_makes_nothing_again_though_training_will_be_another(
    workspace: Path, cohort: Path
) -> None:
    def parts() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (workspace / "patches").iterdir()}

    before, manifest = parts(), (workspace / "manifest.json").read_text()
    prepare(str(cohort), str(workspace), load_config("smoke", None, ["train.lr=0.5", ONE]), max_failed=0.5)
    assert parts() == before
    assert (workspace / "manifest.json").read_text() == manifest
    assert rows_of(workspace)["phantom-0001"]["status"] == "skipped"


def test_other_settings_are_refused_in_the_same_workspace(workspace: Path, cohort: Path) -> None:
    manifest = (workspace / "manifest.json").read_text()
    with pytest.raises(WrongArgument, match=r"patches.per_case was 12, is 5"):
        prepare(str(cohort), str(workspace), load_config("smoke", None, ["patches.per_case=5"]))
    with pytest.raises(WrongArgument, match=r"cavity.min_ml was 0.5, is 2.0"):
        prepare(str(cohort), str(workspace), load_config("smoke", None, ["cavity.min_ml=2"]))
    assert (workspace / "manifest.json").read_text() == manifest


KILLED = """
import sys
from diffseglung_ray.cases import attempts_in, on_its_way
from diffseglung_ray.cohort import find_cohort
from diffseglung_ray.config import load_config
from diffseglung_ray.preparation import CasePreparer, _claim, digest_of, prepared_settings
from diffseglung_ray.storage import Store
config, store = load_config("smoke"), Store.at(sys.argv[2])
settings = prepared_settings(config)
_claim(store, settings)
with attempts_in(store) as attempts:
    for case in reversed(find_cohort(sys.argv[1])):
        CasePreparer(store, config, digest_of(settings), attempts, 1)({k: [v] for k, v in on_its_way(case).items()})
"""


def test_a_killed_run_goes_on_and_ends_as_if_undisturbed(
    workspace: Path, cohort: Path, alone: RunConfig, tmp_path: Path
) -> None:
    """Killed as soon as its first file is there, with the next case begun; what is done is not done again."""
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(cohort), str(tmp_path)])
    while not list(tmp_path.glob("patches/part-*")) and run.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    (first,) = tmp_path.glob("patches/part-*")
    kept = first.stat().st_mtime_ns
    (tmp_path / "patches" / f".{run.pid}.part.{Path(part_name('phantom-0000')).name}").write_bytes(
        b"half a fi"
    )
    assert not (tmp_path / "manifest.json").exists()
    prepare(str(cohort), str(tmp_path), alone, max_failed=0.5)
    assert first.stat().st_mtime_ns == kept
    assert contents(tmp_path) == contents(workspace)
    same = ["case_id", "patches", "lung_ml", "input_sha256"]
    mine, theirs = (pq.read_table(p / "cases.parquet").select(same) for p in (tmp_path, workspace))
    assert mine == theirs


def contents(workspace: Path) -> dict[str, bytes]:
    """Every file of a workspace but the table of cases, which says how long each took this time."""
    files = [p for p in workspace.rglob("*") if p.is_file() and p.name != "cases.parquet"]
    return {str(p.relative_to(workspace)): p.read_bytes() for p in files}


def test_workers_order_and_company_do_not_matter(
    workspace: Path, cohort: Path, alone: RunConfig, tmp_path: Path
) -> None:
    """One worker, a cohort told backwards and added to, the same file under two names; then some of it leaves."""
    image, study, work = cohort.parent / "images" / "phantom-000", tmp_path / "study.csv", tmp_path / "work"
    rows = [f"phantom-0001,{image}1.nii.gz,", f"phantom-0000,{image}0.nii.gz,"]

    def run(*rows: str) -> dict[str, dict[str, Any]]:
        study.write_text("\n".join(["case_id,image,weight", *rows]))
        prepare(str(study), f"file://{work}", alone)
        return rows_of(work)

    run(rows[0])
    kept = (work / part_name("phantom-0001")).stat().st_mtime_ns
    found = run(*rows, f"again,{image}0.nii.gz,2")
    assert (work / part_name("phantom-0001")).stat().st_mtime_ns == kept
    statuses = {name: row["status"] for name, row in found.items()}
    assert statuses == {"again": "ok", "phantom-0000": "ok", "phantom-0001": "skipped"}
    for name in ("phantom-0000", "phantom-0001"):
        assert (work / part_name(name)).read_bytes() == (workspace / part_name(name)).read_bytes()
    table = pq.read_table(work / part_name("again"))
    assert len(table) == 2 * found["phantom-0000"]["patches"]
    corners = list(zip(*(table[c].to_pylist() for c in ("z0", "y0", "x0")), strict=True))
    assert corners == sorted(corners)
    found = run(f"again,{image}0.nii.gz,1")  # another weight, and the others have left
    assert (found["again"]["status"], found["again"]["patches"]) == ("ok", 12)
    assert [p.name for p in (work / "patches").iterdir()] == [Path(part_name("again")).name]


def test_too_many_failures_end_the_job_in_words(cohort: Path, alone: RunConfig, tmp_path: Path) -> None:
    study = tmp_path / "study.csv"
    study.write_text(f"case_id,image\na,{cohort.parent}/images/broken.nii.gz\n")
    with pytest.raises(UserError, match=r"1 of 1 cases failed, more than --max-failed 0.1"):
        prepare(str(study), str(tmp_path / "work"), alone)


def test_a_case_that_kills_its_worker_costs_only_itself(tmp_path: Path) -> None:
    class Fragile:
        def __init__(self, attempts: Attempts) -> None:
            self.attempts = attempts

        def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
            name = only_case(batch)["case_id"]
            work = (lambda: os._exit(1)) if name == "deadly" else (lambda: {"case_id": name, "status": "ok"})
            return pa.Table.from_pylist([self.attempts.guarded(name, work)], schema=CASES)

    cases = [Case(case_id=name, image="") for name in ("a", "deadly", "z")]
    with attempts_in(Store.at(tmp_path)) as attempts:
        found = list(map_cases(Fragile, (attempts,), cases, Workers(1, 1, 0.0, None), "try"))
    rows = {row["case_id"]: row for row in found}
    assert {name: row["status"] for name, row in rows.items()} == {"a": "ok", "deadly": "failed", "z": "ok"}
    assert "died 2 times" in rows["deadly"]["reason"]
    assert list(tmp_path.iterdir()) == []
