"""Ray Tune searches the distillation's settings without a label; the best are trained in full and registered.

A first version of the criterion. On cases that a trial did not train on, two things are asked of its student:
`retrieval`, how often a bottleneck position finds its own descriptor first among all others of its batch, and
`silhouette`, how far apart the tissues that the physical rule names with confidence lie in its features. The score is
their mean, both between 0 and 1. Neither has been shown to order models as Dice would, and the rule's own mistakes
are in the second: a sweep narrows the choice, `jobs/evaluate.py` on scans with a truth makes it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from sklearn.metrics import silhouette_score

from diffseglung.config import Config
from diffseglung.distill import (
    Batch,
    Distillation,
    TrainConfig,
    distill,
    distillation_loss,
    draw_randomness,
    prepare_batch,
)
from diffseglung.features import FeatureConfig, sample_cells
from diffseglung.mixture import CellTable
from diffseglung.patches import seed_of
from diffseglung.schemas import named
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import TissueConfig, anchor_log_likelihood, prior
from diffseglung_ray.cluster import Workers, case_workers, ray_cluster, refuse_fleeting
from diffseglung_ray.config import RunConfig, UserError, WrongArgument
from diffseglung_ray.credentials import keep_from_trials
from diffseglung_ray.fitting import COLUMNS as CELL_COLUMNS
from diffseglung_ray.processes import import_network
from diffseglung_ray.tracking import Run, check_tracking, open_run, start_run
from diffseglung_ray.training import TrainedModel, nodes_in_cluster, train
from diffseglung_ray.training_process import COLUMNS as TRAIN_COLUMNS
from diffseglung_ray.workspace import Workspace, fit_standardiser, open_workspace

SHORT = 0.25  # of the full training, for each trial
RUNGS = 3  # a trial is judged this often, and may be stopped each time
MOST_PATCHES = 768  # that trials learn from and are judged on; they share one copy in Ray's object store
HELD_OUT = 4  # every fourth case judges and does not teach
JUDGED_BATCHES = 8
JUDGED_CELLS = 2000
SURE = 0.7

SWEEP = named(
    "diffseglung.sweep",
    [
        ("trial", pa.string()),
        ("run_id", pa.string()),
        ("step", pa.int32()),
        ("temperature", pa.float64()),
        ("weight", pa.float64()),
        ("timesteps", pa.list_(pa.int32())),
        ("retrieval", pa.float64()),
        ("silhouette", pa.float64()),
        ("score", pa.float64()),
        ("seconds", pa.float64()),
    ],
)

Arrays = dict[str, np.ndarray]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Best:
    """The winner of a sweep: its settings, its score in the sweep, and the model trained in full with them."""

    settings: Row
    model: TrainedModel

    @property
    def in_words(self) -> str:
        """The settings in one line."""
        s = self.settings
        return (
            f"temperature {s['temperature']:.3g}, weight {s['weight']:.3g}, timesteps {tuple(s['timesteps'])}"
        )


@dataclass(frozen=True, slots=True)
class Study:
    """What every trial is told."""

    config: Config
    standardiser: Standardiser


def tune(config: RunConfig, place: str, trials: int, alias: str = "tuned") -> Best:
    """Try `trials` settings of the distillation, write `sweep.parquet`, train the best in full and register it.

    Errors: UserError, in words.
    """
    if trials < 1:
        raise WrongArgument(f"--trials {trials} must be at least 1")
    if config.train.variant == "none":
        raise WrongArgument(
            "train.variant is none: without distillation there is no temperature or weight to search"
        )
    refuse_fleeting(workspace=place)
    workspace = open_workspace(place, config.method)
    with ray_cluster(config.resources):
        check_tracking(nodes_in_cluster())
        study = Study(short(config.method), fit_standardiser(workspace, config.method))
        teach, judge = split_cases(bounded_sample(workspace, config.train.seed), config.train.batch)
        name = f"tune {config.name}"
        with start_run(config.method, config.tracking, name=name, manifest=workspace.manifest) as run:
            rows = search(study, teach, judge, config, workspace, trials, run)
            write_sweep(rows, workspace)
            best = max(rows, key=lambda row: (row["step"], row["score"]))
            run.log_metrics(0, {"best_score": best["score"], "trials": trials})
            chosen = replace(
                config,
                train=replace(config.train, temperature=best["temperature"], weight=best["weight"]),
                features=replace(config.features, timesteps=tuple(best["timesteps"])),
            )
            return Best(best, train(chosen, place, alias=alias, parent=run))


def short(config: Config) -> Config:
    """The same distillation in a quarter of the steps, its warm-up as early in proportion."""
    train = config.train
    steps = max(RUNGS, int(train.steps * SHORT))
    start, end = (int(step * steps / train.steps) for step in train.warmup)
    lr_warmup = int(train.lr_warmup * steps / train.steps)
    return replace(config, train=replace(train, steps=steps, warmup=(start, end), lr_warmup=lr_warmup))


def timestep_sets(config: Config) -> list[tuple[int, ...]]:
    """Where in the noise the finished student may be asked; this costs no training."""
    last = config.student.timesteps
    shares = ((0.04,), (0.2,), (0.4,), (0.04, 0.2))
    return list(
        dict.fromkeys([config.features.timesteps, *(tuple(int(s * last) for s in some) for some in shares)])
    )


def bounded_sample(workspace: Workspace, seed: int) -> Arrays:
    """At most `MOST_PATCHES` patches of all cases, ordered by case and corner."""
    arrays = workspace.sample(list(dict.fromkeys(TRAIN_COLUMNS + CELL_COLUMNS)), MOST_PATCHES, seed)
    order = np.lexsort((arrays["x0"], arrays["y0"], arrays["z0"], arrays["case_id"].astype(str)))
    return {name: column[order] for name, column in arrays.items()}


def split_cases(patches: Arrays, batch: int) -> tuple[Arrays, Arrays]:
    """The patches of three quarters of the cases to learn from, those of the rest to judge on."""
    cases = sorted(set(patches["case_id"]), key=lambda case: seed_of(0, case))
    if len(cases) < 2:
        raise UserError("a sweep needs patches of at least two cases, one to learn from and one to judge on")
    judges = np.isin(patches["case_id"].astype(str), cases[::HELD_OUT])
    teach, judge = ({k: v[rows] for k, v in patches.items()} for rows in (~judges, judges))
    if min(len(teach["hu"]), len(judge["hu"])) < batch:
        raise UserError(
            f"too few patches to fill a batch of {batch} on both sides of a sweep: prepare more cases"
        )
    return teach, judge


def search(
    study: Study, teach: Arrays, judge: Arrays, config: RunConfig, workspace: Workspace, trials: int, run: Run
) -> list[Row]:
    """Every row that the trials reported. The recipe's own settings are the first trial."""
    keep_from_trials()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a box even at verbose=0
    own = {"temperature": config.train.temperature, "weight": config.train.weight}
    space = {"temperature": ray_tune.loguniform(0.03, 0.3), "weight": ray_tune.uniform(0.1, 1.0)}
    workers = case_workers(config.resources)
    diary = Diary(study.config, config, run, trials)
    trainable = ray_tune.with_parameters(trial, study=study, teach=teach, judge=judge)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, trial_resources(workers)),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=min(trials, workers.count),
            search_alg=OptunaSearch(points_to_evaluate=[own], seed=config.train.seed),
            scheduler=ASHAScheduler(time_attr="rung", max_t=RUNGS, grace_period=1, reduction_factor=2),
        ),
        run_config=ray_tune.RunConfig(
            name=run.id,
            storage_path=config.storage.checkpoints or workspace.store.path("checkpoints"),
            callbacks=[diary],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if not diary.rows:
        reasons = "; ".join(str(error).strip().splitlines()[-1] for error in results.errors)
        raise UserError(f"no trial came to an end: {reasons}")
    return diary.rows


def trial_resources(workers: Workers) -> ray_tune.PlacementGroupFactory:
    """What a trial gets: a worker's share, on the nodes that workers may run on."""
    labels = {"bundle_label_selector": [workers.label_selector]} if workers.nodes else {}
    return ray_tune.PlacementGroupFactory([{"CPU": workers.cpus, "GPU": workers.gpus}], **labels)  # type: ignore[arg-type]


def trial(settings: Row, study: Study, teach: Arrays, judge: Arrays) -> None:
    """Train a student for a short while in this process, and report what the held-out cases say of it."""
    began = time.perf_counter()
    import_network()
    config = replace(study.config, train=replace(study.config.train, **settings))
    run = Distillation(config.student, config.train, study.standardiser)
    rungs = {config.train.steps * (i + 1) // RUNGS: i + 1 for i in range(RUNGS)}
    for step, _ in distill(run, shuffled(teach, config.train)):
        if step not in rungs:
            continue
        found = retrieval(run, judge)
        by_timesteps = {
            timesteps: separation(
                run.ema, judge, replace(config.features, timesteps=timesteps), config.tissue
            )
            for timesteps in timestep_sets(config)
        }
        timesteps = max(by_timesteps, key=lambda key: by_timesteps[key])
        silhouette = by_timesteps[timesteps]
        ray_tune.report(
            {
                "rung": rungs[step],
                "step": step,
                "retrieval": found,
                "silhouette": silhouette,
                "score": (found + (silhouette + 1) / 2) / 2,
                "timesteps": list(timesteps),
                "seconds": time.perf_counter() - began,
            }
        )


def shuffled(patches: Arrays, train: TrainConfig) -> Iterator[Batch]:
    """Micro-batches without end, each epoch in an order of its own."""
    micro, epoch = train.micro_batch(1), 0
    while True:
        order = np.random.default_rng((train.seed, epoch)).permutation(len(patches["hu"]))
        for start in range(0, len(order) - micro + 1, micro):
            yield as_batch(patches, order[start : start + micro])
        epoch += 1


def as_batch(patches: Arrays, rows: np.ndarray) -> Batch:
    """Some rows as tensors."""
    return {name: torch.from_numpy(patches[name][rows]) for name in TRAIN_COLUMNS}


@torch.no_grad()
def retrieval(run: Distillation, judge: Arrays) -> float:
    """Share of held-out positions that find their own descriptor first among those of their batch."""
    order = np.random.default_rng(run.config.seed).permutation(len(judge["hu"]))
    micro, found = run.config.micro_batch(1), []
    for i, start in enumerate(range(0, len(order) - micro + 1, micro)):
        if i == JUDGED_BATCHES:
            break
        batch = prepare_batch(as_batch(judge, order[start : start + micro]), run)
        draw = draw_randomness(batch, run, True, 0, i, JUDGED_BATCHES)
        found.append(distillation_loss(run.network, batch, draw, run, 1.0)[1]["retrieval"])
    return float(np.mean(found))


def separation(student: Student, judge: Arrays, features: FeatureConfig, tissue: TissueConfig) -> float:
    """Silhouette (-1 to 1) of the tissues that the physical rule is sure of, in the student's features."""
    cells = CellTable.from_arrow(
        sample_cells(student, {name: judge[name] for name in CELL_COLUMNS}, features)
    )
    logit = anchor_log_likelihood(cells.evidence, cells.reference, tissue) + np.log(prior())
    likely = np.exp(logit - logit.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    named_as, sure = likely.argmax(axis=1), likely.max(axis=1) > SURE
    several = np.isin(named_as, np.flatnonzero(np.bincount(named_as[sure], minlength=likely.shape[1]) > 1))
    rows = np.flatnonzero(sure & several)
    if len(np.unique(named_as[rows])) < 2:
        return 0.0
    rows = np.random.default_rng(features.seed).permutation(rows)[:JUDGED_CELLS]
    x = cells.features[rows]
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)
    return float(silhouette_score(x, named_as[rows])) if len(np.unique(named_as[rows])) > 1 else 0.0


class Diary(ray_tune.Callback):
    """On the driver: a nested MLflow run for each trial, a row for each report, a line for each trial that ends."""

    def __init__(self, method: Config, config: RunConfig, parent: Run, trials: int) -> None:
        self.method, self.config, self.parent, self.trials = method, config, parent, trials
        self.rows: list[Row] = []
        self.runs: dict[str, Run] = {}
        self.ended = 0

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: Row, **info: Any) -> None:
        """A trial has reached a rung."""
        run = self._run(trial)
        row: Row = {name: result.get(name) for name in SWEEP.names if name not in ("trial", "run_id")}
        self.rows.append(row | trial.config | {"trial": trial.trial_id, "run_id": run.id})
        run.log_metrics(
            row["step"], {key: row[key] for key in ("retrieval", "silhouette", "score", "seconds")}
        )
        run.tag(timesteps=str(tuple(row["timesteps"])))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial has run to its end or was stopped early."""
        self._end(trial, "FINISHED")
        last = next(row for row in reversed(self.rows) if row["trial"] == trial.trial_id)
        print(
            f"trial {self.ended}/{self.trials}: temperature {last['temperature']:.3g}, weight {last['weight']:.3g}: "
            f"score {last['score']:.3f} after {last['step']} steps",
            file=sys.stderr,
            flush=True,
        )

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial has failed; the others go on."""
        self._end(trial, "FAILED")
        print(f"trial {self.ended}/{self.trials} failed", file=sys.stderr, flush=True)

    def _run(self, trial: Any) -> Run:
        if trial.trial_id not in self.runs:
            settings = replace(self.method, train=replace(self.method.train, **trial.config))
            name = f"trial {len(self.runs) + 1}"
            self.runs[trial.trial_id] = open_run(
                settings, self.config.tracking, name=name, parent=self.parent
            )
        return self.runs[trial.trial_id]

    def _end(self, trial: Any, status: str) -> None:
        self._run(trial).end(status)
        self.ended += 1


def write_sweep(rows: list[Row], workspace: Workspace) -> None:
    """`sweep.parquet`, a row for each judgement, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SWEEP), sink)
    workspace.store.write("sweep.parquet", sink.getvalue().to_pybytes())
