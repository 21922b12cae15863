from dataclasses import replace

import numpy as np
import pytest

from diffseglung.cells import Cells
from diffseglung.grid import resample_map
from diffseglung.labels import TISSUES, Tissue
from diffseglung.mixture import MODES
from diffseglung.patches import on_scan
from diffseglung.segment import (
    cell_posteriors,
    decide,
    judged,
    segment,
    teacher_distance,
    to_labels,
    to_voxels,
)
from diffseglung.tissue import DEEP_BREATH_HU, PATCHY, PROTOTYPES, TissueConfig, scan_reference
from diffseglung.volume import read_labels


def test_every_lung_voxel_gets_one_of_six_tissues_and_no_other_voxel_does(segmentation, volume):
    labels, lungs = segmentation.labels, segmentation.anatomy.lungs
    assert labels.shape == volume.shape
    assert labels.dtype == np.uint8
    assert (labels[lungs] > 0).all()
    assert set(np.unique(labels[~lungs])) <= {0, int(Tissue.CAVITY)}
    assert labels.max() <= len(TISSUES)


def test_posteriors_are_probabilities_inside_the_lung(segmentation):
    total = segmentation.posteriors.sum(axis=0)[segmentation.scan.lungs]
    assert total == pytest.approx(1, abs=1e-3)
    assert 0 <= segmentation.uncertainty <= 1


def test_disease_is_found_where_the_phantom_has_it(segmentation, scan_path, volume):
    truth = read_labels(scan_path.parents[1] / "truth" / scan_path.name, volume)
    sick, called = truth > Tissue.HEALTHY, segmentation.labels > Tissue.HEALTHY
    inside = segmentation.anatomy.lungs
    assert called[sick & inside].mean() > 3 * called[~sick & inside].mean()


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_decides_from_the_same_observation(observation, model, mode):
    result = decide(observation, model, mode)
    assert result.mode == mode
    assert (result.labels[observation.anatomy.lungs] > 0).all()


def test_segmenting_twice_gives_the_same_labels(segmentation, volume, model):
    assert np.array_equal(segment(volume, model).labels, segmentation.labels)


def test_a_given_lung_mask_is_used_as_it_is(volume, model, segmentation):
    right = segmentation.anatomy.labels == 1
    result = segment(volume, model, lungs=right)
    assert np.array_equal(result.anatomy.lungs, right)


