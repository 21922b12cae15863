import json

import nibabel as nib
import numpy as np
import pytest

from diffseglung.labels import TISSUES
from diffseglung.results import CaseResult, case_result, write_case
from diffseglung.schemas import RESULTS


@pytest.fixture(scope="module")
def result(volume, segmentation) -> CaseResult:
    return case_result("p", volume, segmentation, model_uri="here", model_version="1", config_sha256="c")


def test_a_row_has_the_columns_of_the_table(result):
    assert set(result.row()) == set(RESULTS.names)


def test_litres_are_voxels_times_their_volume(result, volume, segmentation):
    row = result.row()
    voxel_ml = np.prod(volume.spacing_mm) / 1000
    for tissue in TISSUES:
        assert row[f"{tissue.key}_ml"] == pytest.approx((segmentation.labels == tissue).sum() * voxel_ml)
    assert sum(row[f"{t.key}_pct"] for t in TISSUES) == pytest.approx(100)
    assert row["lung_ml"] == pytest.approx(row["right_lung_ml"] + row["left_lung_ml"], rel=1e-3)


def test_low_attenuation_is_the_share_below_minus_950(result, volume, segmentation):
    hu = volume.hu[segmentation.anatomy.lungs]
    assert result.laa950_pct == pytest.approx(100 * np.mean(hu < -950))


def test_a_result_comes_back_from_its_row(result):
    assert CaseResult.from_row(json.loads(json.dumps(result.row()))) == result
    failed = CaseResult(case_id="x", status="failed", reason="no lungs")
    assert CaseResult.from_row(failed.row()) == failed


def test_the_files_lie_on_the_inputs_own_grid(tmp_path, scan_path, volume, segmentation, result):
    write_case(tmp_path / "p", volume, segmentation, result, probabilities=True)
    source = nib.load(scan_path)
    for name in ("segmentation", "anatomy", "probabilities"):
        image = nib.load(tmp_path / "p" / f"{name}.nii.gz")
        assert image.shape[:3] == source.shape
        assert np.allclose(image.affine, source.affine)
    assert nib.load(tmp_path / "p" / "segmentation.nii.gz").get_data_dtype() == np.uint8
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "segmentation.nii.gz", "anatomy.nii.gz", "probabilities.nii.gz", "preview.png", "pictures.json", "result.json",
    }  # fmt: skip


def test_a_case_is_written_whole_or_not_at_all(tmp_path, volume, segmentation, result, monkeypatch):
    write_case(tmp_path / "p", volume, segmentation, result)
    before = (tmp_path / "p" / "result.json").read_bytes()
    monkeypatch.setattr("diffseglung.report.case_preview", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_case(tmp_path / "p", volume, segmentation, result)
    assert (tmp_path / "p" / "result.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
