"""Models and baselines against the truth of a cohort, or what is known of real scans; one ruler for all of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from diffseglung.anatomy import find_anatomy
from diffseglung.baselines import BASELINES
from diffseglung.calibration import Calibration, calibration_markdown, calibrations
from diffseglung.evaluate import score_case, scores_table_markdown
from diffseglung.real import Known, find_known, measure, measures_markdown
from diffseglung.schemas import MEASURES, SCORES
from diffseglung.segment import Segmentation, decide, observe
from diffseglung.volume import Volume, VolumeConfig, resample_labels
from diffseglung_ray.cases import (
    Attempts,
    Row,
    attempts_in,
    map_cases,
    only_case,
    report_failures,
)
from diffseglung_ray.cluster import Workers, case_workers, ray_cluster, refuse_fleeting
from diffseglung_ray.cohort import Case, Loaded, fetched, find_cohort, read_case, read_truth, safe_id
from diffseglung_ray.config import ResourceConfig, WrongArgument
from diffseglung_ray.processes import use_threads
from diffseglung_ray.segmentation import (
    CaseSegmenter,
    Configure,
    PlacedModel,
    about,
    is_registered,
    place_model,
    write_report,
    write_results,
)
from diffseglung_ray.storage import Store

COLUMNS = ("case_id", "status", "reason", "scores", "results", "calibration")
OUTCOME = pa.schema([(name, pa.string()) for name in COLUMNS])
Believed = dict[str, dict[str, Calibration]]  # by method and part of the lung
Labelled = Iterator[tuple[str, np.ndarray, np.ndarray]]
CALIBRATION_NOTE = (
    "Posteriors of the models' own modes against the truth, a voxel of the working grid at a time. Errors found by "
    "entropy: how often a wrong voxel has more of it than a right one (0.5: by chance)."
)


def evaluate_cohort(
    cohort: str,
    out: str,
    models: list[str],
    configure: Configure,
    resources: ResourceConfig,
    max_failed: float = 0.1,
) -> None:
    """Score models and baselines: `scores.parquet`, `scores.md`, `calibration.json` and `report.html` in `out`.

    What each model leaves of its cases lies in `models/<its name>`, as jobs/segment.py leaves it.
    Errors: WrongArgument before anything is started; UserError where too many cases failed.
    """
    _refuse_fleeting(models, cohort=cohort, out=out)
    cases = find_cohort(cohort)
    _check_truth(cohort, cases)
    placed = _place(models, configure)
    store = Store.at(out)
    store.check("out")
    with ray_cluster(resources):
        workers = case_workers(resources)
        outcomes = _score(CaseScorer, cases, placed, store, workers)
    scores, facts, believed = _scores_of(outcomes), _facts(placed, cohort, workers), _believed(outcomes)
    plain = {m: {part: one.to_dict() for part, one in parts.items()} for m, parts in believed.items()}
    store.write("calibration.json", json.dumps(plain) + "\n")

    def as_markdown(rows: list[Row]) -> str:
        return f"{scores_table_markdown(rows)}\n{CALIBRATION_NOTE}\n\n{calibration_markdown(believed)}\n"

    _write_table(store, "scores", scores, SCORES, facts, as_markdown if believed else scores_table_markdown)
    _write_results(store, placed, outcomes, facts, scores, believed)
    print(f"{len(placed)} models and {len(BASELINES)} baselines scored: {store.path('scores.md')}")
    report_failures(outcomes, max_failed, store.path("report.html"))


def evaluate_real(
    folder: str,
    out: str,
    models: list[str],
    configure: Configure,
    resources: ResourceConfig,
    max_failed: float = 0.1,
) -> None:
    """Models and baselines on real scans: `measures.parquet`, `measures.md` and `report.html` in `out`.

    What is known of them stands in for a truth, see `diffseglung.real`. What each model leaves of its cases lies in
    `models/<its name>`. Errors: WrongArgument before anything is started; UserError where too many cases failed.
    """
    _refuse_fleeting(models, real=folder, out=out)
    try:
        known = {safe_id(one.case_id): one for one in find_known(folder)}
    except ValueError as error:
        raise WrongArgument(f"--real: {error}") from error
    cases = [Case(case_id=name, image=str(one.image.absolute())) for name, one in known.items()]
    placed = _place(models, configure)
    store = Store.at(out)
    store.check("out")
    with ray_cluster(resources):
        workers = case_workers(resources)
        outcomes = _score(RealScorer, cases, placed, store, workers, known)
    measures, facts = _scores_of(outcomes), _facts(placed, folder, workers)
    _write_table(store, "measures", measures, MEASURES, facts, measures_markdown)
    _write_results(store, placed, outcomes, facts)
    print(f"{len(placed)} models and {len(BASELINES)} baselines measured: {store.path('measures.md')}")
    report_failures(outcomes, max_failed, store.path("report.html"))


def _refuse_fleeting(models: list[str], **places: str) -> None:
    registered = any(map(is_registered, models))
    refuse_fleeting(tracking=registered, **places, **{f"model {n}": m for n, m in enumerate(models)})


def _scores_of(outcomes: list[Row]) -> list[Row]:
    return [row for outcome in outcomes for row in json.loads(outcome["scores"])]


def _believed(outcomes: list[Row]) -> Believed:
    """How far each model's posteriors can be believed, over all cases."""
    found: dict[str, dict[str, list[Calibration]]] = {}
    for outcome in outcomes:
        for method, parts in json.loads(outcome["calibration"]).items():
            for part, plain in parts.items():
                found.setdefault(method, {}).setdefault(part, []).append(Calibration.from_dict(plain))
    return {m: {part: Calibration.total(ones) for part, ones in parts.items()} for m, parts in found.items()}