def test_a_cavity_has_its_voxels_and_changes_no_others(observation, model):
    cavities = observation.anatomy.lungs.copy()
    cavities[: len(cavities) // 2] = False
    without = decide(observation.with_other_cavities(np.zeros_like(cavities)), model)
    seen = decide(observation.with_other_cavities(cavities), model)
    known = on_scan(cavities, observation.volume, observation.scan)
    assert known.dtype == bool
    assert 0 < known.sum() < observation.scan.lungs.sum()
    assert (seen.posteriors[Tissue.CAVITY - 1, known] == 1).all()
    assert (seen.posteriors[:, ~known] == without.posteriors[:, ~known]).all()
    assert (seen.labels[~cavities] == without.labels[~cavities]).all()


@pytest.mark.parametrize("lattice", ["cells", "between"])
def test_the_pleura_does_not_fade(observation, model, lattice):
    inside = getattr(observation, lattice).inside
    coarse = np.zeros((*inside.shape, len(TISSUES)), np.float32)
    coarse[inside, 0] = 1
    fine = to_voxels(coarse, observation.scan.lungs, model.config.patches.cell_vox)
    assert fine[0][observation.scan.lungs] == pytest.approx(1, abs=1e-4)


def test_what_cells_say_is_said_where_they_lie():
    """A posterior that rises evenly over the cells rises as evenly over the voxels, whichever lattice it came from."""
    cell, shape = (4, 4, 4), (4, 5, 6)
    lungs = np.ones([4 * n for n in shape], bool)
    for count, first in ((6, 1.5), (7, -0.5)):  # centres of cells along x, in voxels; of those between them
        coarse = np.zeros((*[n + (count == 7) for n in shape[:2]], count, len(TISSUES)), np.float32)
        coarse[..., 0] = (first + 4 * np.arange(count) + 10) / 50
        coarse[..., 1] = 1 - coarse[..., 0]
        fine = to_voxels(coarse, lungs, cell)[0]
        assert fine[..., 2:-2] == pytest.approx(
            np.broadcast_to((np.arange(24) + 10) / 50, fine.shape)[..., 2:-2], abs=1e-5
        )


def test_both_lattices_have_the_same_say(observation, model):
    def judge(cells: Cells, features: np.ndarray) -> np.ndarray:
        assert features.shape[:3] == cells.inside.shape
        named = np.zeros((*cells.inside.shape, len(TISSUES)), np.float32)
        named[cells.inside, 0 if cells is observation.cells else 2] = 1
        return named

    lungs, cell_vox = observation.scan.lungs, model.config.patches.cell_vox
    assert judged(observation, judge, cell_vox)[[0, 2]][:, lungs] == pytest.approx(0.5, abs=1e-5)
    alone = replace(observation, between=None)
    assert judged(alone, judge, cell_vox)[0][lungs] == pytest.approx(1, abs=1e-5)


def test_patches_stay_one_thing_while_their_neighbours_are_asked(observation, model):
    """Named before that, they would be half healthy, which healthy neighbours make the whole."""
    cells = observation.cells
    evidence = cells.evidence.copy()
    top = np.zeros(cells.inside.shape, bool)
    top[: len(top) // 2] = True
    for kind, where in ((Tissue.HEALTHY, ~top), (PATCHY, top)):
        p = PROTOTYPES[kind]
        evidence[where & cells.inside, :6] = (*(DEEP_BREATH_HU + np.array(p.hu)), 3.5 + p.mesh)
    cells = replace(cells, evidence=evidence)
    mode_hu = scan_reference(evidence[cells.inside], TissueConfig()).mode_hu
    assert mode_hu == pytest.approx(DEEP_BREATH_HU, abs=10)
    features = np.zeros((*cells.inside.shape, len(model.mixture.arrays["features.mean"])), np.float32)
    named = cell_posteriors(cells, features, model, "rule")
    patches = named[top & cells.inside]
    healthy, dense = patches[:, Tissue.HEALTHY - 1], patches[:, Tissue.CONSOLIDATION - 1]
    assert healthy == pytest.approx(dense, abs=0.05)
    assert np.median(healthy + dense) > 0.8


def test_a_scan_without_a_cell_to_judge_is_refused_in_words(observation, model):
    def nothing(cells: Cells) -> Cells:
        return replace(cells, evidence=np.full_like(cells.evidence, np.nan))

    empty = replace(observation, cells=nothing(observation.cells), between=nothing(observation.between))
    with pytest.raises(ValueError, match="no cell of this scan holds enough lung"):
        decide(empty, model)


def test_the_most_likely_tissue_is_that_of_posteriors_brought_to_the_scans_own_grid(
    observation, segmentation, model
):
    labels = to_labels(segmentation.posteriors, observation, crumb_ml=0)
    fine = np.stack([
        resample_map(p, observation.scan.grid, observation.volume.grid) for p in segmentation.posteriors[:5]
    ])  # fmt: skip
    first, second = np.sort(fine, axis=0)[:-3:-1]
    clear = observation.anatomy.lungs & (first - second > 1e-4) & ~observation.cavities
    assert clear.sum() > 0.9 * observation.anatomy.lungs.sum()
    assert np.array_equal(labels[clear], fine.argmax(axis=0)[clear] + 1)
    assert np.array_equal(labels > 0, observation.anatomy.lungs | observation.cavities)
    assert (labels[observation.cavities] == Tissue.CAVITY).all()
    crumb_ml = model.config.refine.crumb_ml
    assert np.array_equal(to_labels(segmentation.posteriors, observation, crumb_ml), segmentation.labels)


def test_far_from_the_training_is_told(observation, model):
    near = teacher_distance(observation.cells, model)
    assert 0 < near < 0.5  # the model was made of this very scan
    noisy = replace(
        observation.cells, descriptors=observation.cells.descriptors + 10 * model.standardiser.scale
    )
    assert teacher_distance(noisy, model) > 2
    unknown = replace(observation.cells, descriptors=np.full_like(observation.cells.descriptors, np.nan))
    assert teacher_distance(unknown, model) is None


def test_the_share_that_is_close_to_a_guess_is_told(observation, model, segmentation):
    assert 0 <= segmentation.uncertain_pct < 50
    flat = np.full_like(segmentation.posteriors, 1 / len(TISSUES))
    guess = decide(observation, model, posteriors=flat)
    assert guess.uncertain_pct > segmentation.uncertain_pct


def test_seconds_are_told_by_stage(segmentation):
    assert {"anatomy", "cavities", "cells", "features", "mixture", "refine", "labels"} <= set(
        segmentation.seconds
    )
