"""A frozen student is asked once a timestep; every setting after that is what the product would do with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_model import to_numpy

from diffseglung import feature_search
from diffseglung.config import Config, recipe
from diffseglung.criteria import CRITERIA, NEEDS_NAMES
from diffseglung.feature_search import (
    APART,
    EDGE_HU,
    FLOW_TIMES,
    POTTS,
    SEEING,
    Columns,
    Judge,
    Seen,
    Setting,
    best_of,
    judged_modes,
    look,
    search_features,
    split_cases,
    timestep_pool,
    timestep_sets,
)
from diffseglung.features import encode, sample_cells
from diffseglung.mixture import CellTable, couple, fit_cells
from diffseglung.prepare import prepare_case
from diffseglung.refine import by_density, fuse
from diffseglung.schemas import CELL_KEY
from diffseglung.segment import to_voxels
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import ANCHORED, EVIDENCE, to_tissues
from diffseglung.volume import read_volume

CONFIG = recipe("smoke")
PLAIN = Setting((5,), "concatenate", 5, "full", 2.0, 20, 60.0)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(CONFIG.student).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def patches(cohort: Path) -> tuple[Columns, Columns]:
    """Of two phantoms, one to learn from and one to judge on."""
    found = []
    for case in ("phantom-0000", "phantom-0001"):
        table = prepare_case(case, read_volume(cohort.parent / "images" / f"{case}.nii.gz"), CONFIG)
        found.append({name: to_numpy(table[name]) for name in table.column_names})
    return found[0], found[1]


@pytest.fixture(scope="module")
def standardiser(patches: tuple[Columns, Columns]) -> Standardiser:
    return Standardiser.fit(patches[0]["teacher_local"])


@pytest.fixture(scope="module")
def seen(student: Student, patches: tuple[Columns, Columns], standardiser: Standardiser) -> Seen:
    return look(student, *patches, CONFIG, standardiser)


@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_columns_of_what_was_seen_are_what_the_product_would_extract(
    student: Student, patches: tuple[Columns, Columns], seen: Seen, combine: str
) -> None:
    setting = replace(PLAIN, timesteps=(5, 10), combine=combine)
    features = setting.put_into(CONFIG).features
    table = sample_cells(student, patches[0], features).sort_by([(name, "ascending") for name in CELL_KEY])
    there = CellTable.from_arrow(table)
    fitted, judged, redrawn = seen.columns(setting)
    np.testing.assert_array_equal(there.descriptors, seen.fit.descriptors)
    # Not to the bit: a convolution's last bits depend on how many patches it is given at once.
    np.testing.assert_allclose(there.features, fitted, atol=1e-4)
    assert judged.shape == redrawn.shape == (len(seen.judge.evidence), fitted.shape[1])
    assert not np.allclose(judged, redrawn, atol=1e-3)


def test_averaged_timesteps_are_as_wide_as_one(student: Student, patches: tuple[Columns, Columns]) -> None:
    some = {name: patches[0][name][:2] for name in ("hu", "lungs")}
    noise = torch.randn(some["hu"].shape, generator=torch.Generator().manual_seed(0))
    one, two, both = (
        encode(
            student,
            some["hu"],
            some["lungs"],
            noise,
            replace(CONFIG.features, timesteps=t, combine="average"),
        )
        for t in ((5,), (10,), (5, 10))
    )
    np.testing.assert_allclose(both, (one + two) / 2, atol=1e-6)


def test_judging_cells_know_their_neighbours_and_not_those_of_other_patches(seen: Seen) -> None:
    evidence = np.zeros((*seen.grid, len(EVIDENCE)), np.float32)
    evidence.reshape(-1, len(EVIDENCE))[seen.place] = seen.judge.evidence
    inside = evidence[..., 6] > 0
    assert inside.sum() == len(seen.place) == len(seen.judge.evidence)
    depth = CONFIG.patches.size_vox[0] // CONFIG.patches.cell_vox[0]
    apart = inside.reshape(-1, depth + APART, *inside.shape[1:])
    assert apart[:, :depth].any()
    assert not apart[:, depth:].any(), "empty layers lie between patches"
    cell = CONFIG.patches.cell_vox
    hu, lungs = seen.voxels.hu, seen.voxels.lungs
    assert hu.shape == lungs.shape == tuple(n * c for n, c in zip(seen.grid, cell, strict=True))
    held = np.add.reduceat(lungs.sum(axis=(1, 2)), np.arange(0, len(lungs), cell[0]))
    assert (held[inside.any(axis=(1, 2))] > 0).all(), "voxels lie where their cells do"


def test_a_setting_is_found_in_the_config_that_it_was_put_into() -> None:
    setting = Setting((5, 20), "average", 8, "diag", 0.0, 60, 30.0)
    assert Setting.of(setting.put_into(CONFIG)) == setting
    assert setting.row()["timesteps"] == "5+20"


def test_every_set_of_timesteps_can_be_asked_of_the_student() -> None:
    for config in (CONFIG, recipe("demo"), recipe("paper")):
        sets = timestep_sets(config)
        assert config.features.timesteps in sets
        assert len(set(sets)) == len(sets) > 40
        for some in sets:
            replace(
                config, features=replace(config.features, timesteps=some)
            )  # refuses what it cannot be asked
            assert set(some) <= set(timestep_pool(config))


def test_settings_are_judged_by_the_modes_that_look_at_the_student() -> None:
    def with_mode(mode: str) -> Config:
        return replace(CONFIG, mixture=replace(CONFIG.mixture, mode=mode))

    assert judged_modes(with_mode("anchored")) == judged_modes(with_mode("rule")) == SEEING
    assert judged_modes(with_mode("published")) == ("published",)


@pytest.mark.parametrize("setting", [PLAIN, Setting((5, 20), "average", 8, "tied", 0.0, 0, 60.0)])
def test_every_criterion_can_be_had_of_every_mode(
    seen: Seen, standardiser: Standardiser, setting: Setting
) -> None:
    asks = Judge(seen, CONFIG, standardiser)
    found = asks.scores(setting, list(CRITERIA))
    assert set(found) == set(SEEING)
    for scores in found.values():
        assert set(scores) == set(CRITERIA)
        assert np.isfinite(list(scores.values())).all()
    again = Judge(seen, CONFIG, standardiser).score(setting, "hu_purity")
    assert again == pytest.approx(np.mean([found[mode]["hu_purity"] for mode in SEEING]))


def test_what_was_judged_is_not_judged_again(
    seen: Seen, standardiser: Standardiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Judge(seen, CONFIG, standardiser)
    first = asks.score(PLAIN, "hu_purity")
    monkeypatch.setattr(feature_search, "fit_cells", None)
    assert asks.score(PLAIN, "hu_purity") == first


@pytest.mark.parametrize("criterion", ["calinski_harabasz", "hu_purity"])
def test_a_setting_that_a_criterion_cannot_tell_from_another_is_not_judged_twice(
    seen: Seen, standardiser: Standardiser, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Judge(seen, CONFIG, standardiser)
    refined = [replace(PLAIN, potts=4.0), replace(PLAIN, flow_time=8.4), replace(PLAIN, edge_hu=30.0)]
    still = [replace(PLAIN, flow_time=0.0), replace(PLAIN, flow_time=0.0, edge_hu=30.0)]
    others = [*refined, *still, replace(PLAIN, clusters=8), replace(PLAIN, covariance="diag")]
    found = [asks.score(setting, criterion) for setting in (PLAIN, *others)]
    for setting, score in zip((PLAIN, *others), found, strict=True):
        each = asks.scores(setting, (criterion,))
        assert score == pytest.approx(np.mean([each[mode][criterion] for mode in asks.modes]))
    fits = []
    monkeypatch.setattr(feature_search, "fit_cells", lambda *a: fits.append(a[-1]) or fit_cells(*a))
    asks.known.clear()
    for setting in (PLAIN, *others):
        asks.score(setting, criterion)
    more = 4 if criterion in NEEDS_NAMES else 0
    assert fits.count(("published",)) == 3 + more, "refinement matters to names alone"
    assert fits.count(("anchored_distilled",)) == 1 + more, "it has a Gaussian a tissue, whatever K is"


def test_refinement_stays_as_it_is_where_the_criterion_does_not_see_it() -> None:
    def liked(setting: Setting) -> float:
        return setting.potts + setting.flow_time / 3 - setting.edge_hu / 30

    own = Setting.of(CONFIG)
    found = {one.setting for one in search_features(liked, CONFIG, 20, 0, "calinski_harabasz")}
    assert {(s.potts, s.flow_time, s.edge_hu) for s in found} == {(own.potts, own.flow_time, own.edge_hu)}
    best = best_of(list(search_features(liked, CONFIG, 60, 0, "hu_purity"))).setting
    assert (best.potts, best.flow_time, best.edge_hu) == (max(POTTS), max(FLOW_TIMES), min(EDGE_HU))


def test_cells_are_named_as_the_product_would_name_most_of_their_voxels(
    seen: Seen, standardiser: Standardiser
) -> None:
    """The stack of patches is a scan: what `decide` does to it, one step after another."""
    asks = Judge(seen, CONFIG, standardiser)
    table = seen.fit._replace(features=seen.columns(PLAIN)[0])
    mixture = asks.fit(table, CONFIG, ("anchored_distilled",))
    cells = seen.judge._replace(features=seen.columns(PLAIN)[1])
    named = {}
    for flow_time in (0.0, 16.8):
        config = replace(CONFIG, refine=replace(CONFIG.refine, flow_time=flow_time))
        named[flow_time] = asks._names(mixture, cells, "anchored_distilled", config)
        classes = np.zeros((int(np.prod(seen.grid)), len(ANCHORED)), np.float32)
        evidence = np.zeros((len(classes), len(EVIDENCE)), np.float32)
        classes[seen.place], evidence[seen.place] = (
            mixture.classes(cells, "anchored_distilled"),
            cells.evidence,
        )
        dense = couple(
            classes.reshape(*seen.grid, -1), evidence.reshape(*seen.grid, len(EVIDENCE)), config.mixture
        )
        fine = to_voxels(to_tissues(dense), seen.voxels.lungs, config.patches.cell_vox)
        fine = fuse(by_density(fine, seen.voxels, config.refine), seen.voxels, config.refine)
        for cell in range(0, len(seen.place), 97):
            z, y, x = np.unravel_index(seen.place[cell], seen.grid)
            box = tuple(
                slice(n * c, (n + 1) * c) for n, c in zip((z, y, x), CONFIG.patches.cell_vox, strict=True)
            )
            share = fine[(slice(None), *box)].sum(axis=(1, 2, 3))
            if share.any():
                assert named[flow_time][cell] == share.argmax() + 1
    assert (named[0.0] != named[16.8]).any(), "flow moves names"


def liked(setting: Setting) -> float:
    """A score with one best setting."""
    return (setting.combine == "average") + (setting.covariance == "diag") - abs(setting.clusters - 6)


def test_a_search_starts_with_the_recipe_and_finds_what_is_liked_the_same_way_twice() -> None:
    found, again = (list(search_features(liked, CONFIG, 60, 3, "hu_purity")) for _ in range(2))
    assert found == again
    assert found[0].setting == Setting.of(CONFIG)
    assert len(found) == 60
    best = best_of(found)
    assert (best.setting.combine, best.setting.covariance, best.setting.clusters) == ("average", "diag", 6)


def test_of_equals_the_first_wins() -> None:
    found = list(search_features(lambda setting: 1.0, CONFIG, 5, 0, "hu_purity"))
    assert best_of(found) is found[0]


def test_no_case_both_teaches_and_judges() -> None:
    cases = np.repeat([f"case-{i}" for i in range(8)], 6)
    teach, judge = split_cases({"case_id": cases, "hu": np.arange(len(cases))}, fewest=4)
    assert not set(teach["case_id"]) & set(judge["case_id"])
    assert sorted({*teach["hu"], *judge["hu"]}) == list(range(len(cases)))
    assert len(judge["hu"]) == 12


@pytest.mark.parametrize(
    ("cases", "words"), [(["a"] * 9, "at least two cases"), (["a", "b"], "too few patches")]
)
def test_what_is_too_little_for_a_sweep_is_refused_in_words(cases: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_cases({"case_id": np.array(cases), "hu": np.arange(len(cases))}, fewest=4)
