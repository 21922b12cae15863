"""The ways to label a phantom that `accuracy.py` compares: plain ones, ours, ours without a part, and with labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from chain import Seen
from looked import Bench, Lesson, Trained, table
from sklearn.mixture import GaussianMixture

from diffseglung.baselines import BASELINES
from diffseglung.cells import Cells
from diffseglung.config import Config, digest
from diffseglung.labels import TISSUES
from diffseglung.look import Observation
from diffseglung.mixture import CellTable, Mixture, couple, physics
from diffseglung.model import Model
from diffseglung.refine import OFF
from diffseglung.segment import decide, judged
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import name_by_hu

FEW, CLUSTERS = 2, 12
OURS, RULE = "ours (default)", "HU-and-texture rule"
ALONE = "- learning (prototypes alone)"
LABELLED = "NOT label-free: "

Labeller = Callable[[Seen], np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A way to label the scans of a split. `make(split)` learns what it needs; `depends` tells it from other ways."""

    title: str
    seed: int
    depends: str
    make: Callable[[str], Labeller]


def baseline_ways() -> Iterator[Way]:
    """The plain ones; the median line is for infections of real scans."""
    titles = {
        "hu_thresholds": "HU thresholds",
        "hu_thresholds_enclosure": "HU thresholds + enclosure",
        "hu_mixture": "mixture on HU alone",
        "radiomic_kmeans": "K-means on radiomics",
        "hu_texture_rule": RULE,
    }
    for name, title in titles.items():

        def label(seen: Seen, baseline: Callable = BASELINES[name]) -> np.ndarray:
            anatomy = seen.anatomy
            return baseline(seen.volume.hu, anatomy.lungs, anatomy.airways, seen.volume.spacing_mm)

        yield Way(title, 0, name, lambda _, label=label: label)


class Lessons:
    """What the ways of one seed learn from; each mixture is fitted once."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed = bench, seed
        self.kept: dict[str, tuple[Lesson, Model]] = {}

    def learned(self, config: Config, student: Trained | None = None) -> tuple[Lesson, Model]:
        """The cells of the training scans and the model fitted on them."""
        key = digest(config) + (student.sha256 if student else "")
        if key not in self.kept:
            config = replace(config, mixture=replace(config.mixture, seed=self.seed))
            lesson = self.bench.lesson(config, self.seed, student)
            standardiser = student.standardiser if student else Standardiser.fit(lesson.cells.descriptors)
            with self.bench.costs("fitting mixtures"):
                mixture = lesson.fit(config, standardiser)
            network = student.network if student else Student(config.student)
            self.kept[key] = lesson, Model(config, network, standardiser, mixture)
        return self.kept[key]


def physics_ways(lessons: Lessons) -> Iterator[Way]:
    """Ours without the student, what it is made of, and what is not label-free but shows what there is to learn."""
    base, seed = lessons.bench.config, lessons.seed
    absolute = replace(base, tissue=replace(base.tissue, scan_relative=False))
    unrefined = replace(base, refine=OFF)
    alone = replace(base, mixture=replace(base.mixture, alike=0))
    edgeless = replace(base, refine=replace(base.refine, edge_hu=1e9))

    def mode(config: Config, name: str = "anchored", *, enclosure: bool = True) -> Callable[[str], Labeller]:
        def make(_: str) -> Labeller:
            model = lessons.learned(config)[1]
            return lambda seen: decide(observed(seen, enclosure=enclosure), model, name).labels

        return make

    def single(seen: Seen) -> np.ndarray:
        return decide(replace(observed(seen), between=None), lessons.learned(base)[1]).labels

    yield Way(OURS, seed, "anchored", mode(base))
    yield Way(ALONE, seed, "rule", mode(base, "rule"))
    yield Way("- scan-relative HU", seed, "absolute", mode(absolute))
    yield Way("- look-alikes", seed, "alone", mode(alone))
    yield Way("- cells between", seed, "one lattice", lambda _: single)
    yield Way("- enclosure", seed, "open", mode(base, enclosure=False))
    yield Way("- refinement", seed, "unrefined", mode(unrefined))
    yield Way("- Sobel term", seed, "edgeless", mode(edgeless))
    for count, title in ((CLUSTERS, "- anchors"), (base.mixture.clusters, "- anchors, over-clustering")):
        words = f"{title} ({count} clusters named by HU)"
        yield Way(words, seed, f"unanchored {count}", lambda _, n=count: unanchored(lessons, n))
    for scans in (FEW, len(lessons.bench.cases("train"))):
        words = f"{LABELLED}{scans} labelled scans"
        yield Way(words, seed, f"labelled {scans}", lambda _, n=scans: labelled(lessons, range(n)))


def student_ways(lessons: Lessons, student: Trained) -> Iterator[Way]:
    """What a student's features add to ours, and what they are by themselves."""
    bench, contrast = lessons.bench, student.name.rsplit("-", 1)[0]
    features = {
        "local": "distilled features",
        "global": "distilled features, global contrast",
        "undistilled": "undistilled features",
    }[contrast]
    for title, mode in (
        (f"+ {features}", "anchored_distilled"),
        (f"published clusters on {features}", "published"),
    ):

        def make(split: str, mode: str = mode) -> Labeller:
            model, features = (
                lessons.learned(bench.config, student)[1],
                partial(bench.features, student, split),
            )
            return lambda seen: decide(seen.with_features(features(seen.case_id)), model, mode).labels

        yield Way(title, lessons.seed, f"{mode} {student.sha256}", make)


