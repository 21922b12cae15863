import csv
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from diffseglung.labels import DISEASES, Tissue
from diffseglung.phantom import (
    Effusion,
    Phantom,
    PhantomConfig,
    case_kinds,
    case_seed,
    insert_lesions,
    make_phantom,
    write_cohort,
    write_inserted,
)
from diffseglung.volume import Volume, read_labels, read_volume, write_volume

TINY = PhantomConfig(size_vox=(44, 56, 56), spacing_mm=(5.5, 5.7, 5.7))
AIR_HU = -880


@pytest.fixture(scope="module")
def ill() -> list[Phantom]:
    """Two patients with every disease, at the default resolution."""
    return [make_phantom(seed, kinds=DISEASES) for seed in (11, 12)]


@pytest.fixture(scope="module")
def well() -> Phantom:
    return make_phantom(11, healthy=True)


def pooled_hu(phantoms: list[Phantom], tissue: Tissue) -> np.ndarray:
    return np.concatenate([phantom.hu[phantom.truth == tissue] for phantom in phantoms])


def test_the_same_seed_gives_the_same_bytes():
    first, second, other = (make_phantom(seed, TINY) for seed in (5, 5, 6))
    for name in ("hu", "truth", "lungs", "airways", "vessels", "affine"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.story == second.story
    assert first.hu.tobytes() != other.hu.tobytes()


def test_a_case_does_not_depend_on_how_many_are_drawn(tmp_path: Path):
    rows = write_cohort(tmp_path / "two", cases=2, seed=3, config=TINY)
    (alone,) = write_cohort(tmp_path / "one", cases=1, seed=3, config=TINY, first=1)
    assert alone == rows[1]
    for key in ("image", "truth"):
        assert (tmp_path / "two" / rows[1][key]).read_bytes() == (tmp_path / "one" / alone[key]).read_bytes()


def test_a_cohort_on_disk_is_ordinary_nifti_with_relative_paths(tmp_path: Path):
    seen = []
    rows = write_cohort(tmp_path, cases=1, seed=3, config=TINY, on_case=seen.append)
    with (tmp_path / "manifest.csv").open() as file:
        assert list(csv.DictReader(file)) == rows == seen
    volume = read_volume(tmp_path / rows[0]["image"])
    truth = read_labels(tmp_path / rows[0]["truth"], volume)
    phantom = make_phantom(case_seed(3, 0), TINY, kinds=case_kinds(3, 0))
    np.testing.assert_array_equal(volume.hu, phantom.hu)
    np.testing.assert_array_equal(truth, phantom.truth)
    np.testing.assert_allclose(volume.spacing_mm, phantom.spacing_mm, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "manifest.csv", "truth"]


@pytest.mark.parametrize("seed", range(6))
def test_any_four_cases_in_a_row_show_all_five_diseases_and_one_in_eight_is_healthy(seed: int):
    plan = [case_kinds(seed, index) for index in range(64)]
    for start in range(61):
        assert set().union(*plan[start : start + 4]) == set(DISEASES)
    assert sum(not kinds for kinds in plan) == 8
    assert {len(kinds) for kinds in plan} == {0, 2, 3, 4}


def test_the_diseases_that_were_planned_are_the_ones_in_the_truth():
    for index in range(4):
        kinds = case_kinds(9, index)
        phantom = make_phantom(case_seed(9, index), TINY, healthy=not kinds, kinds=kinds)
        counts = np.bincount(phantom.truth.ravel(), minlength=7)
        voxel_ml = np.prod(phantom.spacing_mm) / 1000
        assert {kind for kind in DISEASES if counts[kind]} == set(kinds)
        assert all(counts[kind] * voxel_ml > 1 for kind in kinds)


def test_truth_covers_the_lungs_and_nothing_else(ill: list[Phantom]):
    for phantom in ill:
        np.testing.assert_array_equal(phantom.truth > 0, phantom.lungs)
        assert not (phantom.vessels & ~phantom.lungs).any()
        assert set(np.unique(phantom.truth)) == set(range(7))


def test_a_healthy_scan_is_the_same_patient_without_disease(ill: list[Phantom], well: Phantom):
    assert set(np.unique(well.truth)) == {Tissue.BACKGROUND, Tissue.HEALTHY}
    np.testing.assert_array_equal(well.lungs, ill[0].lungs)
    assert well.story["patient"] == ill[0].story["patient"]
    assert well.story["diseases"] == []


def test_the_patient_lies_as_the_frame_says(well: Phantom):
    z, y, x = well.hu.shape
    right, left = well.lungs[:, :, : x // 2].sum(), well.lungs[:, :, x // 2 :].sum()
    assert right > 1.03 * left, "the heart takes room from the patient's left lung, at high x"
    bone = well.hu > 300
    assert bone[:, y // 2 :].sum() > 1.2 * bone[:, : y // 2].sum(), "the spine is at the back, at high y"
    area = well.lungs.sum((1, 2))
    top = np.flatnonzero(area)[-4]
    assert area[top] < 0.5 * area[z // 2], "the apex is narrow, at high z"


def test_lungs_hold_a_believable_volume_and_density(well: Phantom):
    litres = well.lungs.sum() * np.prod(well.spacing_mm) / 1e6
    assert 2.0 < litres < 5.5
    # Real scans at 1.5 to 2 mm: median -850 to -800 HU, a tenth of the lung above -660 to -590 HU.
    assert -900 < np.median(well.hu[well.lungs]) < -790
    assert -720 < np.percentile(well.hu[well.lungs], 90) < -560


def test_healthy_lung_is_denser_at_the_back(well: Phantom):
    rows = np.flatnonzero(well.lungs.any((0, 2)))
    fifth = len(rows) // 5
    front, back = (np.median(well.hu[:, part][well.lungs[:, part]]) for part in (rows[:fifth], rows[-fifth:]))
    assert 15 < back - front < 90


def test_healthy_lung_holds_what_only_looks_like_disease(well: Phantom):
    inside = ndimage.binary_erosion(well.lungs, iterations=2)
    dense = (well.hu > -500) & inside
    assert 0.01 < dense.sum() / inside.sum() < 0.10
    thick = ndimage.binary_opening(well.vessels, ndimage.generate_binary_structure(3, 2))
    assert thick.any(), "hilar vessels are several voxels thick"
    assert (well.hu[well.airways & well.lungs] < -880).any(), "bronchi are open inside the lung"


def test_fluid_lies_behind_and_below_the_lung_and_is_none_of_it(well: Phantom):
    wet = make_phantom(11, healthy=True, effusion=Effusion(right_ml=200, hu=12))
    fluid, voxel_ml = wet.effusion, np.prod(well.spacing_mm) / 1000
    assert fluid.sum() * voxel_ml == pytest.approx(200, rel=0.02)
    np.testing.assert_array_equal(fluid | wet.lungs, well.lungs)
    assert not (fluid & (wet.lungs | wet.airways | wet.vessels | (wet.truth > 0))).any()
    core = ndimage.binary_erosion(fluid, iterations=2)
    # The scanner's own calibration, and a little of the muscle that its blur brings in.
    assert abs(np.median(wet.hu[core]) - 12 - wet.story["scanner"]["calibration_hu"]) < 4
    half = fluid.shape[2] // 2
    assert not fluid[:, :, half:].any(), "the patient's right is at low x"
    right = well.lungs[:, :, :half]
    z, y, _ = np.argwhere(fluid).mean(0) - np.argwhere(right).mean(0)
    assert y > 8, "the patient lies on the back"
    assert z < -5
    thick = fluid.sum(1)  # seen from the front: thickest below, and thin at its rim
    assert thick[: fluid.shape[0] // 3].max() > 2 * thick[fluid.shape[0] // 2 :].max()


def test_an_effusion_squeezes_the_lung_beside_it_and_leaves_the_other_side_alone(well: Phantom):
    wet = make_phantom(11, healthy=True, effusion=Effusion(left_ml=150))
    half = wet.hu.shape[2] // 2
    away_mm = ndimage.distance_transform_edt(~wet.effusion, sampling=wet.spacing_mm)
    beside = wet.lungs & ~wet.vessels & (away_mm > 3) & (away_mm < 6)
    assert np.median(wet.hu[beside]) > np.median(well.hu[beside]) + 100
    assert np.abs(wet.hu[:, :, : half - 20].astype(int) - well.hu[:, :, : half - 20]).max() <= 30
    assert "effusion" not in well.story
    assert wet.story["effusion"] == {"right_ml": 0.0, "left_ml": 150, "hu": 10.0}
    assert not well.effusion.any()


def test_consolidation_may_lie_beside_fluid():
    wet = make_phantom(24, kinds=(Tissue.CONSOLIDATION,), effusion=Effusion(left_ml=150))
    touching = ndimage.binary_dilation(wet.effusion, iterations=2) & (wet.truth == Tissue.CONSOLIDATION)
    assert touching.sum() * np.prod(wet.spacing_mm) / 1000 > 5
    np.testing.assert_array_equal(wet.truth > 0, wet.lungs)


def test_air_of_emphysema_honeycomb_and_cavity_shares_its_hu(ill: list[Phantom]):
    air = [pooled_hu(ill, kind) for kind in (Tissue.EMPHYSEMA, Tissue.FIBROSIS, Tissue.CAVITY)]
    for hu in air:
        assert (hu < -800).mean() > 0.04
    medians = [np.median(hu[hu < -800]) for hu in air]
    assert np.ptp(medians) < 100


def test_ground_glass_and_fibrosis_share_a_mean_but_not_a_texture(ill: list[Phantom]):
    hazy, scarred = (pooled_hu(ill, kind) for kind in (Tissue.GROUND_GLASS, Tissue.FIBROSIS))
    assert abs(hazy.mean() - scarred.mean()) < 110
    steps = []
    for kind in (Tissue.GROUND_GLASS, Tissue.FIBROSIS):
        pairs = [(p.truth[:, :, 1:] == kind) & (p.truth[:, :, :-1] == kind) for p in ill]
        jumps = [np.abs(np.diff(p.hu.astype(int), axis=2))[pair] for p, pair in zip(ill, pairs, strict=True)]
        steps.append(np.median(np.concatenate(jumps)))
    assert steps[1] > 1.4 * steps[0]


def test_vessels_are_seen_through_ground_glass(ill: list[Phantom]):
    hazy = [phantom.truth == Tissue.GROUND_GLASS for phantom in ill]
    vessels = np.concatenate([p.hu[p.vessels & mask] for p, mask in zip(ill, hazy, strict=True)])
    assert vessels.mean() - pooled_hu(ill, Tissue.GROUND_GLASS).mean() > 150


def test_a_cavity_is_air_inside_a_wall(ill: list[Phantom]):
    for phantom in ill:
        cavity = phantom.truth == Tissue.CAVITY
        lumen = ndimage.binary_opening(cavity & (phantom.hu < AIR_HU))
        shell = ndimage.binary_dilation(lumen, iterations=4) & ~ndimage.binary_dilation(lumen, iterations=1)
        assert lumen.any()
        assert (phantom.hu[shell & cavity] > -400).mean() > 0.6
        assert (cavity & ~lumen).sum() > 0.3 * lumen.sum()


def test_consolidation_is_dense_touches_the_pleura_and_keeps_open_bronchi(ill: list[Phantom]):
    hu = pooled_hu(ill, Tissue.CONSOLIDATION)
    assert -60 < np.median(hu) < 80
    assert (hu < -250).mean() > 0.005
    for phantom in ill:
        solid = phantom.truth == Tissue.CONSOLIDATION
        assert (ndimage.binary_dilation(solid) & ~phantom.lungs).any()


def test_insertion_changes_only_the_lesions_and_their_soft_rim(well: Phantom):
    hu, truth = insert_lesions(well.hu, well.lungs, well.spacing_mm, seed=4)
    np.testing.assert_array_equal(truth > 0, well.lungs)
    assert set(np.unique(truth)) == set(range(7))
    away_mm = ndimage.distance_transform_edt(truth < Tissue.EMPHYSEMA, sampling=well.spacing_mm)
    change = np.abs(hu.astype(int) - well.hu)
    assert change[away_mm > 15].max() <= 20
    assert (change[truth >= Tissue.EMPHYSEMA] > 10).mean() > 0.75
    again, _ = insert_lesions(well.hu, well.lungs, well.spacing_mm, seed=4)
    np.testing.assert_array_equal(hu, again)


def test_insertion_keeps_to_the_diseases_asked_for_on_any_grid():
    hu = np.full((40, 90, 70), -850, np.int16)
    lungs = np.zeros(hu.shape, bool)
    lungs[3:37, 10:80, 8:60] = True
    changed, truth = insert_lesions(hu, lungs, (5.0, 1.5, 2.0), seed=1, kinds=(Tissue.CONSOLIDATION,))
    assert set(np.unique(truth)) == {Tissue.BACKGROUND, Tissue.HEALTHY, Tissue.CONSOLIDATION}
    assert changed[truth == Tissue.CONSOLIDATION].mean() > -250
    assert changed.dtype == np.int16


def test_insertion_leaves_given_vessels_alone():
    hu = np.full((50, 60, 60), -850, np.int16)
    vessels = np.zeros(hu.shape, bool)
    vessels[:, 28:33, 28:33] = True
    hu[vessels] = -300
    lungs = np.ones(hu.shape, bool)
    changed, truth = insert_lesions(
        hu, lungs, (2.0, 2.0, 2.0), seed=1, vessels=vessels, kinds=(Tissue.GROUND_GLASS,)
    )
    core = ndimage.binary_erosion(vessels, iterations=2) & (truth == Tissue.GROUND_GLASS)
    assert core.any()
    assert np.abs(changed[core] + 300).max() < 15


def test_what_cannot_be_drawn_is_refused_in_words():
    hu, lungs = np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), bool)
    with pytest.raises(ValueError, match="lung mask is empty"):
        insert_lesions(hu, lungs, (2.0, 2.0, 2.0), seed=0)
    with pytest.raises(ValueError, match="not on one grid"):
        insert_lesions(hu, lungs[:4], (2.0, 2.0, 2.0), seed=0)
    with pytest.raises(ValueError, match="a chest needs"):
        PhantomConfig(size_vox=(8, 8, 8))
    with pytest.raises(ValueError, match="no side has less"):
        Effusion(right_ml=-1)
    with pytest.raises(ValueError, match="0 to 20 HU"):
        Effusion(right_ml=100, hu=40)
    with pytest.raises(ValueError, match="less than half of a lung"):
        make_phantom(5, TINY, effusion=Effusion(left_ml=5000))
    with pytest.raises(ValueError, match="1 or more"):
        write_cohort("nowhere", cases=0, seed=0)


@pytest.mark.skipif("DIFFSEGLUNG_CT" not in os.environ, reason="DIFFSEGLUNG_CT names no folder of real scans")
def test_a_real_scan_takes_the_lesions_and_keeps_everything_else():
    folder = Path(os.environ["DIFFSEGLUNG_CT"])
    volume = read_volume(folder / "normal-a.nii.gz")
    lungs = read_labels(folder / "normal-a_lungs.nii.gz", volume) > 0
    hu, truth = insert_lesions(volume.hu, lungs, volume.spacing_mm, seed=5)
    assert set(np.unique(truth)) == set(range(7))
    rim = ndimage.binary_dilation(lungs, iterations=4)
    np.testing.assert_array_equal(hu[~rim], volume.hu[~rim])
    diseased = truth >= Tissue.EMPHYSEMA
    assert 0.05 < diseased.sum() / lungs.sum() < 0.6
    assert -700 < hu[truth == Tissue.GROUND_GLASS].mean() < -450
    assert np.median(hu[truth == Tissue.CONSOLIDATION]) > -60


def test_lesions_in_a_scan_on_disk_are_an_ordinary_case_with_a_truth(tmp_path: Path):
    config = PhantomConfig(size_vox=(60, 80, 80), spacing_mm=(4.0, 4.0, 4.0))
    host = make_phantom(5, config, healthy=True)
    scan = tmp_path / "host.nii.gz"
    write_volume(scan, Volume.from_array(host.hu, host.spacing_mm, host.affine))
    ill, healthy = (write_inserted(tmp_path / "out", [scan], 1, index) for index in (0, 3))
    assert ill == {
        "case_id": "inserted-0000",
        "image": "images/inserted-0000.nii.gz",
        "truth": "truth/inserted-0000.nii.gz",
    }
    volume = read_volume(tmp_path / "out" / ill["image"])
    truth = read_labels(tmp_path / "out" / ill["truth"], volume)
    assert set(np.unique(truth)) - {0, 1} == set(case_kinds(1, 0))
    changed = volume.hu != host.hu
    assert changed[truth > Tissue.HEALTHY].mean() > 0.7
    assert not changed[ndimage.distance_transform_edt(truth == 0, sampling=host.spacing_mm) > 30].any()
    again = write_inserted(tmp_path / "again", [scan], 1, 0)
    np.testing.assert_array_equal(read_volume(tmp_path / "again" / again["image"]).hu, volume.hu)
    assert case_kinds(1, 3) == ()
    unchanged = read_volume(tmp_path / "out" / healthy["image"])
    np.testing.assert_array_equal(unchanged.hu, host.hu)
    lungs = read_labels(tmp_path / "out" / healthy["truth"], unchanged)
    assert set(np.unique(lungs)) == {0, 1}
    assert ((lungs > 0) == host.lungs).mean() > 0.98
    with pytest.raises(ValueError, match="none was given"):
        write_inserted(tmp_path, [], 1, 0)
