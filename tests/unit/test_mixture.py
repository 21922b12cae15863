from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from diffseglung.labels import TISSUES, Tissue
from diffseglung.mixture import CellTable, MixtureConfig, couple, fit_mixture, log_softmax, share_names
from diffseglung.schemas import cells_schema
from diffseglung.teacher import TEACHER, Standardiser
from diffseglung.tissue import (
    ANCHORED,
    EVIDENCE,
    PART_OF,
    PATCHY,
    PROTOTYPES,
    TissueConfig,
    to_tissues,
)

FEATURES = 8
OF_ONE_TISSUE = tuple(k for k in ANCHORED if k != PATCHY)
SIGNATURE = np.random.default_rng(7).normal(
    size=(1 + max(ANCHORED), len(TEACHER.names))
)  # what each class looks like to the teacher


def draw_cells(n: int, seed: int, classes: tuple[int, ...] = OF_ONE_TISSUE) -> tuple[pa.Table, np.ndarray]:
    """Cells around the prototypes, three in four of them healthy, with descriptors that tell the class too."""
    rng = np.random.default_rng(seed)
    kind = np.where(rng.random(n) < 0.75, Tissue.HEALTHY, rng.choice(classes, n)).astype(int)
    evidence = np.ones((n, len(EVIDENCE)), np.float32)
    for tissue in ANCHORED:
        p, rows = PROTOTYPES[tissue], kind == tissue
        hu = np.array(p.hu) + p.counted.shift_hu(np.array(-850.0))
        evidence[rows, :5] = np.sort(hu + rng.normal(size=(rows.sum(), 5)) * np.array(p.spread_hu), axis=1)
        evidence[rows, 5] = 3.5 + p.mesh + p.mesh_spread * rng.normal(size=rows.sum())
    descriptors = SIGNATURE[kind] + 0.5 * rng.normal(size=(n, len(TEACHER.names)))
    features = SIGNATURE[kind, :FEATURES] + rng.normal(size=(n, FEATURES))
    values = {
        "case_id": pa.array(["a"] * n),
        "z0": pa.array([0] * n, pa.int32()),
        "y0": pa.array([0] * n, pa.int32()),
        "x0": pa.array([0] * n, pa.int32()),
        "cell": pa.array(range(n), pa.int32()),
        "mode_hu": pa.array(np.full(n, -850, np.float32)),
        "mesh": pa.array(np.full(n, 3.5, np.float32)),
    }
    for name, array in (("evidence", evidence), ("descriptors", descriptors), ("features", features)):
        values[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(array.astype(np.float32))
    schema = cells_schema(FEATURES)
    return pa.Table.from_arrays([values[name] for name in schema.names], schema=schema), kind


@pytest.fixture(scope="module")
def fitted():
    cells, _ = draw_cells(6000, seed=0)
    standardiser = Standardiser.fit(CellTable.from_arrow(cells).descriptors)
    return fit_mixture(cells, MixtureConfig(), TissueConfig(), standardiser)


def test_labels_correct_what_physics_misnames_and_nothing_else(fitted):
    arrow, kind = draw_cells(3000, seed=3)
    cells, tissue = CellTable.from_arrow(arrow), tissue_of(kind)
    # Ground glass of another place: so thin that its density is that of healthy lung.
    thin = kind == Tissue.GROUND_GLASS
    evidence = cells.evidence.copy()
    evidence[thin, :5] -= 260
    cells = cells._replace(evidence=evidence)

    def found(mixture, mode):
        return mixture.posterior(cells, mode).argmax(axis=1) + 1 == tissue

    known = np.arange(0, len(kind), 4)
    shown = np.where(np.isin(tissue, (Tissue.HEALTHY, Tissue.GROUND_GLASS, Tissue.FIBROSIS)), tissue, 0)
    taught = fitted.taught(cells.rows(known), shown[known])
    asked = np.setdiff1d(np.arange(len(kind)), known)
    before, after = found(fitted, "anchored")[asked], found(taught, "labelled")[asked]
    assert before[thin[asked]].mean() < 0.8
    assert after[thin[asked]].mean() > before[thin[asked]].mean() + 0.1
    assert after.mean() > before.mean()
    assert (found(taught, "anchored") == found(fitted, "anchored")).all()
    emphysema = tissue[asked] == Tissue.EMPHYSEMA  # nobody labelled any
    assert after[emphysema].mean() > before[emphysema].mean() - 0.1
    np.testing.assert_allclose(taught.posterior(cells, "labelled").sum(axis=1), 1, rtol=1e-5)


def test_few_labels_change_little_and_too_few_are_refused(fitted):
    arrow, kind = draw_cells(2000, seed=4)
    cells, tissue = CellTable.from_arrow(arrow), tissue_of(kind)
    stern = replace(fitted, config=replace(fitted.config, correction_ridge=1e3)).taught(cells, tissue)
    np.testing.assert_allclose(
        stern.posterior(cells, "labelled"), fitted.posterior(cells, "anchored"), atol=0.02
    )
    with pytest.raises(ValueError, match="fewer than two tissues"):
        fitted.taught(cells, np.where(tissue == Tissue.HEALTHY, tissue, 0))
    with pytest.raises(ValueError, match="knows no mode 'labelled'"):
        fitted.posterior(cells, "labelled")


def tissue_of(kind: np.ndarray) -> np.ndarray:
    return np.array([PART_OF.get(k, (k,))[0] for k in kind])


def accuracy(mixture, mode: str) -> float:
    cells, kind = draw_cells(4000, seed=1)
    named = mixture.posterior(CellTable.from_arrow(cells), mode).argmax(axis=1) + 1
    sick = kind != Tissue.HEALTHY
    return float((named == tissue_of(kind))[sick].mean())


def test_learning_from_confident_cells_beats_the_rule(fitted):
    assert accuracy(fitted, "anchored") > accuracy(fitted, "rule") + 0.02


@pytest.mark.parametrize("mode", ["rule", "anchored", "anchored_distilled", "published"])
def test_posteriors_are_probabilities_and_leave_cavities_alone(fitted, mode):
    cells, _ = draw_cells(500, seed=2)
    posterior = fitted.posterior(CellTable.from_arrow(cells), mode)
    assert posterior.shape == (500, len(TISSUES))
    assert posterior.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert posterior.min() >= 0
    assert not posterior[:, Tissue.CAVITY - 1].any()


@pytest.mark.parametrize("mode", ["rule", "anchored", "anchored_distilled", "published", "labelled"])
def test_classes_beyond_the_tissues_are_told_apart_until_the_end(fitted, mode):
    arrow, kind = draw_cells(800, seed=2, classes=ANCHORED)
    cells = CellTable.from_arrow(arrow)
    mixture = fitted.taught(cells, tissue_of(kind)) if mode == "labelled" else fitted
    classes = mixture.classes(cells, mode)
    assert classes.shape == (800, len(ANCHORED))
    assert classes.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert to_tissues(classes) == pytest.approx(mixture.posterior(cells, mode), abs=1e-6)
    beyond = [ANCHORED.index(k) for k in PART_OF]
    assert classes[:, beyond].any() == (mode in ("rule", "anchored", "anchored_distilled"))


def test_patches_are_known_by_their_prototype_and_teach_nothing():
    cells, kind = draw_cells(6000, seed=0, classes=ANCHORED)
    standardiser = Standardiser.fit(CellTable.from_arrow(cells).descriptors)
    mixture = fit_mixture(cells, MixtureConfig(), TissueConfig(), standardiser)
    present = mixture.arrays["anchored.present"].astype(bool)
    assert [k for k, learned in zip(ANCHORED, present, strict=True) if not learned] == [PATCHY]
    share = mixture.classes(CellTable.from_arrow(cells), "anchored")[:, ANCHORED.index(PATCHY)]
    assert share[kind == PATCHY].mean() > 0.35
    assert share[kind != PATCHY].mean() < 0.03


def test_a_tissue_that_the_cohort_lacks_keeps_its_prototype():
    without = tuple(t for t in OF_ONE_TISSUE if t != Tissue.CONSOLIDATION)
    cells, _ = draw_cells(3000, seed=3, classes=without)
    standardiser = Standardiser.fit(CellTable.from_arrow(cells).descriptors)
    mixture = fit_mixture(cells, MixtureConfig(), TissueConfig(), standardiser)
    fresh, kind = draw_cells(3000, seed=4)
    named = mixture.posterior(CellTable.from_arrow(fresh), "anchored").argmax(axis=1) + 1
    assert (named[kind == Tissue.CONSOLIDATION] == Tissue.CONSOLIDATION).mean() > 0.8


def test_cells_without_descriptors_are_judged_by_their_prototype(fitted):
    table = CellTable.from_arrow(draw_cells(50, seed=5)[0])
    blind = table._replace(descriptors=np.full_like(table.descriptors, np.nan))
    assert fitted.posterior(blind, "anchored") == pytest.approx(fitted.posterior(table, "rule"), abs=1e-6)


def test_the_order_in_which_cells_arrive_changes_no_bit(fitted):
    cells, _ = draw_cells(6000, seed=0)
    shuffled = cells.take(np.random.default_rng(1).permutation(len(cells)))
    again = fit_mixture(shuffled, MixtureConfig(), TissueConfig(), fitted.standardiser)
    assert all(np.array_equal(again.arrays[k], v) for k, v in fitted.arrays.items())


def test_too_few_cells_are_refused_in_words():
    cells, _ = draw_cells(20, seed=0)
    with pytest.raises(ValueError, match="only 20 cells"):
        fit_mixture(
            cells,
            MixtureConfig(),
            TissueConfig(),
            Standardiser.fit(SIGNATURE.astype(np.float32)),
        )


def test_a_lone_doubtful_cell_follows_its_like_neighbours_but_not_unlike_ones():
    posterior = np.zeros((5, 5, 5, 6), np.float32)
    posterior[..., 0], posterior[..., 2] = 0.95, 0.05
    posterior[2, 2, 2, [0, 2]] = 0.45, 0.55
    evidence = np.full((5, 5, 5, len(EVIDENCE)), -800, np.float32)
    config = MixtureConfig()
    assert couple(posterior, evidence, config)[2, 2, 2].argmax() == 0
    evidence[2, 2, 2, :5] = -300
    assert couple(posterior, evidence, config)[2, 2, 2].argmax() == 2


def test_coupling_keeps_probabilities_and_empty_space():
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.ones(6), (4, 4, 4)).astype(np.float32)
    posterior[0] = 0
    coupled = couple(posterior, rng.normal(-800, 50, (4, 4, 4, len(EVIDENCE))), MixtureConfig())
    assert coupled[1:].sum(axis=-1) == pytest.approx(1, abs=1e-5)
    assert not coupled[0].any()
    still = couple(
        posterior, np.zeros((4, 4, 4, len(EVIDENCE))), replace(MixtureConfig(), potts_strength=0.0)
    )
    assert still == pytest.approx(posterior, abs=1e-5)


def test_log_softmax_survives_large_numbers():
    assert np.exp(log_softmax(np.array([[1e4, 1e4 - 1]]))).sum() == pytest.approx(1)


def test_cells_that_look_alike_share_a_name_wherever_they_lie():
    rng = np.random.default_rng(0)
    evidence = np.zeros((80, len(EVIDENCE)), np.float32)
    evidence[:, :5] = np.where(np.arange(80)[:, None] % 2, -850, -600) + rng.normal(0, 5, (80, 5))
    posterior = np.full((80, 6), 0.02, np.float32)
    posterior[::2, 2], posterior[1::2, 0] = 0.9, 0.9
    posterior[0], posterior[1] = (0.55, 0.02, 0.37, 0.02, 0.02, 0.02), (0.37, 0.02, 0.55, 0.02, 0.02, 0.02)
    shared = share_names(posterior, evidence, MixtureConfig())
    assert shared[0].argmax() == 2
    assert shared[1].argmax() == 0
    assert shared.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(share_names(posterior, evidence, MixtureConfig(alike=0)), posterior)
    assert np.array_equal(share_names(posterior[:12], evidence[:12], MixtureConfig()), posterior[:12])
