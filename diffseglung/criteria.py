"""What "better" means where nobody drew a label: numbers about a clustering of cells, higher is better in all.

Which of them orders settings as the truth would was measured on phantoms (`benchmarks/criteria.py`, docs/sweeps.md).
Truth is never an argument of any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffseglung.labels import TISSUES

MOST_ROWS = 1500  # a silhouette compares each with each
SURE = 0.7  # posterior above which the physical prototypes count as sure of a cell


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """One clustering of held-out cells, and what it is compared with.

    `space` (n, d) is where the mixture works, `clusters` (n,) what it found there, `names` (n,) the tissues that the
    cells came to be called (values of `Tissue`) after refinement. `hu` (n, 5) are HU percentiles,
    `teacher` (n,) a clustering of the same cells in the teacher's space, `expected` (n,) the tissue that the physical
    prototypes are sure of, 0 where they are not. `noisy` are the names under other noise, `halves` those of two
    mixtures that were fitted on halves of the cohort; None where nobody asks for them.
    """

    space: np.ndarray
    clusters: np.ndarray
    hu: np.ndarray
    teacher: np.ndarray
    expected: np.ndarray
    names: np.ndarray | None = None
    noisy: np.ndarray | None = None
    halves: tuple[np.ndarray, np.ndarray] | None = None


def silhouette(space: np.ndarray, labels: np.ndarray, most: int = MOST_ROWS) -> float:
    """How much nearer cells (n, d) lie to their own cluster than to the next: -1 to 1 (Rousseeuw 1987).

    Of at most `most` cells, the same ones each time; -1 where all are in one cluster.
    """
    from sklearn.metrics import silhouette_score

    rows = np.random.default_rng(0).permutation(len(space))[:most]
    space, labels = space[rows], labels[rows]
    if not 1 < len(np.unique(labels)) < len(labels):
        return -1.0
    return float(silhouette_score(space, labels))


def separation(space: np.ndarray, labels: np.ndarray) -> float:
    """1 / (1 + index of Davies and Bouldin 1979): 1 where clusters are small and far apart, 0 where there is one."""
    from sklearn.metrics import davies_bouldin_score

    if not 1 < len(np.unique(labels)) < len(labels):
        return 0.0
    return float(1 / (1 + davies_bouldin_score(space, labels)))


def dispersion(space: np.ndarray, labels: np.ndarray) -> float:
    """log(1 + index of Calinski and Harabasz 1974): variance between clusters beside that within, from 0 up."""
    from sklearn.metrics import calinski_harabasz_score

    if not 1 < len(np.unique(labels)) < len(labels):
        return 0.0
    return float(np.log1p(calinski_harabasz_score(space, labels)))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Adjusted Rand index of two labellings (n,) (Hubert and Arabie 1985): 1 the same, 0 by chance, names aside.

    0 where either has one label alone: that is always the same, and says nothing.
    """
    from sklearn.metrics import adjusted_rand_score

    if min(len(np.unique(one)), len(np.unique(other))) < 2:
        return 0.0
    return float(adjusted_rand_score(one, other))


def explained(values: np.ndarray, labels: np.ndarray) -> float:
    """Share (0 to 1) of the variance of values (n, d) that the label explains: eta squared, over all columns."""
    total = ((values - values.mean(axis=0)) ** 2).sum()
    if total <= 0:
        return 0.0
    parts = (values[labels == label] for label in np.unique(labels))
    return float(1 - sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts) / total)


def likeness(names: np.ndarray, expected: np.ndarray) -> float:
    """Mean Dice (0 to 1) of the named tissues with those that physics is sure of, over the tissues it is sure of.

    Cells where `expected` is 0 are left out. A mean over tissues, so that healthy lung does not drown the rest.
    """
    sure = expected > 0
    names, expected = names[sure], expected[sure]
    found = []
    for tissue in TISSUES:
        called, there = names == tissue, expected == tissue
        if there.any():
            found.append(2 * (called & there).sum() / (called.sum() + there.sum()))
    return float(np.mean(found)) if found else 0.0


