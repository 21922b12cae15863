"""From a cohort to patches on disk: each case is read, its lungs found, cut and described by one worker.

Each case is one Parquet file, written by the worker that made it, named by the case and the same whoever made
it. So a run that was stopped goes on where it was, and the result knows nothing of workers or their order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import diffseglung
from diffseglung.config import Config
from diffseglung.prepare import prepare_case
from diffseglung.schemas import CASES, VERSION
from diffseglung_ray.cases import (
    RUNS,
    Attempts,
    Row,
    attempts_in,
    map_cases,
    only_case,
    report_failures,
)
from diffseglung_ray.cluster import case_workers, ray_cluster, refuse_fleeting
from diffseglung_ray.cohort import check_lungs, find_cohort, quick_digest, read_case
from diffseglung_ray.config import RunConfig, WrongArgument
from diffseglung_ray.credentials import without_credentials
from diffseglung_ray.metrics import case_ended
from diffseglung_ray.processes import use_threads
from diffseglung_ray.storage import Store

DONE_BEFORE = "done before with the same input and settings"
KEPT = (b"diffseglung.input_sha256", b"diffseglung.settings_sha256", b"diffseglung.weight")


def prepare(cohort: str, workspace: str, config: RunConfig, max_failed: float = 0.1) -> None:
    """Prepare every case of a cohort into a workspace.

    Leaves `patches/part-*.parquet`, `cases.parquet`, and `manifest.json` last.
    Errors: WrongArgument; UserError where more than `max_failed`, a share, could not be prepared.
    """
    refuse_fleeting(tracking=False, cohort=cohort, workspace=workspace)
    cases = find_cohort(cohort)
    store = Store.at(workspace)
    check_lungs(config.anatomy)
    settings = prepared_settings(config)
    _claim(store, settings)
    with ray_cluster(config.resources), attempts_in(store) as attempts:
        workers = case_workers(config.resources)
        arguments = (store, config.method, digest_of(settings), attempts, workers.cpus)
        rows = list(map_cases(CasePreparer, arguments, cases, workers, "prepare"))
    _tidy(store, {part_name(row["case_id"]) for row in rows if row["status"] != "failed"})
    _conclude(store, settings, rows, max_failed)


class CasePreparer:
    """An actor that turns one case after another into a Parquet file of patches."""

    def __init__(
        self, store: Store, config: Config, settings_sha256: str, attempts: Attempts, cpus: int
    ) -> None:
        use_threads(cpus)
        self.store, self.config, self.attempts = store, config, attempts
        self.settings_sha256 = settings_sha256

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """One case in, its row of `cases.parquet` out."""
        case = only_case(batch)
        row = self.attempts.guarded(case["case_id"], lambda: self.prepare(case))
        if row["status"] == "failed":
            self.store.remove(part_name(case["case_id"]))
        case_ended("prepare", row)
        return pa.Table.from_pylist([row | {"image": without_credentials(case["image"])}], schema=CASES)

    def prepare(self, case: Row) -> Row:
        """Make the case's file, unless the same one is there. Errors in words."""
        made = self.made_before(case, quick_digest(case))
        if made:
            return made
        loaded = read_case(case, self.config.volume)
        made = self.made_before(case, loaded.input_sha256)
        if made:
            return made
        table = prepare_case(case["case_id"], loaded.volume, self.config, loaded.lungs, _weight(case))
        marks = dict(zip(KEPT, self.marks(case, loaded.input_sha256), strict=True))
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **marks})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=16)
        self.store.write(part_name(case["case_id"]), sink.getvalue().to_pybytes())
        return _row(case, table.schema, table.num_rows) | {"status": "ok", "reason": ""}

    def made_before(self, case: Row, input_sha256: str | None) -> Row | None:
        """The row of a case whose file is there, made from the same input with the same settings."""
        content = self.store.read(part_name(case["case_id"])) if input_sha256 else None
        if content is None or input_sha256 is None:
            return None
        try:
            part = pq.ParquetFile(pa.BufferReader(content))
        except pa.ArrowInvalid:
            return None
        found = part.schema_arrow.metadata or {}
        if [found.get(key) for key in KEPT] != self.marks(case, input_sha256):
            return None
        return _row(case, part.schema_arrow, part.metadata.num_rows) | {
            "status": "skipped",
            "reason": DONE_BEFORE,
        }

    def marks(self, case: Row, input_sha256: str) -> list[bytes]:
        """What a case's file was made from, in the order of KEPT."""
        return [input_sha256.encode(), self.settings_sha256.encode(), f"{_weight(case):g}".encode()]


