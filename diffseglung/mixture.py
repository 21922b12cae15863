"""The Gaussian mixture over cells: fitted without a label, kept honest by physics. Plain arrays in and out.

Modes, all in one fitted `Mixture`, so that they can be compared on the same scan:

- `rule`: the tissue prototypes alone.
- `anchored`: prototypes and a Gaussian per tissue over descriptors and percentiles, learned from the cells of which
  the prototypes are sure. A cluster cannot lose its name, since the prototype is part of its likelihood.
- `anchored_distilled`: the same with the student's bottleneck features beside the descriptors.
- `published`: five full-covariance clusters of the features, named by HU (paper, section 3.4).
- `labelled`, of a mixture that was shown annotated cells (`Mixture.taught`), and not label-free: `anchored`, corrected.

scikit-learn is imported where it is used: it costs a fifth of a worker's start, and most workers fit nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree

from diffseglung.frozen import frozen
from diffseglung.labels import TISSUES, Tissue
from diffseglung.schemas import CELL_KEY
from diffseglung.teacher import Standardiser
from diffseglung.tissue import (
    ANCHORED,
    PATCHY,
    Reference,
    TissueConfig,
    anchor_log_likelihood,
    name_by_hu,
    of_tissues,
    prior,
    to_tissues,
)

MODES = ("rule", "anchored", "anchored_distilled", "published")
LABELLED = "labelled"
ANCHORED_MODES = ("anchored", "anchored_distilled", LABELLED)
LEARNED = ("anchored", "anchored_distilled", "published")  # from cells; `rule` knows without
FEWEST_LABELLED = 20  # annotated cells of a tissue, with fewer of which it is not corrected
LEAST = 1e-4  # a posterior that nothing can contradict would be 0
COVARIANCES = ("full", "tied", "diag", "spherical")


@frozen
class MixtureConfig:
    """Which evidence speaks, and how much of it."""

    mode: str = "anchored"
    confident: float = 0.7  # cells whose prototype posterior exceeds this teach the Gaussians
    per_tissue: int = 4000  # at most, so that healthy lung does not drown the rest
    fewest: int = 60  # a tissue with fewer confident cells keeps its prototype alone
    shrinkage: float = 0.1
    descriptor_components: int = 4  # more of them fit real scans less surely: docs/log.md, 2026-11-28
    feature_components: int = 12
    correction_ridge: float = 3e-3  # labelled: how much a correction has to earn, per squared weight
    clusters: int = 5  # published
    covariance: str = "full"  # published; or "tied", "diag", "spherical"
    cluster_components: int = 30  # published
    alike: int = 12  # cells of the same scan that look most like a cell and have a say in its name; 0: none
    alike_strength: float = 4.0  # logits that full agreement of all of them adds
    alike_iterations: int = 3
    potts_strength: float = 2.0  # logits that full agreement of all 18 neighbours adds
    potts_iterations: int = 6
    potts_spread_hu: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in (*MODES, LABELLED):
            raise ValueError(f"mixture.mode {self.mode!r} is none of: {', '.join((*MODES, LABELLED))}")
        if self.alike < 0:
            raise ValueError(
                f"mixture.alike {self.alike} must not be below 0; 0 lets each cell speak for itself"
            )
        if self.correction_ridge <= 0:
            raise ValueError(f"mixture.correction_ridge {self.correction_ridge} must be above 0")
        if self.covariance not in COVARIANCES:
            raise ValueError(f"mixture.covariance {self.covariance!r} is none of: {', '.join(COVARIANCES)}")
        if not 0.5 < self.confident < 1:
            raise ValueError(f"mixture.confident {self.confident} must lie between 0.5 and 1")


class CellTable(NamedTuple):
    """Cells in rows: evidence (n, 7), descriptors (n, 34) raw, features (n, f), and what is normal around them."""

    evidence: np.ndarray
    descriptors: np.ndarray
    features: np.ndarray
    reference: Reference

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "CellTable":
        """From a table of `cells_schema`."""

        def tensor(name: str) -> np.ndarray:
            return table[name].combine_chunks().to_numpy_ndarray()

        reference = Reference(table["mode_hu"].to_numpy(), table["mesh"].to_numpy())
        return cls(tensor("evidence"), tensor("descriptors"), tensor("features"), reference)

    @classmethod
    def together(cls, parts: Sequence["CellTable"]) -> "CellTable":
        """The cells of several scans, each with its own reference."""
        counts = [len(part.evidence) for part in parts]
        mode_hu, mesh = (
            np.concatenate([np.broadcast_to(p.reference[i], n) for p, n in zip(parts, counts, strict=True)])
            for i in (0, 1)
        )
        evidence, descriptors, features = (np.concatenate([part[i] for part in parts]) for i in range(3))
        return cls(evidence, descriptors, features, Reference(mode_hu, mesh))

    def rows(self, which: np.ndarray) -> "CellTable":
        """Some of the cells, by number."""
        mode_hu, mesh = (r[which] if isinstance(r, np.ndarray) else r for r in self.reference)
        return CellTable(
            self.evidence[which], self.descriptors[which], self.features[which], Reference(mode_hu, mesh)
        )


@dataclass(frozen=True, slots=True)
class Mixture:
    """A fitted mixture: named arrays, nothing else."""

    config: MixtureConfig
    tissue: TissueConfig
    standardiser: Standardiser
    arrays: dict[str, np.ndarray]

    @property
    def modes(self) -> tuple[str, ...]:
        """Those in which this one can be asked."""
        return (*MODES, LABELLED) if f"{LABELLED}.weights" in self.arrays else MODES

    def posterior(self, cells: CellTable, mode: str | None = None) -> np.ndarray:
        """Posterior (n, 6) over `TISSUES` for each cell, before its neighbours are asked; cavity is always 0."""
        return to_tissues(self.classes(cells, mode))

    def classes(self, cells: CellTable, mode: str | None = None) -> np.ndarray:
        """The same (n, 8) over `ANCHORED`: a class beyond the tissues stays one until its neighbours were asked."""
        mode = mode or self.config.mode
        if mode not in self.modes:
            raise ValueError(f"this mixture knows no mode {mode!r}, only: {', '.join(self.modes)}")
        if mode == "published":
            return of_tissues(self._published(cells))
        if mode == LABELLED:
            return of_tissues(self._labelled(cells))
        rule = anchor_log_likelihood(cells.evidence, cells.reference, self.tissue) + np.log(prior())
        if mode == "rule":
            return softmax(rule).astype(np.float32)
        return softmax(self._anchored(cells, log_softmax(rule), mode)).astype(np.float32)

    def _anchored(self, cells: CellTable, rule: np.ndarray, mode: str) -> np.ndarray:
        """Half prototype, half learned Gaussian, in log space; cells without descriptors keep the prototype."""
        x = self.anchored_axes(cells, mode)
        means, precision = self.arrays[f"{mode}.means"], self.arrays[f"{mode}.precision"]
        present = self.arrays[f"{mode}.present"].astype(bool)
        log_prior = np.log(prior())
        score = x @ precision @ means.T - 0.5 * np.einsum("kd,de,ke->k", means, precision, means)
        learned = np.where(present, score + log_prior, -np.inf)
        learned = np.where(present, log_softmax(learned), rule)
        mixed = 0.5 * (learned - log_prior) + 0.5 * (rule - log_prior) + log_prior
        return np.where(np.isfinite(x).all(axis=1, keepdims=True), mixed, rule)

    def anchored_axes(self, cells: CellTable, mode: str) -> np.ndarray:
        """Coordinates (n, d) in which the tissues are Gaussian: descriptor axes, physics, feature axes."""
        parts = [self.descriptor_axes(cells), physics(cells)]
        if mode == "anchored_distilled":
            parts.append(self.feature_axes(cells))
        return np.concatenate(parts, axis=1).astype(np.float64)

    def descriptor_axes(self, cells: CellTable) -> np.ndarray:
        """Principal components (n, d) of the standardised descriptors."""
        a = self.arrays
        return (self.standardiser.apply(cells.descriptors) - a["descriptors.mean"]) @ a["descriptors.axes"].T

    def feature_axes(self, cells: CellTable) -> np.ndarray:
        """Principal components (n, d) of the student's standardised features."""
        a = self.arrays
        return (cells.features - a["features.mean"]) / a["features.scale"] @ a["features.axes"].T

    def taught(self, cells: CellTable, tissue: np.ndarray) -> "Mixture":
        """The same with the mode `labelled`: what annotated cells say against `anchored`, as far as they say it.

        tissue (n,): that of each cell, of `TISSUES`. To each log posterior a linear function of the coordinates is
        added, fitted by logistic regression with the posterior as its offset and a ridge that pulls it to nothing; a
        tissue with fewer than `FEWEST_LABELLED` cells, and cavities, stay as they were. Raises ValueError
        where fewer than two tissues have as many.
        """
        from scipy.optimize import minimize

        present = correctable(cells, tissue)
        x, known = self._correction_axes(cells)
        used = known & np.isin(tissue, [TISSUES[k] for k in present])
        x, offset = x[used], self._log_anchored(cells)[used][:, present]
        target = (tissue[used, None] == np.array([TISSUES[k] for k in present])).astype(float)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(x.shape[1], -1)
            log_p = log_softmax(offset + x @ weights)
            slope = x.T @ (np.exp(log_p) - target) / len(x) + self.config.correction_ridge * weights
            penalty = 0.5 * self.config.correction_ridge * (flat**2).sum()
            return -(target * log_p).sum() / len(x) + penalty, slope.ravel()

        start = np.zeros(x.shape[1] * len(present))
        fitted = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
        weights = np.zeros((x.shape[1], len(TISSUES)))
        weights[:, present] = fitted.x.reshape(x.shape[1], -1)
        return replace(self, arrays=self.arrays | {f"{LABELLED}.weights": weights})

    def _labelled(self, cells: CellTable) -> np.ndarray:
        """The anchored posterior, corrected where a cell can be described; cavity stays 0."""
        x, known = self._correction_axes(cells)
        correction = np.where(known[:, None], x, 0) @ self.arrays[f"{LABELLED}.weights"]
        corrected = softmax(self._log_anchored(cells) + correction)
        corrected[:, Tissue.CAVITY - 1] = 0
        return (corrected / corrected.sum(axis=1, keepdims=True)).astype(np.float32)

    def _log_anchored(self, cells: CellTable) -> np.ndarray:
        return np.log(np.maximum(self.posterior(cells, "anchored"), LEAST))

    def _correction_axes(self, cells: CellTable) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of unit spread and a constant (n, d + 1), and the cells that have them (n,)."""
        x = self.anchored_axes(cells, "anchored")
        spread = np.sqrt(np.diag(np.linalg.inv(self.arrays["anchored.precision"])))
        known = np.isfinite(x).all(axis=1)
        return np.concatenate([x / spread, np.ones((len(x), 1))], axis=1), known

    def clusters(self, cells: CellTable) -> np.ndarray:
        """Share (n, k) of each published cluster in each cell, before it has a name."""
        from sklearn.mixture import GaussianMixture

        a = self.arrays
        model = GaussianMixture(len(a["published.weights"]), covariance_type=self.config.covariance)
        model.weights_, model.means_ = a["published.weights"], a["published.means"]
        model.covariances_, model.precisions_cholesky_ = a["published.covariances"], a["published.cholesky"]
        return model.predict_proba(self.published_axes(cells).astype(np.float64))

    def published_axes(self, cells: CellTable) -> np.ndarray:
        """Principal components (n, d) that the published clusters live in."""
        a = self.arrays
        return (cells.features - a["features.mean"]) / a["features.scale"] @ a["published.axes"].T

    def _published(self, cells: CellTable) -> np.ndarray:
        share = self.clusters(cells)
        out = np.zeros((len(share), len(TISSUES)), np.float32)
        for cluster, tissue in enumerate(self.arrays["published.tissue"]):
            out[:, int(tissue) - 1] += share[:, cluster]
        return out


def correctable(cells: CellTable, tissue: np.ndarray) -> list[int]:
    """Columns of the tissues of which enough cells were annotated. Raises ValueError where those are fewer than two."""
    known = np.isfinite(cells.descriptors).all(axis=1)
    counts = {t: int((known & (tissue == t)).sum()) for t in TISSUES if t != Tissue.CAVITY}
    present = [t - Tissue.HEALTHY for t, count in counts.items() if count >= FEWEST_LABELLED]
    if len(present) < 2:
        raise ValueError(
            f"the labels hold {FEWEST_LABELLED} cells of fewer than two tissues: label more, or larger regions"
        )
    return present


def fit_mixture(
    cells: pa.Table, config: MixtureConfig, tissue: TissueConfig, standardiser: Standardiser
) -> Mixture:
    """Fit every mode on a sample of cells (`cells_schema`), in whatever order they arrive.

    Raises ValueError where there are too few cells to fit on.
    """
    table = CellTable.from_arrow(cells.sort_by([(name, "ascending") for name in CELL_KEY]))
    return fit_cells(table, config, tissue, standardiser)


def fit_cells(
    table: CellTable,
    config: MixtureConfig,
    tissue: TissueConfig,
    standardiser: Standardiser,
    modes: Sequence[str] = LEARNED,
) -> Mixture:
    """The same for cells that are in order already, and for some of the modes alone."""
    from sklearn.decomposition import PCA

    if len(table.evidence) < 10 * config.clusters:
        raise ValueError(
            f"only {len(table.evidence)} cells of lung to fit the mixture on; prepare more cases or patches"
        )
    arrays: dict[str, np.ndarray] = {}
    standard = standardiser.apply(table.descriptors)
    descriptor_pca = PCA(_axes(config.descriptor_components, standard), svd_solver="full").fit(standard)
    arrays["descriptors.mean"], arrays["descriptors.axes"] = descriptor_pca.mean_, descriptor_pca.components_
    scale = np.maximum(table.features.std(axis=0), 1e-6)
    arrays["features.mean"], arrays["features.scale"] = table.features.mean(axis=0), scale
    features = (table.features - arrays["features.mean"]) / scale
    pca = PCA(_axes(config.cluster_components, features), svd_solver="full").fit(features)
    arrays["published.axes"] = pca.components_
    arrays["features.axes"] = pca.components_[: config.feature_components]
    mixture = Mixture(config, tissue, standardiser, arrays)
    for mode in modes:
        if mode == "published":
            arrays |= _fit_published(table, features @ pca.components_.T, config)
        else:
            arrays |= _fit_anchored(mixture, table, mode)
    return Mixture(config, tissue, standardiser, {k: np.ascontiguousarray(v) for k, v in arrays.items()})


def _axes(wanted: int, rows: np.ndarray) -> int:
    return min(wanted, *rows.shape)


def _fit_published(table: CellTable, x: np.ndarray, config: MixtureConfig) -> dict[str, np.ndarray]:
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        config.clusters,
        covariance_type=config.covariance,
        reg_covar=1e-4,
        random_state=config.seed,
        max_iter=200,
    )
    cluster = model.fit_predict(x.astype(np.float64))
    median_hu = table.evidence[:, 2]
    mean_hu = np.array(
        [median_hu[cluster == k].mean() if (cluster == k).any() else -860 for k in range(config.clusters)]
    )
    return {
        "published.weights": model.weights_,
        "published.means": model.means_,
        "published.covariances": model.covariances_,
        "published.cholesky": model.precisions_cholesky_,
        "published.tissue": np.array([int(t) for t in name_by_hu(mean_hu)]),
        "published.mean_hu": mean_hu,
    }


def _fit_anchored(mixture: Mixture, table: CellTable, mode: str) -> dict[str, np.ndarray]:
    """One round of learning from confident cells: a mean per tissue, one shared and shrunken covariance.

    `PATCHY` is not learned, nor asked here: it resembles every lesion's border, and without their borders ground glass
    and fibrosis would be learned as narrower than they are.
    """
    from sklearn.covariance import shrunk_covariance

    config = mixture.config
    likely = anchor_log_likelihood(table.evidence, table.reference, mixture.tissue) + np.log(prior())
    likely[:, ANCHORED.index(PATCHY)] = -np.inf
    rule = softmax(likely)
    x = mixture.anchored_axes(table, mode)
    rng = np.random.default_rng(config.seed)
    means = np.zeros((len(ANCHORED), x.shape[1]))
    present = np.zeros(len(ANCHORED))
    residuals = []
    for k in range(len(ANCHORED)):
        sure = np.flatnonzero((rule[:, k] > config.confident) & np.isfinite(x).all(axis=1))
        if len(sure) < config.fewest:
            continue
        sure = rng.permutation(sure)[: config.per_tissue]
        means[k], present[k] = x[sure].mean(axis=0), 1
        residuals.append(x[sure] - means[k])
    if residuals:
        covariance = shrunk_covariance(np.cov(np.concatenate(residuals).T), config.shrinkage)
    else:
        covariance = np.eye(x.shape[1])
    return {
        f"{mode}.means": means,
        f"{mode}.precision": np.linalg.inv(covariance),
        f"{mode}.present": present,
    }


def physics(cells: CellTable) -> np.ndarray:
    """Percentiles relative to the scan's lung mode (in 100 HU) and relative mesh: (n, 6)."""
    hu = (cells.evidence[:, :5] - np.reshape(cells.reference.mode_hu, (-1, 1))) / 100
    mesh = cells.evidence[:, 5:6] - np.reshape(cells.reference.log_mesh, (-1, 1))
    return np.concatenate([hu, mesh], axis=1)