def _write_results(
    store: Store,
    placed: dict[str, PlacedModel],
    outcomes: list[Row],
    facts: dict[str, Any],
    scores: list[Row] | None = None,
    believed: Believed | None = None,
) -> None:
    """The table of each model's cases, and the report with the pictures of the first."""
    results = {name: [json.loads(outcome["results"])[name] for outcome in outcomes] for name in placed}
    for name, rows in results.items():
        write_results(store_of(store, name), rows)
    name, shown = next(iter(results.items()), ("", outcomes))
    write_report(store, shown, facts, scores, believed, where=f"models/{name}/" if name else None)


def _check_truth(cohort: str, cases: list[Case]) -> None:
    for case in cases:
        if case.problem:
            raise WrongArgument(f"{cohort}: {case.problem}")
    bare = [case.case_id for case in cases if not case.truth]
    if bare:
        raise WrongArgument(
            f"{cohort} has no truth for {', '.join(bare[:5])}{' and others' if len(bare) > 5 else ''}: evaluation "
            "needs a manifest with a column truth, filled for every case"
        )


def _place(models: list[str], configure: Configure) -> dict[str, PlacedModel]:
    placed: dict[str, PlacedModel] = {}
    for address in models:
        name = safe_id(address.removeprefix("models:/"))
        if name in placed:
            raise WrongArgument(f"--model {address} is given twice")
        placed[name], _ = place_model(address, configure)
    return placed


def store_of(store: Store, name: str) -> Store:
    """Where a model leaves its segmentations."""
    return Store(store.path(f"models/{name}"))


def _score(
    scorer: type[CaseScorer],
    cases: list[Case],
    placed: dict[str, PlacedModel],
    store: Store,
    workers: Workers,
    *known: Any,
) -> list[Row]:
    with attempts_in(store) as attempts:
        models = {name: ray.put(model) for name, model in placed.items()}
        arguments = (models, store, attempts, workers, *known)
        rows = list(map_cases(scorer, arguments, cases, workers, "score"))
    return sorted(rows, key=lambda row: row["case_id"])


