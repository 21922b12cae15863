"""Each criterion says "better" of what is better, on data whose answer is known by construction."""

from dataclasses import replace

import numpy as np
import pytest

from diffseglung.criteria import (
    CRITERIA,
    IN_WORDS,
    MEASURED,
    Partition,
    agreement,
    dispersion,
    explained,
    in_doubt,
    likeness,
    separation,
    silhouette,
)
from diffseglung.labels import Tissue

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 3, 900)


def blobs(apart: float) -> np.ndarray:
    """Three round clouds in a plane, so many spreads apart."""
    middle = np.array([(0, 0), (1, 0), (0, 1)]) * apart
    return middle[TRUE] + np.random.default_rng(1).normal(size=(len(TRUE), 2))


@pytest.mark.parametrize("criterion", [silhouette, separation, dispersion])
def test_clusters_that_lie_apart_are_better_than_ones_that_overlap_or_are_drawn_by_chance(criterion) -> None:
    chance = RNG.integers(0, 3, len(TRUE))
    far, near, none = criterion(blobs(8), TRUE), criterion(blobs(2), TRUE), criterion(blobs(8), chance)
    assert far > near > none


@pytest.mark.parametrize(("criterion", "worst"), [(silhouette, -1), (separation, 0), (dispersion, 0)])
def test_one_cluster_alone_is_the_worst(criterion, worst: float) -> None:
    assert criterion(blobs(8), np.zeros(len(TRUE))) == worst


def test_geometry_does_not_know_how_wide_a_space_is_scaled() -> None:
    for criterion in (silhouette, separation, dispersion):
        assert criterion(blobs(3) * 1000, TRUE) == pytest.approx(criterion(blobs(3), TRUE))


def test_agreement_asks_who_is_together_and_not_what_it_is_called() -> None:
    assert agreement(TRUE, (TRUE + 1) % 3) == 1
    assert abs(agreement(TRUE, RNG.permutation(TRUE))) < 0.02
    half = np.where(RNG.random(len(TRUE)) < 0.5, TRUE, RNG.permutation(TRUE))
    assert 0.05 < agreement(TRUE, half) < 0.6


def test_a_label_that_never_changes_is_not_called_stable() -> None:
    assert agreement(np.ones(9), np.ones(9)) == 0


def test_the_share_that_labels_explain_is_that_of_the_analysis_of_variance() -> None:
    values = blobs(4)
    within = sum(((values[k == TRUE] - values[k == TRUE].mean(0)) ** 2).sum() for k in range(3))
    total = ((values - values.mean(0)) ** 2).sum()
    assert explained(values, TRUE) == pytest.approx(1 - within / total)
    assert explained(values, np.zeros(len(TRUE))) == pytest.approx(0)
    assert explained(values, np.arange(len(TRUE))) == pytest.approx(1)
    assert explained(np.ones((9, 2)), np.arange(9)) == 0


def test_a_rare_tissue_counts_as_much_as_a_common_one() -> None:
    expected = np.array([Tissue.HEALTHY] * 98 + [Tissue.CAVITY] * 2)
    assert likeness(expected, expected) == 1
    missed = np.full(100, Tissue.HEALTHY)
    assert likeness(missed, expected) == pytest.approx((2 * 98 / 198) / 2)


def test_cells_that_physics_is_not_sure_of_are_not_asked() -> None:
    expected = np.array([Tissue.HEALTHY, Tissue.EMPHYSEMA, 0, 0])
    names = np.array([Tissue.HEALTHY, Tissue.EMPHYSEMA, Tissue.CAVITY, Tissue.FIBROSIS])
    assert likeness(names, expected) == 1
    assert likeness(names, np.zeros(4, int)) == 0


def partition(names: np.ndarray) -> Partition:
    """Cells whose every view agrees with `TRUE`."""
    hu = (TRUE[:, None] * 300 - 900 + RNG.normal(0, 20, (len(TRUE), 5))).astype(float)
    return Partition(
        blobs(8), names, hu, TRUE, TRUE + 1, names + 1, noisy=TRUE + 1, halves=(names + 1, TRUE + 1)
    )


def test_every_criterion_prefers_the_right_clustering_to_one_by_chance_and_says_what_it_is() -> None:
    right, wrong = partition(TRUE), partition(RNG.permutation(TRUE))
    for name, criterion in CRITERIA.items():
        assert criterion(right) > criterion(wrong), name
    assert set(IN_WORDS) == set(CRITERIA) == set(MEASURED)


def test_what_has_to_be_drawn_anew_is_missed_where_nobody_drew_it() -> None:
    with pytest.raises(AssertionError, match="other noise"):
        CRITERIA["noise_stability"](replace(partition(TRUE), noisy=None))


def test_doubt_is_told_where_the_interval_of_a_mode_holds_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"published": (0.3, -0.1, 0.6), "anchored_distilled": (0.6, 0.2, 0.8)}
    monkeypatch.setitem(MEASURED, "silhouette", measured)
    assert in_doubt("silhouette", ["anchored_distilled"]) == ""
    said = in_doubt("silhouette", list(measured))
    assert "not shown to order settings better than chance" in said
    assert "published +0.30, 95% interval -0.10 to +0.60" in said
    assert "anchored_distilled" not in said
