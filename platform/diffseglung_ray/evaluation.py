"""Models and baselines against the truth of a cohort, on the same scans with the same ruler."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from diffseglung.anatomy import find_anatomy
from diffseglung.baselines import BASELINES
from diffseglung.evaluate import score_case, scores_table_markdown
from diffseglung.labels import Tissue
from diffseglung.mixture import MODES
from diffseglung.schemas import SCORES
from diffseglung.segment import decide, observe
from diffseglung.volume import Volume, VolumeConfig, read_labels
from diffseglung_ray.cases import (
    Attempts,
    Row,
    attempts_in,
    map_cases,
    only_case,
    report_failures,
)
from diffseglung_ray.cluster import Workers, case_workers, ray_cluster, refuse_fleeting
from diffseglung_ray.cohort import Case, Loaded, fetched, find_cohort, local_copy, read_case, safe_id
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

OUTCOME = pa.schema([(name, pa.string()) for name in ("case_id", "status", "reason", "scores", "results")])
Labelled = Iterator[tuple[str, np.ndarray]]


def evaluate_cohort(
    cohort: str,
    out: str,
    models: list[str],
    configure: Configure,
    resources: ResourceConfig,
    max_failed: float = 0.1,
) -> None:
    """Score models and baselines: `scores.parquet`, `scores.md` and `report.html` in `out`.

    What each model leaves of its cases lies in `models/<its name>`, as jobs/segment.py leaves it.
    Errors: WrongArgument before anything is started; UserError where too many cases failed.
    """
    registered = any(map(is_registered, models))
    refuse_fleeting(
        tracking=registered, cohort=cohort, out=out, **{f"model {n}": m for n, m in enumerate(models)}
    )
    cases = find_cohort(cohort)
    _check_truth(cohort, cases)
    placed = _place(models, configure)
    store = Store.at(out)
    store.check("out")
    with ray_cluster(resources):
        workers = case_workers(resources)
        outcomes = _score(cases, placed, store, workers)
    results = {name: [json.loads(outcome["results"])[name] for outcome in outcomes] for name in placed}
    for name, rows in results.items():
        write_results(store_of(store, name), rows)
    scores = [row for outcome in outcomes for row in json.loads(outcome["scores"])]
    facts = _facts(placed, cohort, workers)
    _write_scores(store, scores, facts)
    name, shown = next(iter(results.items()), ("", outcomes))
    write_report(store, shown, facts, scores, where=f"models/{name}/" if name else None)
    print(f"{len(placed)} models and {len(BASELINES)} baselines scored: {store.path('scores.md')}")
    report_failures(outcomes, max_failed, store.path("report.html"))


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


def _score(cases: list[Case], placed: dict[str, PlacedModel], store: Store, workers: Workers) -> list[Row]:
    with attempts_in(store) as attempts:
        models = {name: ray.put(model) for name, model in placed.items()}
        rows = list(map_cases(CaseScorer, (models, store, attempts, workers), cases, workers, "score"))
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
            row = row | {"scores": "[]", "results": json.dumps(results)}
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
        truth = read_truth(case["truth"], loaded.volume)
        results: dict[str, Row] = {}
        scores = [
            row
            for method, labels in self.methods(case_id, loaded, results)
            for row in score_case(case_id, method, truth, labels, loaded.volume.spacing_mm)
        ]
        return {
            "case_id": case_id,
            "status": "ok",
            "reason": "",
            "scores": json.dumps(scores),
            "results": json.dumps(results),
        }

    def methods(self, case_id: str, loaded: Loaded, results: dict[str, Row]) -> Labelled:
        """Each method's name and its labels on the volume's grid: the models in every mode, then the baselines.

        What each model is set to do is written as jobs/segment.py writes it; `results` receives its row.
        """
        volume, anatomy = loaded.volume, None
        for name, segmenter in self.segmenters.items():
            uri = segmenter.origin["model_uri"]
            seen = observe(volume, segmenter.model, loaded.lungs)
            own = decide(seen, segmenter.model)
            results[name] = segmenter.write(case_id, loaded, own)
            yield uri, own.labels
            anatomy = anatomy or seen.anatomy
            for mode in MODES:
                if mode != own.mode:
                    yield f"{uri} ({mode})", decide(seen, segmenter.model, mode).labels
        anatomy = anatomy or find_anatomy(volume, lungs=loaded.lungs)
        for name, baseline in BASELINES.items():
            yield name, baseline(volume.hu, anatomy.lungs, anatomy.airways, volume.spacing_mm)


def read_truth(place: str, volume: Volume) -> np.ndarray:
    """The true tissues of a case, uint8 on the volume's grid. Raises ValueError where labels are not ours."""
    with local_copy(place) as path:
        truth = read_labels(path, volume)
    if truth.max(initial=0) > max(Tissue):
        raise ValueError(f"{place}: truth holds the label {truth.max()}; tissues are 1 to {int(max(Tissue))}")
    return truth


def _facts(placed: dict[str, PlacedModel], cohort: str, workers: Workers) -> dict[str, Any]:
    """What scores.md and the report say of how they were made."""
    parts = [about(model, cohort, workers) for model in placed.values()]
    if not parts:
        return {"model_uri": "none: baselines only", "cohort": cohort}
    return parts[0] | {
        key: ", ".join(dict.fromkeys(str(part[key]) for part in parts))
        for key in ("model_uri", "model_version", "config_sha256", "recipe")
    }


def _write_scores(store: Store, scores: list[Row], facts: dict[str, Any]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(scores, schema=SCORES), sink)
    store.write("scores.parquet", sink.getvalue())
    made = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())
    table = scores_table_markdown(scores) if scores else "No case could be scored.\n"
    store.write("scores.md", f"# Scores\n\n{made}\n\n{table}")