class CaseScorer:
    """An actor that segments with every model, and scores them and the baselines, on one case after another."""

    def __init__(
        self, models: dict[str, ray.ObjectRef], store: Store, attempts: Attempts, workers: Workers
    ) -> None:
        use_threads(workers.cpus)
        self.segmenters = {
            name: CaseSegmenter(model, store_of(store, name), attempts, workers, False)
            for name, model in models.items()
        }
        self.attempts = attempts

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """One case in; one row with each model's result and the scores of every method out."""
        case = only_case(batch)
        row = self.attempts.guarded(case["case_id"], lambda: self.score_fetched(case))
        if row["status"] == "failed":
            results = {name: segmenter.without(row) for name, segmenter in self.segmenters.items()}
            row = row | {"scores": "[]", "results": json.dumps(results), "calibration": "{}"}
        return pa.Table.from_pylist([row], schema=OUTCOME)

    def score_fetched(self, case: Row) -> Row:
        """`score`, with the image on this machine until all is written."""
        with fetched(case) as here:
            return self.score(here)

    def score(self, case: Row) -> Row:
        """Every method on one case. Errors in words."""
        case_id = case["case_id"]
        config = next((s.model.config.volume for s in self.segmenters.values()), VolumeConfig())
        loaded = read_case(case, config)
        judge = self.judge(case, loaded.volume)
        results: dict[str, Row] = {}
        believed: dict[str, Any] = {}
        scores = [
            row
            for found in self.methods(case_id, loaded, judge, results, believed)
            for row in judge.rows(*found)
        ]
        return {
            "case_id": case_id,
            "status": "ok",
            "reason": "",
            "scores": json.dumps(scores),
            "results": json.dumps(results),
            "calibration": json.dumps(believed),
        }

    def judge(self, case: Row, volume: Volume) -> Judge:
        """What turns a method's labels of this case into rows."""
        return Truth(case["case_id"], volume, read_truth(case["truth"], volume))

    def methods(
        self, case_id: str, loaded: Loaded, judge: Judge, results: dict[str, Row], believed: dict[str, Any]
    ) -> Labelled:
        """Each method's name, lungs and labels on the volume's grid: the models in every mode, then the baselines.

        What each model is set to do is written as jobs/segment.py writes it; `results` receives its row, `believed`
        how well its posteriors are calibrated.
        """
        volume, anatomy = loaded.volume, None
        for name, segmenter in self.segmenters.items():
            uri = segmenter.origin["model_uri"]
            seen = observe(volume, segmenter.model, loaded.lungs)
            own = decide(seen, segmenter.model)
            results[name] = segmenter.write(case_id, loaded, own)
            if calibration := judge.calibration(own):
                believed[uri] = calibration
            yield uri, seen.anatomy.lungs, own.labels
            anatomy = anatomy or seen.anatomy
            for mode in segmenter.model.mixture.modes:
                if mode != own.mode:
                    labels = decide(seen, segmenter.model, mode).labels
                    yield f"{uri} ({mode})", seen.anatomy.lungs, labels
        anatomy = anatomy or find_anatomy(volume, lungs=loaded.lungs)
        for name, baseline in BASELINES.items():
            labels = baseline(volume.hu, anatomy.lungs, anatomy.airways, volume.spacing_mm)
            yield name, anatomy.lungs, labels


class RealScorer(CaseScorer):
    """The same for a real scan, of which something is known, but no truth."""

    def __init__(
        self,
        models: dict[str, ray.ObjectRef],
        store: Store,
        attempts: Attempts,
        workers: Workers,
        known: dict[str, Known],
    ) -> None:
        super().__init__(models, store, attempts, workers)
        self.known = known

    def judge(self, case: Row, volume: Volume) -> Judge:
        """What is known of the scan, asked of a method's labels."""
        return Knowledge(self.known[case["case_id"]], volume)


class Judge(Protocol):
    """Asks what a method made of one case."""

    def rows(self, method: str, lungs: np.ndarray, labels: np.ndarray) -> list[Row]:
        """Rows of scores, or of measures."""

    def calibration(self, found: Segmentation) -> dict[str, dict[str, list[float]]]:
        """How far its posteriors can be believed, by part of the lung; nothing where nobody knows."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A judge who has the true tissues, uint8 on the volume's grid."""

    case_id: str
    volume: Volume
    tissues: np.ndarray

    def rows(self, method: str, lungs: np.ndarray, labels: np.ndarray) -> list[Row]:
        """Overlap, distance and volume of each tissue."""
        return score_case(self.case_id, method, self.tissues, labels, self.volume.spacing_mm)

    def calibration(self, found: Segmentation) -> dict[str, dict[str, list[float]]]:
        """On the grid of the posteriors."""
        truth = resample_labels(self.tissues, self.volume.grid, found.scan.grid)
        return {part: one.to_dict() for part, one in calibrations(found.posteriors, truth).items()}


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """A judge who knows something of a real scan, but no truth."""

    known: Known
    volume: Volume

    def rows(self, method: str, lungs: np.ndarray, labels: np.ndarray) -> list[Row]:
        """What is known, asked of the labels."""
        return measure(self.known, method, self.volume, lungs, labels)

    def calibration(self, found: Segmentation) -> dict[str, dict[str, list[float]]]:
        """Nobody knows."""
        return {}


def _facts(placed: dict[str, PlacedModel], cohort: str, workers: Workers) -> dict[str, Any]:
    """What scores.md and the report say of how they were made."""
    parts = [about(model, cohort, workers) for model in placed.values()]
    if not parts:
        return {"model_uri": "none: baselines only", "cohort": cohort}
    return parts[0] | {
        key: ", ".join(dict.fromkeys(str(part[key]) for part in parts))
        for key in ("model_uri", "model_version", "config_sha256", "recipe")
    }


def _write_table(
    store: Store,
    name: str,
    rows: list[Row],
    schema: pa.Schema,
    facts: dict[str, Any],
    to_markdown: Callable[[list[Row]], str],
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    store.write(f"{name}.parquet", sink.getvalue())
    made = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())
    table = to_markdown(rows) if rows else "No case could be scored.\n"
    store.write(f"{name}.md", f"# {name.capitalize()}\n\n{made}\n\n{table}")