def observed(seen: Seen, *, enclosure: bool = True) -> Observation:
    """The scan for ways that do not look at features."""
    full = seen.with_features(seen.blank)
    return full if enclosure else full.with_other_cavities(np.zeros_like(seen.cavities))


def coordinates(mixture: Mixture, cells: CellTable) -> np.ndarray:
    """What ours judges a cell by, beside the prototypes: descriptor axes and physics."""
    return np.concatenate([mixture.descriptor_axes(cells), physics(cells)], axis=1).astype(np.float64)


def unanchored(lessons: Lessons, clusters: int) -> Labeller:
    """Full-covariance clusters of the same coordinates, named by their mean HU alone."""
    lesson, model = lessons.learned(lessons.bench.config)
    x = coordinates(model.mixture, lesson.cells)
    with lessons.bench.costs("fitting mixtures"):
        fitted = GaussianMixture(clusters, reg_covar=1e-4, random_state=lessons.seed, max_iter=200).fit(x)
    cluster, median_hu = fitted.predict(x), lesson.cells.evidence[:, 2]
    means = np.array(
        [median_hu[cluster == k].mean() if (cluster == k).any() else -860 for k in range(clusters)]
    )
    names = np.eye(len(TISSUES))[[int(tissue) - 1 for tissue in name_by_hu(means)]]
    return by_cells(model, lambda cells: fitted.predict_proba(coordinates(model.mixture, cells)) @ names)


def labelled(lessons: Lessons, scans: Sequence[int]) -> Labeller:
    """Ours, corrected by the true tissues of some training scans' drawn cells, as `jobs/train.py --labels` does."""
    lesson, model = lessons.learned(lessons.bench.config)
    known = np.flatnonzero(np.isin(lesson.scan, scans) & (lesson.tissue > 0))
    with lessons.bench.costs("fitting mixtures"):
        taught = model.mixture.taught(lesson.cells.rows(known), lesson.tissue[known])
    return lambda seen: decide(observed(seen), replace(model, mixture=taught), "labelled").labels


def by_cells(model: Model, judge: Callable[[CellTable], np.ndarray]) -> Labeller:
    """Ours with another judge of cells: (n, 6) posteriors; the prototypes judge what cannot be described."""

    def named(lattice: Cells, features: np.ndarray) -> np.ndarray:
        cells = table(lattice, features, model.config, lattice.inside)
        posterior = model.mixture.posterior(cells, "rule")
        known = np.isfinite(cells.descriptors).all(axis=1)
        posterior[known] = judge(cells.rows(np.flatnonzero(known)))
        return couple(lattice.laid_out(posterior), lattice.evidence, model.config.mixture)

    def label(seen: Seen) -> np.ndarray:
        scan = observed(seen)
        return decide(scan, model, posteriors=judged(scan, named, model.config.patches.cell_vox)).labels

    return label
