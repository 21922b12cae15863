import os
from pathlib import Path

import numpy as np
import pytest
from made_scans import chest_hu, ct_series, save_series
from pydicom.uid import MRImageStorage

from diffseglung.scans import find_scans
from diffseglung.volume import UnreadableScan, read_volume

HU = chest_hu()


def touch(root: Path, *names: str) -> Path:
    """Files by name alone: an image file is listed before it is read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(root: Path) -> list[str]:
    return [scan.case_id for scan in find_scans(root)]


def test_files_of_every_format_are_found_in_every_folder(tmp_path):
    root = touch(
        tmp_path, "b.nii", "a.nii.gz", "deep/er/c.nrrd", "deep/d.mha", "e.mhd", "e.raw", "notes.txt", "f.png"
    )
    assert [(scan.case_id, scan.kind) for scan in find_scans(root)] == [
        ("a", "nifti"),
        ("b", "nifti"),
        ("c", "nrrd"),
        ("d", "metaimage"),
        ("e", "metaimage"),
    ]


def test_masks_beside_their_image_are_no_scans(tmp_path):
    root = touch(
        tmp_path, "a.nii.gz", "a_lungs.nii.gz", "a_tumour.nrrd", "a_seg.nii", "a_mask.mha", "a_truth.nii"
    )
    assert names(root) == ["a"]


def test_a_name_that_only_looks_like_a_mask_is_a_scan(tmp_path):
    assert names(touch(tmp_path, "normal_full.nii.gz", "both_lungs.nii.gz")) == ["both_lungs", "normal_full"]


def test_folders_of_truth_and_of_our_own_results_are_left_out(tmp_path):
    root = touch(tmp_path, "images/a.nii.gz", "truth/a.nii.gz", "lungs/a.nii.gz", "truth/unpaired.nii.gz")
    touch(root, "out/cases/a/segmentation.nii.gz", "out/cases/a/anatomy.nii.gz")
    assert names(root) == ["a", "unpaired"]


def test_hidden_files_are_left_out(tmp_path):
    assert names(touch(tmp_path, "._a.nii.gz", ".cache/b.nii.gz", "c.nii.gz")) == ["c"]


def test_names_that_meet_are_told_apart_by_their_folders(tmp_path):
    root = touch(tmp_path, "p1/ct.nii.gz", "p2/ct.nii.gz", "p3/CT.nrrd", "p3/ct.mha", "scan 1 (a).nii")
    assert names(root) == ["p1-ct", "p2-ct", "p3-CT", "p3-ct-2", "scan_1_a"]


def test_links_that_go_round_end(tmp_path):
    root = touch(tmp_path / "cohort", "a/ct1.nii")
    (root / "a" / "again").symlink_to(root, target_is_directory=True)
    touch(tmp_path / "elsewhere", "ct2.nii")
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert names(root) == ["ct1", "ct2"]


def test_a_link_that_leads_nowhere_is_listed_so_that_reading_it_says_so(tmp_path):
    root = touch(tmp_path, "a.nii")
    (root / "gone.nii").symlink_to(tmp_path / "nowhere.nii")
    (root / "round.nii").symlink_to(tmp_path / "round.nii")
    (root / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    assert names(root) == ["a", "gone", "round"]
    with pytest.raises(UnreadableScan, match="leads nowhere"):
        read_volume(root / "round.nii")


def test_a_dicom_folder_is_one_scan_whatever_its_files_are_called(tmp_path):
    folder = save_series(tmp_path / "patient 7", ct_series(HU))
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"IM{number}")
    (scan,) = find_scans(tmp_path)
    assert (scan.case_id, scan.kind, scan.series_uid) == ("patient_7", "dicom", "1.2.3.5")
    assert find_scans(folder)[0].case_id == "patient_7"


def test_each_series_of_a_folder_is_a_scan_but_not_its_scouts(tmp_path):
    save_series(tmp_path / "p", ct_series(HU))
    second = ct_series(HU, series_uid="7.7")
    for one in second:
        one.SeriesNumber = 5
    save_series(tmp_path / "p", second, prefix="b")
    save_series(tmp_path / "p", ct_series(HU[:4], series_uid="8.8"), prefix="bolus")
    scout = ct_series(HU[:20], series_uid="9.9")
    for one in scout:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save_series(tmp_path / "p", scout, prefix="scout")
    assert [(scan.case_id, scan.series_uid) for scan in find_scans(tmp_path)] == [
        ("p-4", "1.2.3.5"),
        ("p-5", "7.7"),
    ]


def test_a_folder_that_reading_will_refuse_is_listed_so_that_it_says_why(tmp_path):
    touch(tmp_path, "empty/1.dcm")
    mr = ct_series(HU)
    for one in mr:
        one.Modality, one.SOPClassUID = "MR", MRImageStorage
    save_series(tmp_path / "head", mr)
    assert [(scan.case_id, scan.series_uid) for scan in find_scans(tmp_path)] == [
        ("empty", None),
        ("head", None),
    ]


def test_a_folder_that_may_not_be_read_is_named_and_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.nii", "locked/2.nii")
    read = Path.iterdir

    def refuse(self):
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "iterdir", refuse)  # a test run as root may read everything
    with pytest.raises(ValueError, match=r"locked may not be read \(Permission denied\)"):
        find_scans(tmp_path)


def test_a_series_that_lies_in_several_folders_is_one_scan(tmp_path):
    save_series(tmp_path / "p" / "disc1", ct_series(HU)[:14])
    save_series(tmp_path / "p" / "disc2", ct_series(HU)[14:])
    (scan,) = find_scans(tmp_path)
    assert (scan.path, scan.case_id, scan.series_uid) == (tmp_path / "p", "p", "1.2.3.5")
    assert np.array_equal(read_volume(scan.path, series=scan.series_uid).hu, HU)


def test_a_series_that_is_copied_to_another_folder_is_two_scans(tmp_path):
    series = ct_series(HU)
    for folder in ("a", "b"):
        save_series(tmp_path / folder, series)
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        find_scans(tmp_path / "gone")


@pytest.mark.skipif("DIFFSEGLUNG_CT" not in os.environ, reason="DIFFSEGLUNG_CT names no folder of real scans")
def test_the_real_scans_are_listed_without_their_masks():
    found = names(Path(os.environ["DIFFSEGLUNG_CT"]))
    assert {"covid-a", "dicom-covid-a", "normal-a_full", "nodule-crop"} <= set(found)
    assert not [name for name in found if name.endswith(("_lungs", "_tumour"))]
