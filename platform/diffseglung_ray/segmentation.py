"""A cohort through a trained model: actors that hold the model and take one scan after another."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import ray

from diffseglung import report
from diffseglung.calibration import Calibration
from diffseglung.colours import colour_tables
from diffseglung.config import Config, digest
from diffseglung.features import agreed
from diffseglung.mixture import Mixture
from diffseglung.model import Model
from diffseglung.results import case_result, write_case
from diffseglung.schemas import RESULTS
from diffseglung.segment import Segmentation, segment
from diffseglung_ray.cases import (
    RUNS,
    Attempts,
    Row,
    attempts_in,
    map_cases,
    only_case,
    report_failures,
)
from diffseglung_ray.cluster import Workers, case_workers, ray_cluster, refuse_fleeting
from diffseglung_ray.cohort import (
    Case,
    Loaded,
    check_lungs,
    fetched,
    find_cohort,
    quick_digest,
    read_case,
)
from diffseglung_ray.config import RunConfig, WrongArgument
from diffseglung_ray.metrics import case_ended
from diffseglung_ray.processes import import_network, use_threads
from diffseglung_ray.storage import Store
from diffseglung_ray.tracking import FetchedModel, ModelNotFound, fetch_model

DONE_BEFORE = "done before with the same model, settings and input"
# What the weights and the mixture were made for. Everything else may be changed when a model is used.
TRAINED_IN = ("patches", "teacher", "student", "train")
FILES = ("segmentation.nii.gz", "anatomy.nii.gz", "preview.png", "result.json")


Configure = Callable[[Config], RunConfig]


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model as actors receive it: its files, the settings to use it with, and how results name it."""

    files: dict[str, bytes]
    config: Config
    uri: str
    version: str
    labelled_scans: int

    @property
    def origin(self) -> dict[str, str]:
        """The columns of a result that say what made it."""
        return {"model_uri": self.uri, "model_version": self.version, "config_sha256": digest(self.config)}

    def load(self) -> Model:
        """The model, with the settings to use it with."""
        with tempfile.TemporaryDirectory(prefix="diffseglung-") as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            model = Model.load(folder)
        c = self.config
        mixture = Mixture(c.mixture, c.tissue, model.standardiser, model.mixture.arrays)
        return replace(model, config=c, mixture=mixture)


def segment_cohort(
    cohort: str,
    model: str,
    out: str,
    configure: Configure,
    *,
    probabilities: bool = False,
    max_failed: float = 0.1,
) -> None:
    """Segment every case of a cohort into `out`, with `results.parquet`, `results.csv` and `report.html`.

    `configure(config)` gives the RunConfig to use a model of that config with.
    Errors: WrongArgument before anything is started; UserError where too many cases failed.
    """
    cases, placed, config, store = prepared_run(cohort, model, out, configure)
    store.check("out")
    with store.claimed("out"):
        _tidy(store)
        with ray_cluster(config.resources):
            workers = case_workers(config.resources)
            rows = segment_cases(cases, placed, store, workers, probabilities=probabilities)
        with store.writing():
            _tidy(store)
            write_results(store, rows)
            write_report(store, rows, about(placed, cohort, workers))
    bad = sum(row["status"] == "failed" for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} cases segmented: {store.path('report.html')}")
    report_failures(rows, max_failed, store.path("results.csv"))


def prepared_run(
    cohort: str, model: str, out: str, configure: Configure
) -> tuple[list[Case], PlacedModel, RunConfig, Store]:
    """What is settled before anything is started. Errors: WrongArgument."""
    refuse_fleeting(tracking=is_registered(model), cohort=cohort, model=model, out=out)
    cases = find_cohort(cohort)
    placed, config = place_model(model, configure)
    check_lungs(config.anatomy)
    return cases, placed, config, Store.at(out)


def _tidy(store: Store) -> None:
    """Take away what killed jobs and workers left unfinished."""
    store.remove(RUNS)
    for folder in ("", "cases"):
        store.remove_unfinished(folder)


