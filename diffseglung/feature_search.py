"""Settings that need no training, searched on a frozen student: timesteps, clusters, covariance, refinement.

The student is asked once at each timestep (`look`); after that a setting is a choice of columns, a mixture, and a
number that says how good its clustering of held-out cells is (`criteria`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from diffseglung.config import Config
from diffseglung.criteria import CRITERIA, NEEDS_HALVES, NEEDS_NAMES, NEEDS_NOISE, SURE, Partition
from diffseglung.features import COMBINE, FeatureConfig, encode, sample_cells
from diffseglung.mixture import COVARIANCES, CellTable, Mixture, couple, fit_cells, softmax
from diffseglung.patches import regrid, seed_of
from diffseglung.refine import Voxels, by_density, fuse
from diffseglung.schemas import CELL_KEY
from diffseglung.segment import to_voxels
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import Reference, anchor_log_likelihood, prior, to_tissues

SHARES = (0.02, 0.04, 0.08, 0.2, 0.4, 0.6)  # of all timesteps, where a student may be asked
MOST_TIMESTEPS = 3  # at once
CLUSTERS = (4, 5, 6, 8, 10)
POTTS = (0.0, 1.0, 2.0, 4.0)
FLOW_TIMES = (0.0, 2.8, 8.4, 16.8)
EDGE_HU = (20.0, 60.0, 120.0)
SEEING = ("anchored_distilled", "published")  # the modes that look at the student's features
PATCHES_AT_ONCE = 16
FITTED_PATCHES, JUDGED_PATCHES = 64, 24
TEACHER_CLUSTERS = 6
APART = 2  # empty cells between patches: neither neighbours nor the space between cells lead across
HELD_OUT = 4  # every fourth case judges and does not teach

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Setting:
    """What can be chosen once a student is trained."""

    timesteps: tuple[int, ...]
    combine: str
    clusters: int
    covariance: str
    potts: float
    flow_time: float
    edge_hu: float

    @classmethod
    def of(cls, config: Config) -> "Setting":
        """The recipe's own."""
        features, mixture, refine = config.features, config.mixture, config.refine
        return cls(
            features.timesteps,
            features.combine,
            mixture.clusters,
            mixture.covariance,
            mixture.potts_strength,
            refine.flow_time,
            refine.edge_hu,
        )

    def put_into(self, config: Config) -> Config:
        """The config with these settings."""
        return replace(
            config,
            features=replace(config.features, timesteps=self.timesteps, combine=self.combine),
            mixture=replace(
                config.mixture,
                clusters=self.clusters,
                covariance=self.covariance,
                potts_strength=self.potts,
            ),
            refine=replace(config.refine, flow_time=self.flow_time, edge_hu=self.edge_hu),
        )

    def row(self) -> dict[str, Any]:
        """Plain values, timesteps as `10+50`."""
        return asdict(self) | {"timesteps": in_words(self.timesteps)}


def in_words(timesteps: Sequence[int]) -> str:
    """`10+50`."""
    return "+".join(map(str, timesteps))


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the frozen student sees of the cohort's cells, at each timestep apart.

    Cells of the patches that the mixture is fitted on: `fit` and its features (t, n, c), with `cases` (n,). Cells of
    whole patches of other cases, which judge: `judge`, features under two draws of noise (2, t, m, c), and where each
    cell lies in a stack of all of them (z, y, x), patches `APART`: `place` (m,), `grid`. `voxels` are those of that
    stack. Of these cells `teacher` (m,) is a clustering in the teacher's space, `expected` (m,) what physics is sure
    of.
    """

    timesteps: tuple[int, ...]
    fit: CellTable
    fit_features: np.ndarray
    cases: np.ndarray
    judge: CellTable
    judge_features: np.ndarray
    place: np.ndarray
    grid: tuple[int, int, int]
    voxels: Voxels
    teacher: np.ndarray
    expected: np.ndarray

    def columns(self, setting: Setting) -> list[np.ndarray]:
        """Features (n, f) of the fitted cells, and of the judging ones under either draw of noise."""
        which = [self.timesteps.index(t) for t in setting.timesteps]
        return [
            combined(part[which], setting.combine)
            for part in (self.fit_features, self.judge_features[0], self.judge_features[1])
        ]


def combined(features: np.ndarray, how: str) -> np.ndarray:
    """Features (t, n, c) of several timesteps as one table (n, f), as `features.encode` combines them."""
    return features.mean(axis=0) if how == "average" else np.concatenate(list(features), axis=1)


def timestep_pool(config: Config) -> tuple[int, ...]:
    """Where the student is asked: some shares of its timesteps, and where the recipe asks it."""
    last = config.student.timesteps
    return tuple(sorted({*config.features.timesteps, *(int(share * last) for share in SHARES)}))


def timestep_sets(config: Config) -> list[tuple[int, ...]]:
    """Every set of up to `MOST_TIMESTEPS` of the pool, and the recipe's own."""
    pool = timestep_pool(config)
    sizes = range(1, MOST_TIMESTEPS + 1)
    return sorted({config.features.timesteps, *(some for size in sizes for some in combinations(pool, size))})


