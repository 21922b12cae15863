"""Ray Tune searches without a label: what has to be trained, and within it what has not.

`train`: temperature, weight, learning rates and projection size, each trial a short training that is judged at rungs
and may be stopped there (`trial.py`, `sweep_order.py`). `features`: timesteps, clusters, covariance and neighbours,
on one frozen student (`diffseglung.feature_search`). `both`: each trial searches a few settings of the features at
each rung; the best trial is trained in full, and its student's features are searched at length.

"Better" is a number of `diffseglung.criteria` on cases that a trial did not train on (docs/sweeps.md).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler

from diffseglung.config import Config
from diffseglung.criteria import in_doubt
from diffseglung.feature_search import SEEING, Columns, Judgement, Setting, judged_modes, split_cases
from diffseglung.model import Model
from diffseglung.report.sweep import sweep_page
from diffseglung.schemas import named
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung_ray.cluster import Workers, case_workers, ray_cluster, refuse_fleeting, train_workers
from diffseglung_ray.config import ResourceConfig, RunConfig, SweepConfig, UserError, WrongArgument
from diffseglung_ray.credentials import keep_from_trials
from diffseglung_ray.fitting import COLUMNS as CELL_COLUMNS
from diffseglung_ray.sweep_order import NUMBER, Rungs, Suggestions
from diffseglung_ray.tracking import BEAT_S, Run, check_tracking, fetch_model, open_run, start_run
from diffseglung_ray.training import TrainedModel, fitted, nodes_in_cluster, publish, train
from diffseglung_ray.training_process import COLUMNS as TRAIN_COLUMNS
from diffseglung_ray.trial import Settings, Study, put_into, searched, trial, usual_tiles
from diffseglung_ray.workspace import Workspace, fit_standardiser, open_workspace

STAGES = ("train", "features", "both")
TRIAL_FAILURES = 2  # a trial goes on from its last rung on another machine so often
PARAMETERS = ("temperature", "weight", "embedding", "lr", "lr_heads")
SETTINGS_A_CALL = 20  # of which the tracking server hears at once
CHOSEN = ("timesteps", "combine", "clusters", "covariance", "potts", "flow_time", "edge_hu")

SWEEP = named(
    "diffseglung.sweep",
    [
        ("sweep", pa.string()),
        ("stage", pa.string()),
        ("trial", pa.int32()),
        ("run_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("best", pa.bool_()),
        ("rung", pa.int32()),
        ("step", pa.int32()),
        *((name, pa.int32() if name == "embedding" else pa.float64()) for name in PARAMETERS),
        ("timesteps", pa.string()),
        ("combine", pa.string()),
        ("clusters", pa.int32()),
        ("covariance", pa.string()),
        ("potts", pa.float64()),
        ("flow_time", pa.float64()),
        ("edge_hu", pa.float64()),
        ("criterion", pa.string()),
        ("score", pa.float64()),
        ("scores", pa.list_(pa.float64())),
        ("scan_seconds", pa.float64()),
        ("seconds", pa.float64()),
    ],
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Best:
    """The winner of a sweep: its row, and the model with its settings in the registry."""

    row: Row
    model: TrainedModel

    @property
    def in_words(self) -> str:
        """The settings in one line."""
        trained = [f"{name} {self.row[name]:.3g}" for name in PARAMETERS if self.row.get(name) is not None]
        return ", ".join([*trained, *(f"{name} {self.row[name]}" for name in CHOSEN)])


def tune(
    config: RunConfig,
    place: str,
    trials: int,
    alias: str = "tuned",
    stage: str = "both",
    model: str | None = None,
) -> Best:
    """Try `trials` settings, write `sweep.parquet` and `sweep.html`, register the best under `alias`.

    Stage `features` searches those of `model`, or of the alias that jobs/train.py gives. A sweep that was killed before
    its end goes on where it was, in its own MLflow run, when it is asked for again. Errors: UserError, in words.
    """
    check_arguments(config, trials, stage, model)
    refuse_fleeting(workspace=place, model=model)
    workspace = open_workspace(place, config.method)
    frozen = frozen_model(config, model) if stage == "features" else None
    with ray_cluster(config.resources):
        check_tracking(nodes_in_cluster())
        warn(config)
        sample = bounded_sample(workspace, config)
        try:
            teach, judge = split_cases(sample, config.train.batch)
        except ValueError as error:
            raise UserError(str(error)) from error
        asked = f"{stage} {trials} {model} {config.sweep}"
        about = {"sweep_sha256": sha256(asked.encode()).hexdigest()}
        details = {"name": f"tune {config.name}", "manifest": workspace.manifest, "about": about}
        with start_run(config.method, config.tracking, **details, go_on=True) as run, beating(run):
            standardiser = frozen.standardiser if frozen else fit_standardiser(workspace, config.method)
            method = config.method if frozen else short(config.method, config.sweep)
            study = study_of(config, method, standardiser, teach, judge, workspace, stage)
            sweep = Sweep(config, workspace, study, run, alias)
            best = sweep.features_alone(frozen, trials) if frozen else sweep.trained(trials, stage)
            run.tag(best_trial=str(best.row["trial"]), best_stage=best.row["stage"], model=best.model.uri)
    return best


@contextmanager
def beating(run: Run) -> Iterator[None]:
    """Say again and again that this driver lives, so that no other takes its sweep over."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(BEAT_S):
            with suppress(Exception):  # a tracking server that is away for a while is no reason to end
                run.beat()

    threading.Thread(target=work, name="beat", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def check_arguments(config: RunConfig, trials: int, stage: str, model: str | None) -> None:
    """Refuse, before anything is started, what no sweep could do. Errors: WrongArgument."""
    if trials < 1:
        raise WrongArgument(f"--trials {trials} must be at least 1")
    if stage not in STAGES:
        raise WrongArgument(f"--stage {stage} is none of: {', '.join(STAGES)}")
    if stage != "features" and model is not None:
        raise WrongArgument(
            f"--model is the student of --stage features; --stage {stage} trains students of its own"
        )
    if stage != "features" and config.train.variant == "none":
        raise WrongArgument(
            "train.variant is none: without distillation there is no temperature or weight to search; "
            "--stage features searches what needs no training"
        )
    try:
        config.train.micro_batch(config.sweep.workers_per_trial)
    except ValueError as error:
        raise WrongArgument(f"sweep.workers_per_trial {config.sweep.workers_per_trial}: {error}") from error


def frozen_model(config: RunConfig, model: str | None) -> Model:
    """The model whose features are searched. Errors: WrongArgument where these settings are not its own."""
    address = model or f"models:/{config.tracking.model}@{config.tracking.alias}"
    found = Model.load(fetch_model(address).path)
    for section in ("student", "patches", "teacher"):
        if getattr(found.config, section) != getattr(config, section):
            raise WrongArgument(
                f"{address} was trained with recipe {found.config.name} and another {section} than these settings: "
                "give its own --recipe, and what was changed of it"
            )
    return found


def warn(config: RunConfig) -> None:
    """Say what the winner will not change, and how far the criterion can be trusted."""
    doubt = in_doubt(config.sweep.criterion, judged_modes(config.method))
    if doubt:
        print(f"warning: {doubt}", file=sys.stderr)
    if config.mixture.mode not in SEEING:
        print(
            f"warning: mixture.mode {config.mixture.mode} does not look at the student's features. The sweep is judged "
            f"by the modes that do ({' and '.join(SEEING)}); the model keeps its mode, so that its labels change only "
            "where you choose one of these, for example with --set mixture.mode=anchored_distilled",
            file=sys.stderr,
        )


def short(config: Config, sweep: SweepConfig) -> Config:
    """The same distillation in a share of the steps, its warm-up as early in proportion."""
    train = config.train
    steps = max(sweep.rungs, int(train.steps * sweep.share))
    start, end = (int(step * steps / train.steps) for step in train.warmup)
    lr_warmup = int(train.lr_warmup * steps / train.steps)
    return replace(config, train=replace(train, steps=steps, warmup=(start, end), lr_warmup=lr_warmup))


def bounded_sample(workspace: Workspace, config: RunConfig) -> Columns:
    """Patches of all cases, bounded, ordered by case and corner; trials share one copy in Ray's object store."""
    columns = list(dict.fromkeys(TRAIN_COLUMNS + CELL_COLUMNS))
    arrays = workspace.sample(columns, config.sweep.patches, config.train.seed)
    keys = (arrays["x0"], arrays["y0"], arrays["z0"], arrays["case_id"].astype(str))
    order = np.lexsort(keys)
    return {name: column[order] for name, column in arrays.items()}


def study_of(
    config: RunConfig,
    method: Config,
    standardiser: Standardiser,
    teach: Columns,
    judge: Columns,
    workspace: Workspace,
    stage: str,
) -> Study:
    """What every trial is told."""
    workers = trial_workers(config)
    cases = pq.read_table(pa.BufferReader(workspace.store.read("cases.parquet") or b""), columns=["lung_ml"])
    return Study(
        method,
        standardiser,
        config.sweep,
        ray.put(teach),
        ray.put(judge),
        inner=stage == "both",
        tiles=usual_tiles(cases["lung_ml"].to_numpy(), method),
        cpus=workers.cpus,
        gpus=workers.gpus,
    )


def trial_workers(config: RunConfig) -> Workers:
    """What each process of a trial gets: the sweep's own share, or a worker's; no GPU where there are none."""
    asked: ResourceConfig = config.resources
    workers = case_workers(asked)
    cpus = config.sweep.cpus_per_trial or workers.cpus
    # A recipe's share of a GPU is for clusters that have some.
    gpus = (
        workers.gpus
        if config.sweep.gpus_per_trial is None or not workers.gpus
        else config.sweep.gpus_per_trial
    )
    return replace(workers, cpus=cpus, gpus=gpus)


def trial_resources(workers: Workers, processes: int = 1) -> ray_tune.PlacementGroupFactory:
    """What a trial gets: a share for each of its processes, on the nodes that workers may run on."""
    bundles = [{"CPU": workers.cpus, "GPU": workers.gpus}] * processes
    labels = {"bundle_label_selector": [workers.label_selector] * processes} if workers.nodes else {}
    return ray_tune.PlacementGroupFactory(bundles, **labels)  # type: ignore[arg-type]


def space_of(config: Config) -> tuple[dict[str, BaseDistribution], Settings]:
    """Where the trained settings are searched, around the recipe's own, and these."""
    train, embedding = config.train, config.student.embedding
    heads = train.lr if train.lr_heads is None else train.lr_heads

    def around(value: float, times: float) -> FloatDistribution:
        return FloatDistribution(value / times, value * times, log=True)

    space: dict[str, BaseDistribution] = {
        "temperature": FloatDistribution(min(0.02, train.temperature), max(0.5, train.temperature), log=True),
        "weight": FloatDistribution(min(0.1, train.weight), max(1.0, train.weight)),
        "embedding": CategoricalDistribution([embedding // 2, embedding, embedding * 2]),
        "lr": around(train.lr, 4),
        "lr_heads": around(heads, 4),
    }
    own = {"temperature": train.temperature, "weight": train.weight, "embedding": embedding}
    return space, own | {"lr": train.lr, "lr_heads": heads}


@dataclass(slots=True)
class Sweep:
    """One sweep on its way: what it is asked, and where it writes."""

    config: RunConfig
    workspace: Workspace
    study: Study
    run: Run
    alias: str

    def trained(self, trials: int, stage: str) -> Best:
        """Trials of short trainings; the best settings trained in full, and with `both` its features searched."""
        rows = search(self.study, self.config, self.workspace, trials, self.run)
        best = mark_best(rows)
        won = dict(best)
        self.write(rows)
        chosen = put_into(self.config, best)
        method = Config(**{name: getattr(chosen, name) for name in Config.__dataclass_fields__})
        if stage == "train":
            return Best(best, train(chosen, self.workspace.store.root, alias=self.alias, parent=self.run))

        def choose(student: Student, standardiser: Standardiser) -> Config:
            found = self.features(student, method, self.config.sweep.settings)
            won.update(mark_best(found)["setting"].row())
            self.write(rows + found)
            return setting_of(found).put_into(method)

        model = train(chosen, self.workspace.store.root, alias=self.alias, parent=self.run, choose=choose)
        return Best(won, model)

    def features_alone(self, frozen: Model, settings: int) -> Best:
        """The features of a student that is there already; the mixture fitted anew with the best."""
        rows = self.features(frozen.student, self.config.method, settings)
        best = mark_best(rows)
        self.write(rows)
        method = best["setting"].put_into(self.config.method)
        info = frozen.info | {"sweep": self.run.id}
        workers = train_workers(self.config.resources)
        model, _ = fitted(method, frozen.student.cpu(), frozen.standardiser, self.workspace, workers, info)
        version = publish(model, self.run, self.config, self.alias, {"sweep": self.run.id})
        return Best(best, TrainedModel(version.version, version.uri, self.run.id, {"score": best["score"]}))

    def features(self, student: Student, method: Config, count: int) -> list[Row]:
        """A row for each setting, judged by one worker; a child of the sweep's run holds the curve."""
        known = self.run.children(**part_of("features")).get("features")
        child = (
            Run(self.run.experiment_id, known)
            if known
            else open_run(
                method, self.config.tracking, name="features", parent=self.run, about=part_of("features")
            )
        )
        rows: list[Row] = []
        logged = child.last_step("score") if known else -1
        curve: list[tuple[int, Row]] = []
        for number, (one, scan_s) in enumerate(self._judgements(student, method, count)):
            rows.append(feature_row(one, number, scan_s, self.config.sweep.criterion, self.run.id, child.id))
            best = max(rows, key=lambda row: row["score"])
            print_setting(number, count, rows[-1], best)
            if number > logged:
                curve.append((number, {"score": one.score, "best_score": best["score"]}))
            if len(curve) == SETTINGS_A_CALL:
                child.log_curves(curve)
                curve = []
        child.log_curves(curve)
        child.end("FINISHED")
        return rows

    def _judgements(self, student: Student, method: Config, count: int) -> Iterator[tuple[Judgement, float]]:
        workers = trial_workers(self.config)
        if not workers.gpus:  # one process does it, and this one has imported all that it needs
            yield from searched(self.study, student, method, count)
            return
        task: Any = ray.remote(searched).options(
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            label_selector=workers.label_selector,
            num_returns="streaming",
        )
        for answer in task.remote(self.study, student.cpu(), method, count):
            yield ray.get(answer)

    def write(self, rows: list[Row]) -> None:
        """`sweep.parquet`, a row a trial, and `sweep.html`, whole or not at all; the page lies with the run too."""
        table = pa.Table.from_pylist(
            [{k: v for k, v in row.items() if k != "setting"} for row in rows], schema=SWEEP
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.workspace.store.write("sweep.parquet", sink.getvalue().to_pybytes())
        doubt = in_doubt(self.config.sweep.criterion, judged_modes(self.config.method))
        page = sweep_page(
            table.to_pylist(),
            title=f"Sweep of recipe {self.config.name}",
            about={"note": doubt, "run": self.run.id},
        )
        self.workspace.store.write("sweep.html", page)
        self.run.log_text("sweep.html", page)
        self.run.log_metrics(
            0, {"best_score": max(r["score"] for r in rows if r["score"] is not None), "trials": len(rows)}
        )


def mark_best(rows: list[Row]) -> Row:
    """The highest score among those that went furthest; of equals the first. Marked in its row."""
    furthest = max((row["rung"] for row in rows if row["score"] is not None), default=None)
    if furthest is None:
        reasons = (
            "; ".join(dict.fromkeys(row["reason"] for row in rows if row["reason"])) or "none was judged"
        )
        raise UserError(f"no trial came to an end: {reasons}")
    best = max((row for row in rows if row["rung"] == furthest), key=lambda row: row["score"])
    best["best"] = True
    return best


def setting_of(rows: list[Row]) -> Setting:
    """The setting of the features in the row that was marked."""
    return next(row["setting"] for row in rows if row["best"])


def feature_row(one: Judgement, number: int, scan_s: float, criterion: str, sweep: str, run_id: str) -> Row:
    """A row of the sweep's table for one setting of the features."""
    return {
        "sweep": sweep,
        "stage": "features",
        "trial": number,
        "run_id": run_id,
        "status": "finished",
        "reason": "",
        "best": False,
        "rung": 1,
        "step": 0,
        "criterion": criterion,
        "score": one.score,
        "scores": [one.score],
        "scan_seconds": scan_s,
        "setting": one.setting,
        **one.setting.row(),
    }


def in_one_line(record: logging.LogRecord) -> bool:
    """What Tune could not save of its own state, without its traceback: it saves all of it again at the next result."""
    if record.exc_info and record.exc_info[1]:
        said = traceback.format_exception_only(record.exc_info[1])[-1].strip().splitlines()[-1]
        record.msg, record.args, record.exc_info = f"{record.getMessage().strip()} {said}", (), None
    return True


def search(study: Study, config: RunConfig, workspace: Workspace, trials: int, run: Run) -> list[Row]:
    """A row for each trial. The recipe's own settings are the first; a sweep that was begun goes on."""
    keep_from_trials()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a box even at verbose=0
    # Each checkpoint of a trial is noted down at once: that is what a killed sweep goes on from, and no excess.
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    # That a tracking server took a second is no advice to whoever follows the table.
    logging.getLogger("ray.tune.utils.util").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.execution.experiment_state").addFilter(in_one_line)
    workers = trial_workers(config)
    diary = Diary(study.config, config, run, trials)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(trial, study=study),
        trial_resources(workers, config.sweep.workers_per_trial),
    )
    folder = config.storage.checkpoints or workspace.store.path("checkpoints")
    place = f"{folder}/{run.id}"
    run_config = ray_tune.RunConfig(
        name=run.id,
        storage_path=folder,
        callbacks=[diary],
        verbose=0,
        failure_config=ray_tune.FailureConfig(max_failures=TRIAL_FAILURES),
        checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=1),
    )
    if ray_tune.Tuner.can_restore(place):
        tuner = ray_tune.Tuner.restore(place, trainable, resume_errored=True)
    else:
        tuner = ray_tune.Tuner(trainable, tune_config=order_of(config, trials), run_config=run_config)
    print(HEAD, file=sys.stderr)
    results = tuner.fit()
    return sorted((diary.row(results[i]) for i in range(len(results))), key=lambda row: row["trial"])


def order_of(config: RunConfig, trials: int) -> ray_tune.TuneConfig:
    """Which trial comes when, and which may go on."""
    sweep = config.sweep
    space, own = space_of(config.method)
    generation = sweep.max_concurrent_trials
    search = Suggestions(space, own, generation, trials, config.train.seed, waits=sweep.reproducible)
    scheduler: Any = Rungs(sweep.rungs, sweep.reduction, generation, trials)
    if not sweep.reproducible:
        scheduler = ASHAScheduler(
            time_attr="rung",
            metric="score",
            mode="max",
            max_t=sweep.rungs,
            grace_period=1,
            reduction_factor=sweep.reduction,
        )
    return ray_tune.TuneConfig(num_samples=trials, search_alg=search, scheduler=scheduler, reuse_actors=True)


HEAD = (
    f"{'trial':>7}  {'rung':>5}  {'temperature':>11} {'weight':>7} {'size':>5} {'lr':>9} {'lr heads':>9}  "
    f"{'score':>7}  best so far"
)


class Diary(ray_tune.Callback):
    """On the driver: a nested MLflow run for each trial, its criterion over time, a line for each judgement."""

    def __init__(self, method: Config, config: RunConfig, parent: Run, trials: int) -> None:
        self.method, self.config, self.parent, self.trials = method, config, parent, trials
        self.runs: dict[str, Run] = {}
        self.best = (0, float("-inf"), 0)  # rung, score, less the number of the trial

    def __getstate__(self) -> dict[str, Any]:
        """What Tune keeps for a restored sweep; the runs of its trials are asked for anew."""
        return self.__dict__ | {"runs": {}}

    def get_state(self) -> dict[str, Any]:
        """What a restored sweep goes on telling."""
        return {"best": list(self.best)}

    def set_state(self, state: dict[str, Any]) -> None:
        """The best that an earlier driver knew."""
        rung, score, number = state["best"]
        self.best = (rung, score, number)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: Row, **info: Any) -> None:
        """A trial has reached a rung."""
        number, run = trial.config[NUMBER], self._run(trial.config)
        self.best = max(self.best, (result["rung"], result["score"], -number))
        self.say(
            number, trial.config, f"{result['rung']}/{self.config.sweep.rungs}", f"{result['score']:7.4f}"
        )
        run.log_metrics(result["step"], {key: result[key] for key in ("score", "scan_seconds", "seconds")})
        run.tag(**{key: str(value) for key, value in result["setting"].items()})

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial has run to its end or was stopped early."""
        result = trial.last_result or {}
        stopped = result.get("rung", 0) < self.config.sweep.rungs
        run = self._run(trial.config)
        run.tag(sweep_status="stopped" if stopped else "finished")
        run.end("FINISHED")
        if stopped:
            self.say(trial.config[NUMBER], trial.config, "", "stopped")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial has failed; the others go on."""
        self._run(trial.config).end("FAILED")
        self.say(trial.config[NUMBER], trial.config, "", "failed")

    def say(self, number: int, settings: Settings, rung: str, score: str) -> None:
        """A line of the table that a person follows."""
        s = settings
        furthest, highest, negative = self.best
        best = f"{highest:.4f} (trial {1 - negative})" if furthest else ""
        print(
            f"{number + 1:>3}/{self.trials:<3}  {rung:>5}  {s['temperature']:>11.3g} {s['weight']:>7.3g} "
            f"{s['embedding']:>5} {s['lr']:>9.2e} {s['lr_heads']:>9.2e}  {score:>7}  {best}",
            file=sys.stderr,
            flush=True,
        )

    def row(self, result: Any) -> Row:
        """A trial's row of the sweep's table."""
        settings, metrics = result.config, result.metrics or {}
        rung = metrics.get("rung", 0)
        status = "failed" if result.error else "finished" if rung == self.config.sweep.rungs else "stopped"
        reason = str(result.error).strip().splitlines()[-1] if result.error else ""
        row: Row = {
            name: metrics.get(name) for name in ("rung", "step", "score", "scores", "scan_seconds", "seconds")
        }
        row |= {
            "sweep": self.parent.id,
            "stage": "train",
            "trial": settings[NUMBER],
            "run_id": self._run(settings).id,
            "status": status,
            "reason": reason,
            "best": False,
            "criterion": self.config.sweep.criterion,
            **{name: settings[name] for name in PARAMETERS},
        }
        if metrics.get("setting"):
            setting = Setting(**metrics["setting"] | {"timesteps": tuple(metrics["setting"]["timesteps"])})
            row |= setting.row()
        return row

    def _run(self, settings: Settings) -> Run:
        if not self.runs:
            known = self.parent.children(**part_of("trial"))
            self.runs = {name: Run(self.parent.experiment_id, one) for name, one in known.items()}
        name = f"trial {settings[NUMBER] + 1}"
        if name not in self.runs:
            config = put_into(self.method, settings)
            self.runs[name] = open_run(
                config, self.config.tracking, name=name, parent=self.parent, about=part_of("trial")
            )
        return self.runs[name]


def part_of(part: str) -> dict[str, str]:
    """The tag that a sweep that goes on finds its runs by, theirs from the first: a driver may be killed any time."""
    return {"sweep_part": part}


def print_setting(number: int, count: int, row: Row, best: Row) -> None:
    """A line now and then, and where a better setting was found."""
    if number == 0:
        print(
            f"{'setting':>9}  {'timesteps':>14} {'combined':>11} {'K':>3} {'covariance':>10} {'Potts':>5} "
            f"{'flow':>5} {'edge':>4}  best, * new",
            file=sys.stderr,
        )
    if row is best or number + 1 == count or (number + 1) % max(1, count // 10) == 0:
        print(
            f"{number + 1:>4}/{count:<4}  {best['timesteps']:>14} {best['combine']:>11} {best['clusters']:>3} "
            f"{best['covariance']:>10} {best['potts']:>5g} {best['flow_time']:>5g} "
            f"{best['edge_hu']:>4g}  {best['score']:.4f}{' *' if row is best else ''}",
            file=sys.stderr,
            flush=True,
        )