def is_registered(model: str | Path) -> bool:
    """Whether a model is asked for by an MLflow address."""
    return str(model).startswith(("models:/", "runs:/"))


def place_model(model: str, configure: Configure) -> tuple[PlacedModel, RunConfig]:
    """Fetch a model and settle what it is used with. Errors: WrongArgument."""
    with tempfile.TemporaryDirectory(prefix="diffseglung-") as scratch:
        try:
            fetched = fetch_model(model, Path(scratch))
        except ModelNotFound as error:
            raise WrongArgument(str(error)) from error
        return _place(fetched, configure)


def _place(fetched: FetchedModel, configure: Configure) -> tuple[PlacedModel, RunConfig]:
    model = Model.load(fetched.path)
    own, config = model.config, configure(model.config)
    if config.method.mixture.mode not in model.mixture.modes:
        raise WrongArgument(
            f"{fetched.uri} knows no mode {config.method.mixture.mode!r}, only {', '.join(model.mixture.modes)}"
        )
    changed = [name for name in TRAINED_IN if getattr(config, name) != getattr(own, name)]
    if changed:
        raise WrongArgument(
            f"{fetched.uri} was trained with other settings of {', '.join(changed)} (recipe {own.name}): "
            "leave those as they are, or train a model with yours"
        )
    files = {path.name: path.read_bytes() for path in sorted(fetched.path.iterdir()) if path.is_file()}
    return PlacedModel(files, config.method, fetched.uri, fetched.version, model.labelled_scans), config


def segment_cases(
    cases: list[Case], model: PlacedModel, store: Store, workers: Workers, *, probabilities: bool = False
) -> list[Row]:
    """Rows of the results table, by case_id; the files of each case are in the store. Needs a Ray.

    Errors: CannotWrite.
    """
    with attempts_in(store) as attempts:
        arguments = (ray.put(model), store, attempts, workers, probabilities)
        rows = list(map_cases(CaseSegmenter, arguments, cases, workers, "segment"))
    rows = [model.origin | row for row in rows]  # cases with a problem have been with no worker
    return sorted(rows, key=lambda row: row["case_id"])


class CaseSegmenter:
    """An actor that holds a model and segments one scan after another."""

    def __init__(
        self,
        model: ray.ObjectRef,
        store: Store,
        attempts: Attempts,
        workers: Workers,
        probabilities: bool,
    ) -> None:
        use_threads(workers.cpus)
        import_network()
        placed: PlacedModel = ray.get(model)
        loaded = placed.load().to("cuda" if workers.gpus else "cpu")
        features = agreed(loaded.student, loaded.config.patches.size_vox, loaded.config.features)
        self.model = replace(loaded, config=replace(loaded.config, features=features))
        self.origin, self.store, self.attempts = placed.origin, store, attempts
        self.files = (*FILES, "probabilities.nii.gz") if probabilities else FILES

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """One case in, its row of the results table out."""
        case = only_case(batch)
        row = self.attempts.guarded(case["case_id"], lambda: self.segment(case))
        if row["status"] == "failed":
            row = self.without(row)
        case_ended("segment", row)
        return pa.Table.from_pylist([row], schema=RESULTS)

    def without(self, row: Row) -> Row:
        """The row of a case that failed, whose files of an earlier run are gone."""
        with suppress(OSError):  # on an output that takes no more, which the row says already
            self.store.remove(folder_of(row["case_id"]))
        return row | self.origin

    def segment(self, case: Row) -> Row:
        """Segment and write one case, unless that was done before. Errors in words."""
        done = self.done_before(case["case_id"], quick_digest(case))
        if done:
            return done
        with fetched(case) as here:
            loaded = read_case(here, self.model.config.volume)
            done = self.done_before(case["case_id"], loaded.input_sha256)
            if done:
                return done
            return self.write(case["case_id"], loaded, segment(loaded.volume, self.model, loaded.lungs))

    def write(self, case_id: str, loaded: Loaded, segmentation: Segmentation) -> Row:
        """The files of a segmented case, and its row."""
        result = case_result(case_id, loaded.volume, segmentation, **self.origin)
        result = replace(result, input_sha256=loaded.input_sha256)
        with self.store.folder(folder_of(case_id), last="result.json") as folder:
            wanted = "probabilities.nii.gz" in self.files
            write_case(folder, loaded.volume, segmentation, result, probabilities=wanted)
        return result.row() | {"stages": segmentation.seconds}

    def done_before(self, case_id: str, input_sha256: str | None) -> Row | None:
        """The row of a case whose files are all there, from the same model, settings and input."""
        row = None if input_sha256 is None else read_result(self.store, case_id)
        if row is None:
            return None
        same = all(row[key] == value for key, value in {**self.origin, "input_sha256": input_sha256}.items())
        if not same or not set(self.files) <= set(self.store.names(folder_of(case_id))):
            return None
        return row | {"status": "skipped", "reason": DONE_BEFORE}