def look(
    student: Student, teach: Columns, judge: Columns, config: Config, standardiser: Standardiser
) -> Seen:
    """Ask the student once at each timestep of the pool about some patches (columns of `patches_schema`).

    `teach` and `judge` are patches of different cases, in order.
    """
    from sklearn.cluster import KMeans

    pool = timestep_pool(config)
    features = replace(config.features, timesteps=pool, combine="concatenate", levels=config.features.levels)
    teach, judge = spread(teach, FITTED_PATCHES), spread(judge, JUDGED_PATCHES)
    fit, fit_features, cases = _fitted(student, teach, features)
    table, judge_features, place, grid = _judged(student, judge, features)
    reference = KMeans(TEACHER_CLUSTERS, n_init=3, random_state=0).fit(standardiser.apply(fit.descriptors))
    rule = anchor_log_likelihood(table.evidence, table.reference, config.tissue) + np.log(prior())
    likely = to_tissues(softmax(rule))
    return Seen(
        pool,
        fit,
        fit_features,
        cases,
        table,
        judge_features,
        place,
        grid,
        voxels=_voxels(judge, grid, config),
        teacher=reference.predict(standardiser.apply(table.descriptors)),
        expected=np.where(likely.max(axis=1) > SURE, likely.argmax(axis=1) + 1, 0),
    )


def split_cases(patches: Columns, fewest: int) -> tuple[Columns, Columns]:
    """The patches of three quarters of the cases to learn from, those of the rest to judge on.

    Raises ValueError where either side has fewer than `fewest` patches.
    """
    cases = sorted(set(patches["case_id"].astype(str)), key=lambda case: seed_of(0, case))
    if len(cases) < 2:
        raise ValueError("a sweep needs patches of at least two cases, one to learn from and one to judge on")
    judges = np.isin(patches["case_id"].astype(str), cases[::HELD_OUT])
    teach, judge = ({k: v[rows] for k, v in patches.items()} for rows in (~judges, judges))
    if min(len(teach["hu"]), len(judge["hu"])) < fewest:
        raise ValueError(
            f"too few patches to fill a batch of {fewest} on both sides of a sweep: prepare more cases"
        )
    return teach, judge


def spread(patches: Columns, most: int) -> Columns:
    """At most so many patches, evenly from first to last."""
    rows = np.unique(np.linspace(0, len(patches["hu"]) - 1, most).round().astype(int))
    return {name: column[rows] for name, column in patches.items()}


def _chunks(patches: Columns) -> Iterator[Columns]:
    for start in range(0, len(patches["hu"]), PATCHES_AT_ONCE):
        yield {name: column[start : start + PATCHES_AT_ONCE] for name, column in patches.items()}


def _fitted(
    student: Student, patches: Columns, features: FeatureConfig
) -> tuple[CellTable, np.ndarray, np.ndarray]:
    tables = [
        sample_cells(student, some, features).sort_by([(name, "ascending") for name in CELL_KEY])
        for some in _chunks(patches)
    ]
    parts = [CellTable.from_arrow(table) for table in tables]
    cases = np.concatenate([table["case_id"].to_numpy() for table in tables])
    evidence, descriptors, seen = (np.concatenate([part[i] for part in parts]) for i in range(3))
    reference = Reference(
        *(np.concatenate([np.atleast_1d(part.reference[i]) for part in parts]) for i in (0, 1))
    )
    apart = np.stack(np.split(seen, len(features.timesteps), axis=1))
    return CellTable(evidence, descriptors, seen[:, :0], reference), apart, cases


def _judged(
    student: Student, patches: Columns, features: FeatureConfig
) -> tuple[CellTable, np.ndarray, np.ndarray, tuple[int, int, int]]:
    evidence, descriptors = patches["evidence"], patches["descriptors"]
    count, cells = len(evidence), evidence.shape[1:4]
    usable = np.isfinite(evidence).all(-1) & np.isfinite(descriptors).all(-1) & (evidence[..., 6] > 0)
    draws = []
    for draw in (0, 1):
        parts = [_dense(student, some, features, draw, cells) for some in _chunks(patches)]
        dense = np.moveaxis(np.concatenate(parts), 1, -1)[usable]
        draws.append(np.stack(np.split(dense, len(features.timesteps), axis=1)))
    patch = np.broadcast_to(np.arange(count)[:, None, None, None], usable.shape)[usable]
    grid = (count * (cells[0] + APART), cells[1], cells[2])
    table = CellTable(
        evidence[usable],
        descriptors[usable],
        np.zeros((len(patch), 0), np.float32),
        Reference(patches["mode_hu"][patch], patches["mesh"][patch]),
    )
    return table, np.stack(draws), np.flatnonzero(_stacked(usable, grid)), grid