def share_names(posterior: np.ndarray, evidence: np.ndarray, config: MixtureConfig) -> np.ndarray:
    """Cells of a scan that look alike share a name, wherever they lie: mean field over the nearest in density.

    `posterior` (n, k), `evidence` (n, 7) of all cells of one scan; as near are those whose five percentiles differ
    least. What a scan's own cells have in common the mixture, fitted on other scans, does not know.
    """
    if not 0 < config.alike < len(posterior):
        return posterior
    percentiles = np.nan_to_num(evidence[:, :5])
    nearest = cKDTree(percentiles).query(percentiles, config.alike + 1)[1][:, 1:]
    unary, q = np.log(np.maximum(posterior, 1e-6)), posterior
    for _ in range(config.alike_iterations):
        q = softmax(unary + config.alike_strength * q[nearest].mean(axis=1))
    return q.astype(np.float32)


def couple(posterior: np.ndarray, evidence: np.ndarray, config: MixtureConfig) -> np.ndarray:
    """Neighbouring cells that look alike agree: mean-field Potts on the cell grid (18 neighbours).

    `posterior` (z, y, x, k) is 0 outside the lung, `evidence` (z, y, x, 7). A neighbour counts 1/distance times
    exp(-d^2 / 2 s^2) with d the root mean square difference of the five percentiles. Krähenbühl and Koltun 2011,
    on a grid.
    """
    inside = posterior.sum(axis=-1) > 0
    percentiles = np.nan_to_num(evidence[..., :5])
    shifts = [s for s in np.ndindex(3, 3, 3) if 0 < sum(abs(c - 1) for c in s) < 3]
    total = sum(1 / np.sqrt(sum(abs(c - 1) for c in s)) for s in shifts)
    weights = []
    for shift in shifts:
        d = ((percentiles - _shifted(percentiles, shift)) ** 2).mean(axis=-1)
        near = 1 / np.sqrt(sum(abs(c - 1) for c in shift)) / total
        weights.append(
            near * np.exp(-0.5 * d / config.potts_spread_hu**2) * (inside & _shifted(inside, shift))
        )
    unary = np.log(np.maximum(posterior, 1e-6))
    q = posterior
    for _ in range(config.potts_iterations):
        message = sum(w[..., None] * _shifted(q, s) for w, s in zip(weights, shifts, strict=True))
        q = np.where(inside[..., None], softmax(unary + config.potts_strength * message), 0)
    return q.astype(np.float32)


def _shifted(a: np.ndarray, shift: tuple[int, ...]) -> np.ndarray:
    """Each cell's neighbour in one of the 26 directions (0..2 per axis, 1 is here); 0 beyond the edge."""
    padded = np.pad(a, [(1, 1)] * 3 + [(0, 0)] * (a.ndim - 3))
    return padded[tuple(slice(s, s + n) for s, n in zip(shift, a.shape[:3], strict=True))]


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def entropy(posterior: np.ndarray) -> np.ndarray:
    """How evenly posteriors (6, ...) are spread, as a share of log 6: 0 for one tissue alone, 1 for all alike."""
    return -(posterior * np.log(np.maximum(posterior, 1e-9))).sum(axis=0) / np.log(len(posterior))


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return np.exp(log_softmax(x))