def _weight(case: Row) -> float:
    return float(case.get("weight") or 1)


def _row(case: Row, schema: pa.Schema, patches: int) -> Row:
    lung_ml = schema.metadata.get(b"lung_ml")
    return {
        "case_id": case["case_id"],
        "patches": patches,
        "lung_ml": None if lung_ml is None else float(lung_ml),
        "input_sha256": schema.metadata[KEPT[0]].decode(),
    }


def part_name(case_id: str) -> str:
    """The file of a case, from its name alone."""
    return f"patches/part-{hashlib.sha256(case_id.encode()).hexdigest()[:16]}.parquet"


def prepared_settings(config: Config) -> dict[str, Any]:
    """What decides the patches: changing anything else leaves a workspace as good as it was."""
    sections = ("volume", "anatomy", "patches", "teacher", "tissue", "cavity")
    decisive = {name: asdict(getattr(config, name)) for name in sections}
    settings = {
        **decisive,
        "student": {"stride_vox": config.student.stride_vox},
        "tables": {"version": VERSION},
    }
    return json.loads(json.dumps(settings, sort_keys=True))


def digest_of(settings: dict[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _claim(store: Store, settings: dict[str, Any]) -> None:
    """Write down what this workspace is prepared with; refuse one that was prepared otherwise."""
    store.check("workspace")
    before = store.read("settings.json")
    if before is not None and json.loads(before) != settings:
        changed = "; ".join(_differences(json.loads(before), settings))
        raise WrongArgument(
            f"the workspace {store.root} was prepared with other settings ({changed}): give another "
            "--workspace, or delete this one"
        )
    store.write("settings.json", json.dumps(settings, indent=1))
    store.remove("manifest.json")


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{path[:-1]} was {before}, is {now}"]
    keys = sorted({*before, *now})
    return [words for key in keys for words in _differences(before.get(key), now.get(key), f"{path}{key}.")]


def _tidy(store: Store, current: set[str]) -> None:
    """Take away what a killed run left, and cases that the cohort no longer has: training reads all there are."""
    store.remove(RUNS)
    store.remove_unfinished("patches")
    for name in store.names("patches"):
        if f"patches/{name}" not in current:
            store.remove(f"patches/{name}")


def _conclude(store: Store, settings: dict[str, Any], rows: list[Row], max_failed: float) -> None:
    """The table of cases, then the manifest that says the workspace is complete."""
    table = pa.Table.from_pylist(rows, schema=CASES).sort_by("case_id")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write("cases.parquet", sink.getvalue().to_pybytes())
    parts = store.names("patches")
    good = [row for row in rows if row["status"] != "failed"]
    manifest = {
        "version": diffseglung.__version__,
        "settings_sha256": digest_of(settings),
        "settings": settings,
        "cases": len(good),
        "failed": len(rows) - len(good),
        "patches": sum(row["patches"] for row in good),
        "files": {name: hashlib.sha256(store.read(f"patches/{name}") or b"").hexdigest() for name in parts},
        "inputs": {row["case_id"]: row["input_sha256"] for row in table.to_pylist() if row["input_sha256"]},
    }
    store.write("manifest.json", json.dumps(manifest, indent=1) + "\n")
    print(
        f"{len(good)} of {len(rows)} cases prepared, {manifest['patches']} patches in {store.path('patches')}"
    )
    report_failures(rows, max_failed, store.path("cases.parquet"))
