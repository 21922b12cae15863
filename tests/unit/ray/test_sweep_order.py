"""Whoever is faster, the same trials are suggested and the same ones go on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from diffseglung_ray.sweep_order import NUMBER, Rungs, Suggestions

SPACE = {"x": FloatDistribution(0.01, 1, log=True), "size": CategoricalDistribution([8, 16])}
OWN = {"x": 0.1, "size": 8}
GENERATION, TRIALS, RUNGS = 4, 10, 3


@dataclass
class MadeTrial:
    """As much of a trial of Tune's as a scheduler looks at."""

    trial_id: str
    config: dict[str, Any]
    status: str = "PENDING"
    last_result: dict[str, Any] = field(default_factory=dict)

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


class Sweep:
    """What Tune does with a searcher and a scheduler, on workers whose speed is drawn by chance."""

    def __init__(self, seed: int, workers: int = 2, fails: int | None = None) -> None:
        self.rng, self.workers, self.fails = np.random.default_rng(seed), workers, fails
        self.searcher = Suggestions(SPACE, OWN, GENERATION, TRIALS, seed=0)
        self.scheduler = Rungs(RUNGS, 2, GENERATION, TRIALS)
        self.trials: list[MadeTrial] = []

    def get_trials(self) -> list[MadeTrial]:
        return self.trials

    def stop_trial(self, trial: MadeTrial) -> None:
        self.scheduler.on_trial_remove(self, trial)
        self.end(trial, None)

    def end(self, trial: MadeTrial, result: dict[str, Any] | None, status: str = "TERMINATED") -> None:
        trial.status = status
        self.searcher.on_trial_complete(trial.trial_id, result, error=status == "ERROR")

    def ask(self) -> None:
        if len(self.trials) < TRIALS:
            trial_id = str(self.rng.integers(1 << 60))
            config = self.searcher.suggest(trial_id)
            if config is not None:
                self.trials.append(MadeTrial(trial_id, config))
                self.scheduler.on_trial_add(self, self.trials[-1])

    def step(self) -> bool:
        """Start what may run, then let one of the running trials, by chance, reach its next rung."""
        self.ask()
        running = [trial for trial in self.trials if trial.status == "RUNNING"]
        while len(running) < self.workers and (chosen := self.scheduler.choose_trial_to_run(self)):
            chosen.status = "RUNNING"
            running.append(chosen)
        if not running:
            return len(self.trials) < TRIALS
        trial = running[self.rng.integers(len(running))]
        if trial.config[NUMBER] == self.fails:
            self.scheduler.on_trial_error(self, trial)
            self.end(trial, None, "ERROR")
            return True
        scores = [*trial.last_result.get("scores", [])]
        quality = 1 - abs(np.log10(trial.config["x"]) + 0.5)
        result = {"scores": [*scores, quality + 0.01 * len(scores)]}
        decision = self.scheduler.on_trial_result(self, trial, result)
        trial.last_result = result
        if decision == TrialScheduler.STOP:
            self.scheduler.on_trial_complete(self, trial, result)
            self.end(trial, result)
        else:
            self.searcher.on_trial_result(trial.trial_id, result)
            trial.status = "PAUSED" if decision == TrialScheduler.PAUSE else "RUNNING"
        return True

    def run(self) -> dict[int, tuple[float, int]]:
        """Number -> what was tried and how far it went."""
        for _ in range(1000):
            if not self.step() and all(trial.is_finished() for trial in self.trials):
                break
        assert all(trial.is_finished() for trial in self.trials)
        return {t.config[NUMBER]: (t.config["x"], len(t.last_result.get("scores", []))) for t in self.trials}


def test_the_same_trials_come_and_go_on_whoever_is_faster() -> None:
    first = Sweep(0, workers=1).run()
    assert len(first) == TRIALS
    for seed in range(1, 12):
        assert Sweep(seed, workers=1 + seed % 4).run() == first


def test_the_recipe_comes_first_and_the_worse_half_of_a_generation_stops_at_its_first_rung() -> None:
    found = Sweep(0).run()
    assert found[0][0] == OWN["x"]
    reached = [found[number][1] for number in range(GENERATION)]
    assert sorted(reached) == [1, 1, 2, 3]
    quality = [-abs(np.log10(found[number][0]) + 0.5) for number in range(GENERATION)]
    assert np.argmax(quality) == np.argmax(reached)


def test_a_later_generation_is_measured_by_the_earlier_ones_too() -> None:
    scheduler = Rungs(RUNGS, 2, generation=2, trials=4)
    scheduler.scores = {0: [0.9], 1: [0.8], 2: [0.1], 3: [0.2]}
    assert scheduler.passing(0, 1) == [0]
    assert scheduler.passing(2, 1) == [0, 1]
    assert [scheduler.verdict(number) for number in (2, 3)] == [TrialScheduler.STOP] * 2


def test_nobody_waits_for_a_trial_that_failed() -> None:
    found = Sweep(3, fails=1).run()
    assert found[1][1] == 0
    assert max(reached for _, reached in found.values()) == RUNGS
    assert Sweep(4, fails=1).run() == found


def test_a_generation_is_asked_for_when_those_before_it_have_ended() -> None:
    searcher = Suggestions(SPACE, OWN, GENERATION, TRIALS, seed=0)
    for number in range(GENERATION):
        assert searcher.suggest(str(number))[NUMBER] == number
    assert searcher.suggest("early") is None
    for number in range(GENERATION):
        searcher.on_trial_complete(str(number), {"scores": [0.1 * number]})
    assert searcher.suggest("late")[NUMBER] == GENERATION


def test_without_waiting_as_many_as_a_generation_are_on_their_way() -> None:
    searcher = Suggestions(SPACE, OWN, GENERATION, TRIALS, seed=0, waits=False)
    for number in range(GENERATION):
        searcher.suggest(str(number))
    assert searcher.suggest("early") is None
    searcher.on_trial_complete("2", {"scores": [0.5]})
    assert searcher.suggest("next")[NUMBER] == GENERATION
    assert searcher.suggest("another") is None


def test_after_all_trials_there_is_no_more() -> None:
    searcher = Suggestions(SPACE, OWN, generation=1, trials=1, seed=0)
    searcher.suggest("0")
    assert searcher.suggest("1") == Searcher.FINISHED


def test_a_restored_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    sweep = Sweep(5)
    while len(sweep.searcher.settings) <= GENERATION:
        sweep.step()
    sweep.searcher.save(str(tmp_path / "kept"))
    restored = Suggestions(SPACE, OWN, GENERATION, TRIALS, seed=0)
    restored.restore(str(tmp_path / "kept"))
    assert restored.suggest("next") == sweep.searcher.suggest("next")


def test_a_restored_scheduler_knows_what_trials_had_reported() -> None:
    sweep = Sweep(6)
    for _ in range(14):
        sweep.step()
    before = {trial.config[NUMBER]: sweep.scheduler.verdict(trial.config[NUMBER]) for trial in sweep.trials}
    again = Rungs(RUNGS, 2, GENERATION, TRIALS)
    for trial in reversed(sweep.trials):  # Tune adds the last to have reported first
        again.on_trial_add(sweep, trial)
    live = [trial.config[NUMBER] for trial in sweep.trials if not trial.is_finished()]
    assert live
    assert {number: again.verdict(number) for number in live} == {number: before[number] for number in live}


@pytest.mark.parametrize("generation", [1, 3, 20])
def test_generations_of_any_size_come_to_an_end(generation: int) -> None:
    sweep = Sweep(7)
    sweep.searcher.generation = sweep.scheduler.generation = generation
    assert len(sweep.run()) == TRIALS
