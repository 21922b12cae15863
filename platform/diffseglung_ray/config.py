"""One frozen value says how a job runs: the method's settings, and where and with what it runs.

The method's sections are those of `diffseglung.config.Config`. Four are added here: `resources`, `storage`,
`tracking` and `sweep`. They decide where the work happens, or what a sweep looks for, and never what a given setting
comes to, so `sha256` leaves them out.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import TypeAdapter, ValidationError

from diffseglung.config import RECIPES, Config, digest, recipe
from diffseglung.criteria import CRITERIA
from diffseglung.frozen import frozen
from diffseglung_ray.credentials import has_credentials, hide_in_tracebacks, without_credentials

LABEL = r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?"


class UserError(ValueError):
    """Something the person who started the job can mend. The job prints it in one line and ends 1."""


class WrongArgument(UserError):
    """An argument that cannot be worked with, found before anything is started. The job ends 2."""


@frozen
class ResourceConfig:
    """What one worker gets, and how many there are. A worker is a training process, or one case at a time."""

    workers: int = 0  # 0: one training process (one a GPU where there are GPUs), as many cases as CPUs allow
    min_workers: int = 0  # training goes on with this few when nodes are taken away; 0: with `workers`
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None  # None: one where the cluster has GPUs, otherwise none
    memory_gb_per_worker: float = 0.0  # reserved for each case, so that large CTs are not packed too densely
    nodes: dict[str, str] = field(
        default_factory=dict
    )  # labels of the nodes to work on, e.g. {pool: gpu}; none: any
    local_cpus: int = 0  # of the Ray that a job starts for itself; 0: all of the machine
    object_store_mb: int = 0  # of the Ray that a job starts for itself; 0: as Ray chooses

    def __post_init__(self) -> None:
        """Refuse what no cluster could give."""
        if self.workers < 0 or self.min_workers < 0 or self.local_cpus < 0 or self.object_store_mb < 0:
            raise ValueError("resources are counted from 0 upwards, where 0 leaves the choice to the job")
        if self.workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        if self.cpus_per_worker < 1:
            raise ValueError(f"a worker needs at least one CPU, not cpus_per_worker={self.cpus_per_worker}")
        for text in (*self.nodes, *self.nodes.values()):
            if not re.fullmatch(LABEL, text):
                raise ValueError(
                    f"resources.nodes {text!r} is no label: letters and digits, inside also . _ - and /"
                )


@frozen
class StorageConfig:
    """Where what is not a result is kept while a job runs."""

    checkpoints: str = ""  # folder or URI that every node reaches; empty: `checkpoints` in the workspace
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Without a checkpoint nothing can be resumed."""
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints must be at least 1, not {self.keep_checkpoints}")


@frozen
class TrackingConfig:
    """The names under which MLflow keeps runs and models."""

    experiment: str = "diffseglung"
    model: str = "diffseglung"
    alias: str = "candidate"


