"""Which trial comes next and which may go on, the same whatever worker is faster: Tune's search and its scheduler.

Trials come in generations. What is suggested for one depends on the generations before it, which have ended, and not
on which of their trials ended first (`Suggestions`, over Optuna's TPE). At each rung a trial waits, and gives its
worker away, until all of its generation have got there; then the best of those that were ever judged at that rung
go on (`Rungs`): the rule of ASHA (Li et al. 2020) without its asynchrony, which lets whoever comes first pass.

Nothing here is state that a restored sweep would lack: verdicts follow from what the trials have reported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

Settings = dict[str, Any]
NUMBER = "number"  # a trial's own, from 0, beside its settings


class Suggestions(Searcher):
    """Optuna's TPE (Bergstra et al. 2011), asked anew for each trial with what all earlier generations came to.

    Without `waits` it is told of every trial that has ended, and gives as many as a generation at a time.
    """

    def __init__(
        self,
        space: dict[str, BaseDistribution],
        own: Settings,
        generation: int,
        trials: int,
        seed: int,
        waits: bool = True,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.space, self.own, self.generation, self.trials, self.seed = space, own, generation, trials, seed
        self.waits = waits
        self.numbers: dict[str, int] = {}
        self.settings: list[Settings] = []
        self.scores: dict[int, list[float]] = {}
        self.ended: dict[int, bool] = {}  # and whether with a score

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Nothing that was not known."""
        return True

    def suggest(self, trial_id: str) -> Settings | None:
        """Settings for a new trial; none before the generations before its own have ended. The first is `own`."""
        number = len(self.settings)
        if number >= self.trials:
            return Searcher.FINISHED  # type: ignore[return-value]
        first = number // self.generation * self.generation
        if self.waits and any(earlier not in self.ended for earlier in range(first)):
            return None
        if number - len(self.ended) >= self.generation:
            return None
        settings = self.own if number == 0 else self._ask(number)
        self.numbers[trial_id] = number
        self.settings.append(settings)
        return {**settings, NUMBER: number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial was judged, and goes on or waits."""
        self._learn(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended, was stopped, or failed."""
        self._learn(trial_id, result or {})
        number = self.numbers[trial_id]
        self.ended[number] = bool(self.scores.get(number)) and not error

    def save(self, checkpoint_path: str) -> None:
        """All of it, as JSON."""
        kept = {name: getattr(self, name) for name in ("numbers", "settings", "scores", "ended")}
        Path(checkpoint_path).write_text(json.dumps(kept))

    def restore(self, checkpoint_path: str) -> None:
        """What `save` left."""
        kept = json.loads(Path(checkpoint_path).read_text())
        self.numbers, self.settings = kept["numbers"], kept["settings"]
        self.scores = {int(key): value for key, value in kept["scores"].items()}
        self.ended = {int(key): value for key, value in kept["ended"].items()}

    def _learn(self, trial_id: str, result: dict[str, Any]) -> None:
        number, scores = self.numbers[trial_id], result.get("scores", [])
        if len(scores) > len(self.scores.get(number, [])):
            self.scores[number] = list(scores)

    def _ask(self, number: int) -> Settings:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.generation, constant_liar=True, seed=self.seed + number
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        # What its own generation comes to must not matter: who has ended already depends on who is fast.
        known = number // self.generation * self.generation if self.waits else number
        study.add_trials([self._as_optuna(earlier, earlier < known) for earlier in range(number)])
        return study.ask(self.space).params

    def _as_optuna(self, number: int, known: bool) -> optuna.trial.FrozenTrial:
        if not known or number not in self.ended:
            state, value = TrialState.RUNNING, None
        elif not self.ended[number]:
            state, value = TrialState.FAIL, None
        else:
            state, value = TrialState.COMPLETE, self.scores[number][-1]
        return create_trial(params=self.settings[number], distributions=self.space, state=state, value=value)


class Rungs(TrialScheduler):
    """Stops trials at rungs that all of a generation have reached, by their scores and never by their speed."""

    def __init__(self, rungs: int, reduction: int, generation: int, trials: int) -> None:
        super().__init__()
        self._metric = "score"
        self.rungs, self.reduction, self.generation, self.trials = rungs, reduction, generation, trials
        self.scores: dict[int, list[float]] = {}
        self.ended: set[int] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Nothing that was not known."""
        return True

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        """A new trial, or one of the sweep that is being restored."""
        self._learn(trial, trial.last_result or {})
        if trial.is_finished():
            self.ended.add(trial.config[NUMBER])

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A trial has reached a rung: it goes on, stops, or waits for the others."""
        self._learn(trial, result)
        number = trial.config[NUMBER]
        verdict = self.verdict(number)
        if verdict == TrialScheduler.STOP:
            self.ended.add(number)
        return verdict

    def verdict(self, number: int) -> str:
        """What becomes of a trial at the rungs that it has reached."""
        scores = self.scores.get(number, [])
        if len(scores) >= self.rungs:
            return TrialScheduler.STOP
        for rung in range(1, len(scores) + 1):
            if not self._all_there(number, rung):
                return TrialScheduler.PAUSE
            if number not in self.passing(number, rung):
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def passing(self, number: int, rung: int) -> list[int]:
        """The best of those judged at a rung in a trial's own generation and before it; of equals the earlier."""
        there = [one for one in range(self._last(number)) if len(self.scores.get(one, [])) >= rung]
        best = sorted(there, key=lambda one: (-self.scores[one][rung - 1], one))
        return best[: -(-len(there) // self.reduction)]

    def _all_there(self, number: int, rung: int) -> bool:
        first = number // self.generation * self.generation
        return all(
            one in self.ended or len(self.scores.get(one, [])) >= rung
            for one in range(first, self._last(number))
        )

    def _last(self, number: int) -> int:
        return min((number // self.generation + 1) * self.generation, self.trials)

    def on_trial_complete(self, controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has ended by itself."""
        self._learn(trial, result or {})
        self.ended.add(trial.config[NUMBER])

    def on_trial_error(self, controller: Any, trial: Trial) -> None:
        """A trial has failed; nobody waits for it."""
        self.ended.add(trial.config[NUMBER])

    def on_trial_remove(self, controller: Any, trial: Trial) -> None:
        """A waiting trial was stopped."""
        self.ended.add(trial.config[NUMBER])

    def choose_trial_to_run(self, controller: Any) -> Trial | None:
        """The first that is new or may go on; on the way those that need not wait any longer are stopped."""
        trials = sorted(controller.get_trials(), key=lambda trial: trial.config[NUMBER])
        for trial in trials:
            if trial.status == Trial.PAUSED and self.verdict(trial.config[NUMBER]) == TrialScheduler.STOP:
                controller.stop_trial(trial)
        for trial in trials:
            waits = trial.status == Trial.PAUSED
            if trial.status == Trial.PENDING or (
                waits and self.verdict(trial.config[NUMBER]) == TrialScheduler.CONTINUE
            ):
                return trial
        return None

    def debug_string(self) -> str:
        """One line."""
        return f"{self.rungs} rungs, generations of {self.generation}"

    def _learn(self, trial: Trial, result: dict[str, Any]) -> None:
        number, scores = trial.config[NUMBER], result.get("scores", [])
        if len(scores) > len(self.scores.get(number, [])):
            self.scores[number] = list(scores)
