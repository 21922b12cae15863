import numpy as np
import pytest

from diffseglung.labels import TISSUES, Tissue
from diffseglung.tissue import (
    ANCHORED,
    CONFLUENT,
    EVIDENCE,
    PATCHY,
    PROTOTYPES,
    VESSEL,
    Reference,
    TissueConfig,
    anchor_log_likelihood,
    name_by_hu,
    of_tissues,
    prior,
    scan_reference,
    to_tissues,
)

REFERENCE = Reference(-850.0, 3.5)


def cell(tissue: int, reference: Reference = REFERENCE) -> np.ndarray:
    """A cell that is its tissue's prototype."""
    p = PROTOTYPES[tissue]
    hu = np.array(p.hu) + p.counted.shift_hu(np.array(reference.mode_hu))
    return np.array([*hu, reference.log_mesh + p.mesh, 1.0])


@pytest.mark.parametrize("tissue", ANCHORED)
def test_every_prototype_is_recognised_as_itself(tissue):
    log_p = anchor_log_likelihood(cell(tissue)[None], REFERENCE, TissueConfig()) + np.log(prior())
    assert ANCHORED[int(log_p.argmax())] == tissue


def test_a_deeper_breath_changes_no_name():
    inflated = Reference(-890.0, 3.5)
    for tissue in (Tissue.HEALTHY, Tissue.EMPHYSEMA):
        here, there = (
            anchor_log_likelihood(cell(tissue, r)[None], r, TissueConfig()).argmax()
            for r in (REFERENCE, inflated)
        )
        assert here == there


def test_holes_in_a_shallow_breath_are_emphysema_though_none_is_below_950():
    """In a lung at -800 HU the air of a hole is mixed with denser lung; after a deep breath -950 HU stays the line."""
    holes = cell(Tissue.EMPHYSEMA, Reference(-800.0, 3.5))
    assert holes[0] == PROTOTYPES[Tissue.EMPHYSEMA].hu[0] + 60

    def name(evidence: np.ndarray, mode_hu: float) -> int:
        log_p = anchor_log_likelihood(evidence[None], Reference(mode_hu, 3.5), TissueConfig()) + np.log(
            prior()
        )
        return ANCHORED[int(log_p.argmax())]

    assert name(holes, -800.0) == Tissue.EMPHYSEMA
    assert name(holes, -860.0) == Tissue.HEALTHY
    assert name(cell(Tissue.EMPHYSEMA, Reference(-900.0, 3.5)), -900.0) == Tissue.EMPHYSEMA
    assert cell(Tissue.EMPHYSEMA, Reference(-900.0, 3.5))[0] == PROTOTYPES[Tissue.EMPHYSEMA].hu[0]


def test_thick_slices_blur_the_holes_of_emphysema_but_not_what_lies_below_950():
    """Of 4 mm slices, in a real scan: half of the cell lies below -950 HU, and nothing in it above -900."""
    blurred = np.array([-972, -962, -953, -942, -925, REFERENCE.log_mesh, 1.0])
    reference = Reference(-887.5, REFERENCE.log_mesh)
    posterior = anchor_log_likelihood(blurred[None], reference, TissueConfig()) + np.log(prior())
    assert ANCHORED[int(posterior.argmax())] == CONFLUENT


def test_unknown_cells_fall_back_on_the_prior():
    flat = anchor_log_likelihood(np.full((1, len(EVIDENCE)), np.nan), REFERENCE, TissueConfig())
    assert (flat == flat[0, 0]).all()


def test_the_lung_mode_is_found_beside_disease():
    rng = np.random.default_rng(0)
    median = np.concatenate(
        [rng.normal(-840, 20, 3000), rng.normal(-550, 60, 900), rng.normal(-960, 10, 800)]
    )
    evidence = np.zeros((len(median), len(EVIDENCE)))
    evidence[:, 2] = median
    evidence[:, 5] = np.where(np.abs(median + 840) < 60, 3.2, 4.5)
    reference = scan_reference(evidence, TissueConfig())
    assert reference.mode_hu == pytest.approx(-840, abs=10)
    assert reference.log_mesh == pytest.approx(3.2)


def test_a_lung_full_of_emphysema_is_not_its_own_measure_of_healthy():
    rng = np.random.default_rng(0)
    evidence = np.zeros((4000, len(EVIDENCE)))
    evidence[:, 2] = np.concatenate([rng.normal(-950, 15, 3000), rng.normal(-880, 20, 1000)])
    assert scan_reference(evidence, TissueConfig()).mode_hu > -910


def test_a_steep_edge_is_ground_glass_where_it_is_no_mesh():
    """A small infiltrate: its window holds healthy lung and soft tissue, as that of a honeycomb holds air and walls."""
    hu, relative = [-820, -775, -640, -430, -330], {Tissue.GROUND_GLASS: 0.2, Tissue.FIBROSIS: 1.1}
    for tissue, mesh in relative.items():
        window = np.array([*hu, REFERENCE.log_mesh + mesh, 1.0])
        log_p = anchor_log_likelihood(window[None], REFERENCE, TissueConfig()) + np.log(prior())
        assert ANCHORED[int(log_p.argmax())] == tissue


@pytest.mark.parametrize(
    ("part", "tissues"),
    [
        (VESSEL, [Tissue.HEALTHY]),
        (CONFLUENT, [Tissue.EMPHYSEMA]),
        (PATCHY, [Tissue.HEALTHY, Tissue.CONSOLIDATION]),
    ],
)
def test_helper_classes_count_as_what_they_are_part_of_and_nothing_is_lost(part, tissues):
    sure = np.zeros((1, len(ANCHORED)))
    sure[:, ANCHORED.index(part)] = 1
    assert to_tissues(sure)[:, [t - 1 for t in tissues]] == pytest.approx(1 / len(tissues))
    mixed = np.random.default_rng(0).dirichlet(np.ones(len(ANCHORED)), (4, 5))
    found = to_tissues(mixed)
    assert found.sum(axis=-1) == pytest.approx(1)
    assert (found[..., [t - 1 for t in tissues]] > mixed[..., [ANCHORED.index(t) for t in tissues]]).all()
    assert not found[..., TISSUES.index(Tissue.CAVITY)].any()


def test_tissues_are_classes_too():
    tissues = np.random.default_rng(0).dirichlet(np.ones(len(TISSUES)), 20)
    tissues[:, TISSUES.index(Tissue.CAVITY)] = 0
    assert to_tissues(of_tissues(tissues)) == pytest.approx(tissues, abs=1e-6)


def test_soft_tissue_among_healthy_lung_is_no_honeycomb():
    """A mesh as well, but a tenth of it is solid. The fibrosis is the median of phantoms' cells."""
    for hu, mesh, kind in (
        ([-850, -790, -680, -430, -150], 0.8, PATCHY),
        ([-809, -706, -584, -497, -450], 1.1, Tissue.FIBROSIS),
    ):
        window = np.array([*hu, REFERENCE.log_mesh + mesh, 1.0])
        log_p = anchor_log_likelihood(window[None], REFERENCE, TissueConfig()) + np.log(prior())
        assert ANCHORED[int(log_p.argmax())] == kind


def test_denser_clusters_get_denser_names():
    assert name_by_hu(np.array([-970, -860, -600, -350, 20])) == [
        Tissue.EMPHYSEMA, Tissue.HEALTHY, Tissue.GROUND_GLASS, Tissue.FIBROSIS, Tissue.CONSOLIDATION,
    ]  # fmt: skip
