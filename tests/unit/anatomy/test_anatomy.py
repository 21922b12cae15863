"""find_anatomy: lungs, sides, airways and vessels of chests whose anatomy is known."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from chest import SPACING_MM, Chest, make_chest

from diffseglung.anatomy import Anatomy, AnatomyConfig, NoLungs, find_anatomy
from diffseglung.labels import Structure
from diffseglung.phantom import make_phantom
from diffseglung.volume import Volume, read_labels, read_volume

CT = os.environ.get("DIFFSEGLUNG_CT") or None
COARSE = AnatomyConfig(working_mm=3.0)  # for speed


def scan(chest: Chest) -> Volume:
    return Volume.from_array(chest.hu, SPACING_MM)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def share(part: np.ndarray, of: np.ndarray) -> float:
    return float((part & of).sum() / of.sum())


@pytest.fixture(scope="module")
def plain() -> tuple[Chest, Anatomy]:
    chest = make_chest(bowel=True, table=True)
    return chest, find_anatomy(scan(chest))


def test_lungs_are_found_without_heart_bowel_and_table(plain):
    chest, anatomy = plain
    assert dice(anatomy.lungs, chest.lungs) > 0.98
    assert share(anatomy.lungs, chest.parts["heart"]) < 0.02
    assert share(anatomy.lungs, chest.parts["bowel"]) < 0.002
    assert share(anatomy.lungs, chest.parts["table"]) == 0


def test_right_is_the_patients_right_at_low_x(plain):
    chest, anatomy = plain
    assert share(anatomy.side == 1, chest.right & anatomy.lungs) > 0.999
    assert share(anatomy.side == 2, chest.lungs & ~chest.right & anatomy.lungs) > 0.999
    voxel_ml = np.prod(SPACING_MM) / 1000
    # Beside the spine this chest leaves a notch that a real lung fills; some of it is taken for diseased lung.
    assert anatomy.right_ml == pytest.approx(chest.right.sum() * voxel_ml, rel=0.04)


def test_airways_are_the_trachea_and_its_bronchi_and_no_lung(plain):
    chest, anatomy = plain
    assert share(anatomy.airways, chest.trachea) > 0.9
    assert share(chest.trachea, anatomy.airways) > 0.9
    assert not (anatomy.airways & anatomy.lungs).any()


def test_vessels_are_found_inside_the_lungs_only(plain):
    chest, anatomy = plain
    assert share(anatomy.vessels, chest.parts["vessels"]) > 0.9
    assert share(anatomy.vessels, chest.lungs & ~chest.parts["vessels"]) < 0.05
    assert not (anatomy.vessels & ~anatomy.lungs).any()


def test_labels_tell_the_same_story_as_the_masks(plain):
    _, anatomy = plain
    lung_labels = [Structure.RIGHT_LUNG, Structure.LEFT_LUNG, Structure.VESSEL]
    assert np.array_equal(np.isin(anatomy.labels, lung_labels), anatomy.lungs)
    assert anatomy.labels.dtype == np.uint8
    assert anatomy.side.dtype == np.uint8


def test_a_mass_at_the_pleura_is_lung_and_no_vessel():
    chest = make_chest(mass=True)
    anatomy = find_anatomy(scan(chest), COARSE)
    assert share(anatomy.lungs, chest.parts["mass"] & chest.lungs) > 0.75
    assert share(anatomy.vessels, chest.parts["mass"]) < 0.03


def test_consolidation_along_the_ribs_is_lung_and_liver_and_heart_are_not():
    chest = make_chest(consolidation=True)
    anatomy = find_anatomy(scan(chest), COARSE)
    assert chest.parts["consolidation"].sum() * np.prod(SPACING_MM) / 1000 > 80
    # On this coarse grid it falls into pieces, the small ones of them are lost; without the rays half of it is missing.
    assert share(anatomy.lungs, chest.parts["consolidation"]) > 0.8
    assert share(anatomy.lungs, chest.parts["heart"]) < 0.02
    assert share(chest.lungs, anatomy.lungs) > 0.96


def test_consolidation_that_fills_an_angle_is_lung_by_its_open_bronchi():
    chest = make_chest(filled_angle=True)
    anatomy = find_anatomy(scan(chest))
    assert chest.parts["filled_angle"].sum() * np.prod(SPACING_MM) / 1000 > 60
    # As far as its bronchi span; without them 2% of it.
    assert share(anatomy.lungs, chest.parts["filled_angle"]) > 0.35
    assert share(chest.lungs, anatomy.lungs) > 0.98


def test_a_consolidated_lobe_at_the_heart_is_lung_by_its_open_bronchus():
    chest = make_chest(filled_lobe=True)
    anatomy = find_anatomy(scan(chest))
    assert chest.parts["filled_lobe"].sum() * np.prod(SPACING_MM) / 1000 > 60
    # Without the bronchus 3% of it.
    assert share(anatomy.lungs, chest.parts["filled_lobe"]) > 0.6
    assert share(anatomy.lungs, chest.parts["heart"]) < 0.02


def test_a_meal_with_gas_under_the_lung_is_no_lung():
    chest = make_chest(stomach=True)
    anatomy = find_anatomy(scan(chest))
    # If it did not matter that no lung lies below it, a third of it.
    assert share(anatomy.lungs, chest.parts["stomach"]) < 0.03


def test_fluid_behind_the_lung_stays_out():
    chest = make_chest(effusion=True)
    anatomy = find_anatomy(scan(chest), COARSE)
    assert chest.parts["effusion"].sum() * np.prod(SPACING_MM) / 1000 > 70
    assert share(anatomy.lungs, chest.parts["effusion"]) < 0.15


def test_bullae_are_lung_and_no_airway():
    chest = make_chest(bullae=True)
    anatomy = find_anatomy(scan(chest), COARSE)
    bullae = chest.parts["bullae"] & chest.lungs
    assert share(anatomy.lungs, bullae) > 0.98
    assert share(anatomy.airways, bullae) == 0


def test_gas_in_the_oesophagus_is_no_lung_though_its_wall_is_thin():
    chest = make_chest(oesophagus=True)
    anatomy = find_anatomy(scan(chest))
    # If it did not matter that it lies behind the trachea, as empty, all of it.
    assert share(anatomy.lungs, chest.parts["oesophagus"]) < 0.02
    assert share(anatomy.lungs, chest.lungs) > 0.97


def test_a_crop_with_lung_at_its_sides_and_one_lung_is_understood():
    chest = make_chest()
    crop = (slice(10, 60), slice(15, 95), slice(18, 76))
    anatomy = find_anatomy(Volume.from_array(chest.hu[crop].copy(), SPACING_MM), COARSE)
    assert dice(anatomy.lungs, chest.lungs[crop]) > 0.96
    assert anatomy.left_ml < 0.03 * anatomy.right_ml


def test_a_given_mask_is_used_as_it_is():
    chest = make_chest()
    given = chest.lungs.copy()
    given[:, :40] = False
    given[35, 5, 5] = True
    anatomy = find_anatomy(scan(chest), COARSE, lungs=given)
    assert np.array_equal(anatomy.lungs, given)
    assert share(anatomy.side == 1, chest.right & given) > 0.999


def test_a_given_mask_of_another_shape_is_refused():
    chest = make_chest()
    with pytest.raises(ValueError, match=r"lung mask has shape \(3, 3, 3\)"):
        find_anatomy(scan(chest), COARSE, lungs=np.ones((3, 3, 3), bool))


@pytest.mark.parametrize("hu", [-1000, 40])
def test_a_scan_without_lungs_is_refused_in_words(hu):
    noise = np.random.default_rng(0).normal(hu, 10, (40, 60, 60)).astype(np.int16)
    with pytest.raises(NoLungs, match="no lung was found"):
        find_anatomy(Volume.from_array(noise, (3.0, 3.0, 3.0)), COARSE)


def test_the_phantoms_lungs_agree_with_its_truth():
    phantom = make_phantom(4)
    anatomy = find_anatomy(Volume.from_array(phantom.hu, phantom.spacing_mm), COARSE)
    assert dice(anatomy.lungs, phantom.lungs) >= 0.97
    assert share(phantom.airways, anatomy.airways) > 0.9


def test_the_stages_are_told_in_their_order():
    stages = []

    def watch(stage: str) -> AbstractContextManager[None]:
        stages.append(stage)
        return nullcontext()

    find_anatomy(scan(make_chest()), AnatomyConfig(working_mm=4.0), watch=watch)
    assert stages == ["resample", "airways", "lungs", "vessels", "full grid"]


def test_finding_twice_gives_the_same():
    chest = make_chest()
    first, second = (find_anatomy(scan(chest), COARSE) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="working_mm"):
        AnatomyConfig(working_mm=9.0)


@pytest.mark.skipif(CT is None, reason="DIFFSEGLUNG_CT names no folder of real scans")
@pytest.mark.parametrize(("name", "least"), [("emphysema-4mm", 0.97), ("emphysema-right", 0.95)])
def test_real_emphysematous_lungs_agree_with_their_masks(name, least):
    volume = read_volume(Path(CT) / f"{name}.nii.gz")
    truth = read_labels(Path(CT) / f"{name}_lungs.nii.gz", volume) > 0
    assert dice(find_anatomy(volume).lungs, truth) >= least


@pytest.mark.skipif(CT is None, reason="DIFFSEGLUNG_CT names no folder of real scans")
@pytest.mark.parametrize(("name", "least"), [("tumour-small", 0.95), ("tumour-large", 0.90)])
def test_real_tumours_are_inside_the_lungs_and_no_vessel(name, least):
    volume = read_volume(Path(CT) / f"{name}.nii.gz")
    tumour = read_labels(Path(CT) / f"{name}_tumour.nii.gz", volume) > 0
    anatomy = find_anatomy(volume)
    assert share(anatomy.lungs, tumour) >= least
    assert share(anatomy.vessels, tumour) < 0.1