def _named(one: Partition) -> np.ndarray:
    assert one.names is not None, "the judge names the cells for this criterion"
    return one.names


def _noise_stability(one: Partition) -> float:
    assert one.noisy is not None, "the judge draws other noise for this criterion"
    return agreement(_named(one), one.noisy)


def _cohort_stability(one: Partition) -> float:
    assert one.halves is not None, "the judge fits on halves of the cohort for this criterion"
    return agreement(*one.halves)


CRITERIA: dict[str, Callable[[Partition], float]] = {
    "silhouette": lambda one: silhouette(one.space, one.clusters),
    "davies_bouldin": lambda one: separation(one.space, one.clusters),
    "calinski_harabasz": lambda one: dispersion(one.space, one.clusters),
    "noise_stability": _noise_stability,
    "cohort_stability": _cohort_stability,
    "teacher_agreement": lambda one: agreement(one.clusters, one.teacher),
    "hu_purity": lambda one: explained(one.hu, _named(one)),
    "prototype_likeness": lambda one: likeness(_named(one), one.expected),
}
NEEDS_NAMES = ("noise_stability", "cohort_stability", "hu_purity", "prototype_likeness")
NEEDS_NOISE = ("noise_stability",)
NEEDS_HALVES = ("cohort_stability",)
IN_WORDS: dict[str, str] = {
    "silhouette": "silhouette of the clusters in the mixture's own space",
    "davies_bouldin": "1 / (1 + Davies-Bouldin index) there",
    "calinski_harabasz": "log(1 + Calinski-Harabasz index) there",
    "noise_stability": "adjusted Rand index of the named tissues under two draws of noise",
    "cohort_stability": "adjusted Rand index of the named tissues from two halves of the cohort",
    "teacher_agreement": "adjusted Rand index of the clusters with k-means in the teacher's space",
    "hu_purity": "share of the variance of HU percentiles that the named tissues explain",
    "prototype_likeness": "mean Dice of the named tissues with the cells of which physics is sure",
}

# Spearman's rank correlation with the true Dice of each mode over the configurations of `benchmarks/criteria.py`, and
# the 95 % interval of its bootstrap over students and settings.
MEASURED: dict[str, dict[str, tuple[float, float, float]]] = {
    "silhouette": {
        "anchored_distilled": (0.20, -0.78, 0.95),
        "published": (0.36, -0.61, 0.89),
    },
    "davies_bouldin": {
        "anchored_distilled": (0.23, -0.69, 0.99),
        "published": (0.45, -0.36, 0.92),
    },
    "calinski_harabasz": {
        "anchored_distilled": (0.25, -0.61, 1.00),
        "published": (0.41, -0.54, 0.97),
    },
    "noise_stability": {
        "anchored_distilled": (0.50, -0.13, 0.92),
        "published": (-0.62, -0.97, 0.20),
    },
    "cohort_stability": {
        "anchored_distilled": (0.08, -0.95, 0.72),
        "published": (-0.07, -0.79, 0.81),
    },
    "teacher_agreement": {
        "anchored_distilled": (0.01, -0.79, 0.79),
        "published": (-0.41, -0.80, 0.70),
    },
    "hu_purity": {
        "anchored_distilled": (-0.63, -0.99, 0.39),
        "published": (-0.51, -0.95, 0.47),
    },
    "prototype_likeness": {
        "anchored_distilled": (-0.09, -0.95, 0.67),
        "published": (0.53, -0.42, 0.98),
    },
}


def in_doubt(criterion: str, modes: Sequence[str]) -> str:
    """In words, that a criterion was not shown to order settings better than chance; nothing where it was."""
    found = {mode: MEASURED[criterion][mode] for mode in modes}
    unsure = [
        f"{mode} {rank:+.2f}, 95% interval {low:+.2f} to {high:+.2f}"
        for mode, (rank, low, high) in found.items()
        if low <= 0
    ]
    if not unsure:
        return ""
    return (
        f"on phantoms the criterion {criterion} was not shown to order settings better than chance (rank correlation "
        f"with the true Dice: {'; '.join(unsure)}): check the winner with jobs/evaluate.py on scans with a truth "
        "before you use it"
    )