def folder_of(case_id: str) -> str:
    """Where a case's files lie in the output."""
    return f"cases/{case_id}"


def read_result(store: Store, case_id: str) -> Row | None:
    """The row in a case's `result.json`, which is written last; None where there is none of this version."""
    content = store.read(f"{folder_of(case_id)}/result.json")
    try:
        row = json.loads(content or b"null")
    except ValueError:
        return None
    return row if isinstance(row, dict) and {f.name for f in RESULTS} <= set(row) else None


def write_results(store: Store, rows: list[Row]) -> None:
    """The table of the cohort, for programs and for spreadsheets, and the colours of its maps, for viewers."""
    table = pa.Table.from_pylist(rows, schema=RESULTS)
    parquet, text = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    pyarrow.csv.write_csv(table, text)
    store.write("results.parquet", parquet.getvalue())
    store.write("results.csv", text.getvalue())
    for name, content in colour_tables().items():
        store.write(f"colours/{name}", content)


def write_report(
    store: Store,
    rows: list[Row],
    facts: dict[str, Any],
    scores: list[Row] | None = None,
    believed: Mapping[str, Mapping[str, Calibration]] | None = None,
    where: str | None = "",
) -> None:
    """The report of the cohort. Cases that were done before are shown as what they are: done.

    `where` is the folder of the store that holds the `cases`; None where there are no pictures of them.
    """
    shown = [row | {"status": "ok", "reason": ""} if row["status"] == "skipped" else row for row in rows]
    done = [row["case_id"] for row in shown if row["status"] == "ok" and where is not None]
    with _local_pictures(store, [f"{where}{folder_of(case_id)}" for case_id in done]) as root:
        pictures = {case_id: root / f"{where}{folder_of(case_id)}" / "pictures.json" for case_id in done}
        report.write_report(root / "report.html", shown, pictures, scores, believed, about=facts)
        if store.is_remote:
            beside = [file for name in report.BESIDE for file in root.rglob(name)]
            for file in (root / "report.html", *beside):
                store.write(file.relative_to(root).as_posix(), file.read_bytes())


@contextmanager
def _local_pictures(store: Store, folders: list[str]) -> Iterator[Path]:
    """The root of the store, or a scratch copy of what the report needs of a remote one."""
    if not store.is_remote:
        yield Path(store.root)
        return
    with tempfile.TemporaryDirectory(prefix="diffseglung-") as scratch:
        for folder in folders:
            target = Path(scratch) / folder
            target.mkdir(parents=True)
            for name in ("pictures.json", "preview.png"):
                (target / name).write_bytes(store.read(f"{folder}/{name}") or b"")
        yield Path(scratch)


def about(model: PlacedModel, cohort: str, workers: Workers) -> dict[str, Any]:
    """What the report says of how its results were made."""
    return {
        "model_uri": model.uri,
        "model_version": model.version,
        "config_sha256": digest(model.config),
        "recipe": model.config.name,
        "cohort": cohort,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "hardware": f"{workers.count} workers of {workers.cpus} CPUs and {workers.gpus:g} GPUs",
        **({"labelled_scans": model.labelled_scans} if model.labelled_scans else {}),
    }