@frozen
class SweepConfig:
    """What a sweep looks for, how long it looks, and what a trial gets."""

    criterion: str = "calinski_harabasz"  # what "better" means: see docs/sweeps.md
    share: float = 0.25  # of the full training's steps, for a trial
    rungs: int = 3  # a trial is judged this often, and may be stopped each time but the last
    reduction: int = 2  # one in so many of those judged at a rung goes on
    # At most so many trials at once. It is also a generation: the trials that are suggested, and judged at each rung,
    # together, so that it decides what comes out; how many of them run at the same time does not.
    max_concurrent_trials: int = 4
    reproducible: bool = True  # False: Ray's asynchronous ASHA, which waits for nobody
    workers_per_trial: int = 1
    cpus_per_trial: int = 0  # of each of its workers; 0: as resources.cpus_per_worker
    gpus_per_trial: float | None = None  # of each of its workers, 0.25: four on one; None: as resources
    settings: int = 200  # of features, judged on the finished student
    settings_in_trial: int = 8  # of features, judged at each rung of a trial (--stage both)
    patches: int = 768  # that trials learn from and are judged on, at most

    def __post_init__(self) -> None:
        """Refuse a sweep that could not judge."""
        if self.criterion not in CRITERIA:
            raise ValueError(f"sweep.criterion {self.criterion!r} is none of: {', '.join(CRITERIA)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"sweep.share {self.share} must be a share above 0 and at most 1")
        counts = (self.rungs, self.max_concurrent_trials, self.workers_per_trial, self.settings)
        if min(*counts, self.settings_in_trial, self.patches) < 1 or self.reduction < 2:
            raise ValueError("a sweep counts everything from 1, and sweep.reduction from 2")
        if self.cpus_per_trial < 0 or (self.gpus_per_trial or 0) < 0:
            raise ValueError("sweep.cpus_per_trial and sweep.gpus_per_trial are counted from 0")


# What a trial of a recipe gets where nobody says otherwise.
SWEEPS = {
    "smoke": SweepConfig(settings=24, settings_in_trial=4),
    "paper": SweepConfig(gpus_per_trial=0.5, max_concurrent_trials=8),
    "published": SweepConfig(gpus_per_trial=0.5, max_concurrent_trials=8),
}


@frozen
class RunConfig(Config):
    """The method's settings together with the platform's."""

    resources: ResourceConfig = ResourceConfig()
    storage: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()

    @property
    def method(self) -> Config:
        """What decides the result: the settings without the platform's sections."""
        return Config(**{f.name: getattr(self, f.name) for f in fields(Config)})

    @property
    def sha256(self) -> str:
        """The digest of the method's settings, the same on a laptop and on a cluster."""
        return digest(self)


def load_config(recipe_name: str, file: Path | str | None = None, sets: list[str] | None = None) -> RunConfig:
    """The recipe, then what the YAML file changes, then each `section.key=value`. Errors: WrongArgument."""
    if recipe_name not in RECIPES:
        raise WrongArgument(f"no recipe {recipe_name!r}{_closest(recipe_name, list(RECIPES))}")
    return _changed(recipe(recipe_name), file, sets)


def _changed(base: Config, file: Path | str | None, sets: list[str] | None) -> RunConfig:
    settings = {f.name: getattr(base, f.name) for f in fields(Config)}
    config = RunConfig(**settings, sweep=SWEEPS.get(base.name, SweepConfig()))
    changes = _read_yaml(Path(file)) if file else {}
    for assignment in sets or []:
        _assign(changes, assignment)
    return apply_changes(config, changes)


def apply_changes(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The config with nested `changes` put in, e.g. {"train": {"lr": 1e-3}}. Errors: WrongArgument."""
    values = asdict(config)
    _merge(values, changes, config, "")
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the config"
        problem = first["msg"].removeprefix("Value error, ")
        raise WrongArgument(problem if problem.startswith(where) else f"{where}: {problem}") from error


def _merge(values: dict[str, Any], changes: dict[str, Any], section: Any, path: str) -> None:
    """Put `changes` into `values` in place; a key that the section does not declare is refused."""
    known = [f.name for f in fields(section)]
    for key, value in changes.items():
        name = f"{path}{key}"
        if key not in known:
            while isinstance(value, dict) and value:
                inside, value = next(iter(value.items()))
                name += f".{inside}"
            raise WrongArgument(f"{name} is not a setting{_closest_setting(name, known, path)}")
        inner = getattr(section, key)
        if not is_dataclass(inner):
            values[key] = value
        elif isinstance(value, dict):
            _merge(values[key], value, inner, f"{name}.")
        else:
            names = ", ".join(f"{name}.{f.name}" for f in fields(inner))
            raise WrongArgument(f"{name} is a section, not a value; its settings are {names}")


def _closest_setting(name: str, known: list[str], path: str) -> str:
    every = list(_setting_names(load_config(next(iter(RECIPES)))))
    same_last_part = [full for full in every if full.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = difflib.get_close_matches(name, every, 1, cutoff=0.8) or same_last_part[:1]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; {'the settings of ' + path[:-1] if path else 'the sections'} are {', '.join(known)}"


def _setting_names(section: Any, path: str = "") -> Iterator[str]:
    for f in fields(section):
        inner = getattr(section, f.name)
        if is_dataclass(inner):
            yield from _setting_names(inner, f"{path}{f.name}.")
        else:
            yield f"{path}{f.name}"


def _closest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WrongArgument(f"no config file at {path}")
    try:
        changes = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongArgument(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(changes or {}, dict):
        raise WrongArgument(f"{path} must hold sections with settings, like `train: {{lr: 0.001}}`")
    return changes or {}


def _assign(changes: dict[str, Any], assignment: str) -> None:
    """Write `train.lr=1e-4` into the nested `changes`."""
    name, equals, text = assignment.partition("=")
    if not equals or not name.strip():
        raise WrongArgument(f"--set {assignment}: write it as section.key=value, for example train.lr=1e-4")
    *sections, key = name.strip().split(".")
    for part in sections:
        changes = changes.setdefault(part, {})
        if not isinstance(changes, dict):
            raise WrongArgument(f"--set {assignment}: {part} is a value, not a section")
    try:
        changes[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WrongArgument(f"--set {assignment}: {text!r} cannot be read as a value") from error


def resources_from(args: argparse.Namespace) -> ResourceConfig:
    """The resources that the arguments ask for, whatever model comes to use them."""
    return load_config(args.recipe or next(iter(RECIPES)), args.config, args.sets).resources


def refuse_credentials(argument: str, place: str) -> None:
    """A place is written into logs, tables and reports, where no password belongs. Errors: WrongArgument."""
    if has_credentials(place):
        raise WrongArgument(
            f"{argument} {without_credentials(place)} would carry its credentials into logs and tables: leave them "
            "out, and give them in the environment (AWS_ACCESS_KEY_ID, ...) or in a file of the machine"
        )


class JobParser(argparse.ArgumentParser):
    """Arguments of a job: a wrong one ends the job 2 with one line; nothing is abbreviated or guessed."""

    def __init__(self, description: str | None) -> None:
        """Show the job's own docstring, with its examples, as its help."""
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage."""
        self.exit(2, f"{self.prog}: {message} (--help shows every argument)\n")


def add_config_arguments(parser: argparse.ArgumentParser, *, of_model: bool = False) -> None:
    """The three arguments of every job, for `config_from` or, with `of_model`, `config_of_model`."""
    group = parser.add_argument_group("settings")
    names = f"one of {', '.join(RECIPES)}"
    group.add_argument(
        "--recipe", metavar="NAME", default=None if of_model else "demo",
        help=f"{names} (that of the model, and no other)" if of_model else f"{names} (demo)",
    )  # fmt: skip
    group.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings that change the recipe")
    group.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE",
        help="change one setting, e.g. train.lr=1e-4 or resources.workers=2; may be given again",
    )  # fmt: skip


def config_from(args: argparse.Namespace) -> RunConfig:
    """The config that the arguments of `add_config_arguments` describe."""
    return load_config(args.recipe, args.config, args.sets)


def config_of_model(args: argparse.Namespace, own: Config) -> RunConfig:
    """The settings that a model brings, with what the arguments change. Errors: WrongArgument."""
    if args.recipe not in (None, own.name):
        raise WrongArgument(
            f"--recipe {args.recipe}: this model was trained with recipe {own.name}; leave it out"
        )
    return _changed(own, args.config, args.sets)


def share(text: str) -> float:
    """An argument that is a fraction from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1")
    return value


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job's `main` and end the process: 0 done, 1 it did not succeed, 2 a wrong argument."""
    hide_in_tracebacks()
    try:
        code = main() or 0
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {without_credentials(str(error))}", file=sys.stderr)
        code = 2 if isinstance(error, WrongArgument) else 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever read our output has left, as in `... | head`: nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