def _stacked(parts: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches (n, z, y, x), in voxels or cells, one above the other, `APART`: a stack whose cells are `grid`."""
    count, depth = parts.shape[:2]
    between = depth * APART // (grid[0] // count - APART)
    return np.pad(parts, [(0, 0), (0, between), (0, 0), (0, 0)]).reshape(-1, *parts.shape[2:])


def _voxels(patches: Columns, grid: tuple[int, int, int], config: Config) -> Voxels:
    """The voxels of a stack of patches, of which no vessels are known and all that are lung are evident."""
    hu, lungs = _stacked(patches["hu"], grid), _stacked(patches["lungs"], grid).astype(bool)
    mode_hu = np.repeat(patches["mode_hu"], len(hu) // len(patches["hu"]))[:, None, None]
    return Voxels(hu, lungs, np.zeros_like(lungs), lungs, mode_hu, config.patches.spacing_mm)


def _dense(
    student: Student, patches: Columns, features: FeatureConfig, draw: int, cells: tuple[int, int, int]
) -> np.ndarray:
    """Features (b, t * c, gz, gy, gx) of every cell of some patches."""
    keys = zip(*(patches[name] for name in CELL_KEY[:4]), strict=True)
    seeds = [seed_of(features.seed, f"judge {draw}/{case}/{z},{y},{x}") for case, z, y, x in keys]
    shape = patches["hu"].shape[1:]
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s >> 1)) for s in seeds])
    found = encode(student, patches["hu"], patches["lungs"], noise, features)
    return np.stack([regrid(one, cells) for one in found])


def judged_modes(config: Config) -> tuple[str, ...]:
    """The mixture's modes that a setting is judged by: the recipe's own, or both that see where that one is blind."""
    return (config.mixture.mode,) if config.mixture.mode in SEEING else SEEING


class Judge:
    """Judges settings on what a student has seen; one that was judged before is remembered."""

    def __init__(self, seen: Seen, config: Config, standardiser: Standardiser) -> None:
        self.seen, self.config, self.standardiser = seen, config, standardiser
        self.modes = judged_modes(config)
        self.known: dict[tuple[Setting, str, str], float] = {}

    def score(self, setting: Setting, criterion: str) -> float:
        """One criterion, mean over the modes that count."""
        found = []
        for mode in self.modes:
            telling = what_tells(setting, Setting.of(self.config), mode, criterion)
            key = (telling, mode, criterion)
            if key not in self.known:
                self.known[key] = self.scores(telling, (criterion,), (mode,))[mode][criterion]
            found.append(self.known[key])
        return float(np.mean(found))

    def scores(
        self, setting: Setting, criteria: Sequence[str], modes: Sequence[str] | None = None
    ) -> dict[str, dict[str, float]]:
        """Several criteria for each mode."""
        modes = modes or self.modes
        fitted, judged, redrawn = self.seen.columns(setting)
        config = setting.put_into(self.config)
        table = self.seen.fit._replace(features=fitted)
        cells, noisy = (self.seen.judge._replace(features=f) for f in (judged, redrawn))
        mixture = self.fit(table, config, modes)

        def needed(by: Sequence[str]) -> bool:
            return bool(set(criteria) & set(by))

        halves: tuple[Mixture, ...] = ()
        if needed(NEEDS_HALVES):
            halves = tuple(self.fit(table.rows(rows), config, modes) for rows in self._halves())
        found = {}
        for mode in modes:
            clusters, space = clustering(mixture, cells, mode)
            one = Partition(
                space=space,
                clusters=clusters,
                names=self._names(mixture, cells, mode, config) if needed(NEEDS_NAMES) else None,
                hu=self.seen.judge.evidence[:, :5],
                teacher=self.seen.teacher,
                expected=self.seen.expected,
                noisy=self._names(mixture, noisy, mode, config) if needed(NEEDS_NOISE) else None,
                halves=tuple(self._names(half, cells, mode, config) for half in halves) or None,  # type: ignore[arg-type]
            )
            found[mode] = {name: CRITERIA[name](one) for name in criteria}
        return found

    def fit(self, table: CellTable, config: Config, modes: Sequence[str]) -> Mixture:
        """The mixture of some modes."""
        return fit_cells(table, config.mixture, config.tissue, self.standardiser, modes)

    def _halves(self) -> list[np.ndarray]:
        """The fitted cells of every other case; of one case alone, every other cell."""
        names = np.unique(self.seen.cases)
        if len(names) < 2:
            return [np.arange(first, len(self.seen.cases), 2) for first in (0, 1)]
        return [np.flatnonzero(np.isin(self.seen.cases, names[first::2])) for first in (0, 1)]

    def _names(self, mixture: Mixture, cells: CellTable, mode: str, config: Config) -> np.ndarray:
        """What most of each judging cell is called (m,) once its neighbours were heard and the maps have flowed."""
        seen = self.seen
        heard = self._in_place(mixture.classes(cells, mode))
        if config.mixture.potts_strength > 0:
            heard = couple(heard, self._in_place(cells.evidence), config.mixture)
        heard = to_tissues(heard)
        fine = to_voxels(heard, seen.voxels.lungs, config.patches.cell_vox)
        fused = fuse(by_density(fine, seen.voxels, config.refine), seen.voxels, config.refine)
        for axis, count in enumerate(seen.grid, 1):
            fused = np.add.reduceat(fused, np.arange(count) * (fused.shape[axis] // count), axis=axis)
        total = np.moveaxis(fused, 0, -1).reshape(-1, len(fused))[seen.place]
        coarse = heard.reshape(-1, len(fused))[seen.place]  # for a cell that is known by what lies around it
        return np.where(total.any(axis=1, keepdims=True), total, coarse).argmax(axis=1) + 1

    def _in_place(self, rows: np.ndarray) -> np.ndarray:
        """Rows (m, k) of the judging cells on their grid (z, y, x, k), 0 elsewhere."""
        dense = np.zeros((int(np.prod(self.seen.grid)), rows.shape[1]), np.float32)
        dense[self.seen.place] = rows
        return dense.reshape(*self.seen.grid, -1)


def what_tells(setting: Setting, own: Setting, mode: str, criterion: str) -> Setting:
    """The setting, with the recipe's own where a criterion of a mode cannot tell the difference.

    The anchored mixture has a Gaussian a tissue with one covariance, refinement moves names alone, and no edge stops
    what does not flow.
    """
    if mode != "published":
        setting = replace(setting, clusters=own.clusters, covariance=own.covariance)
    if criterion not in NEEDS_NAMES:
        setting = replace(setting, potts=0.0, flow_time=0.0)
    return setting if setting.flow_time else replace(setting, edge_hu=own.edge_hu)


def clustering(mixture: Mixture, cells: CellTable, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Which cluster each cell is in before its neighbours are heard (n,), and the space (n, d) they live in."""
    if mode == "published":
        return mixture.clusters(cells).argmax(axis=1), mixture.published_axes(cells)
    # Its Gaussians share one covariance: whitened by it, plain distances are theirs.
    whiten = np.linalg.cholesky(mixture.arrays[f"{mode}.precision"])
    return mixture.posterior(cells, mode).argmax(axis=1), mixture.anchored_axes(cells, mode) @ whiten


@dataclass(frozen=True, slots=True)
class Judgement:
    """One setting and its score."""

    setting: Setting
    score: float


def search_features(
    score: Callable[[Setting], float], config: Config, count: int, seed: int, criterion: str
) -> Iterator[Judgement]:
    """Judge the recipe's own setting, then as many as `count` in all that Optuna's TPE suggests, one after another.

    Bergstra et al. 2011. The same seed and scores give the same suggestions. Refinement stays as the recipe has it
    where the criterion comes before that.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sets = {in_words(some): some for some in timestep_sets(config)}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    own = Setting.of(config)
    # What the recipe asks for is tried too, even where the search itself would not offer it.
    choices: dict[str, list] = {
        "timesteps": list(sets),
        "combine": list(COMBINE),
        "clusters": sorted({*CLUSTERS, own.clusters}),
        "covariance": list(COVARIANCES),
        "potts": [own.potts],
        "flow_time": [own.flow_time],
        "edge_hu": [own.edge_hu],
    }
    if criterion in NEEDS_NAMES:
        refinement = {"potts": POTTS, "flow_time": FLOW_TIMES, "edge_hu": EDGE_HU}
        choices |= {name: sorted({*some, *choices[name]}) for name, some in refinement.items()}
    study.enqueue_trial(own.row())
    for _ in range(count):
        trial = study.ask()
        values = {name: trial.suggest_categorical(name, some) for name, some in choices.items()}
        setting = Setting(**values | {"timesteps": sets[values["timesteps"]]})
        found = score(setting)
        study.tell(trial, found)
        yield Judgement(setting, found)


def best_of(judgements: Sequence[Judgement]) -> Judgement:
    """The highest score; of equals the first."""
    return max(judgements, key=lambda one: one.score)
