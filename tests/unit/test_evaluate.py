"""Scores: what is right, how far off, how much too much; and nothing is given away for free."""

import math

import numpy as np
import pyarrow as pa
import pytest
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from diffseglung.evaluate import (
    MEAN,
    agreement,
    agreement_markdown,
    called_diseased,
    gain,
    hd95_mm,
    over_seeds,
    score_case,
    score_slices,
    scores_table_markdown,
    summarise,
)
from diffseglung.labels import DISEASES, TISSUES, Tissue

SPACING = (2.5, 1.5, 1.5)


def blob(seed, shape=(20, 30, 34)):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return field > np.percentile(field, 75)


def scan(seed=0, without=()):
    """A label map with every tissue that is not left out."""
    truth = np.ones((12, 40, 40), np.uint8)
    for tissue in DISEASES:
        if tissue not in without:
            truth[2:9, 6 * (tissue - 1) : 6 * (tissue - 1) + 5, 3:30] = tissue
    return truth


def by_tissue(rows):
    return {row["tissue"]: row for row in rows}


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI 1.6 warns of itself
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.5, 2.0, 1.0)])
def test_hd95_is_monais_to_the_last_digits_on_every_grid(spacing_mm):
    one, other = blob(1), blob(2)
    tensors = [m[None, None].astype(np.float32) for m in (one, other)]
    theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing_mm)
    assert hd95_mm(one, other, spacing_mm) == pytest.approx(float(theirs), rel=1e-5)


def test_hd95_of_a_shifted_slab_is_its_shift_in_millimetres():
    one = np.zeros((30, 20, 20), bool)
    one[5:20] = True
    assert hd95_mm(one, np.roll(one, 3, axis=0), SPACING) == pytest.approx(3 * 2.5)
    assert hd95_mm(one, one, SPACING) == 0


def test_hd95_forgives_one_stray_voxel():
    one = np.zeros((20, 30, 30), bool)
    one[4:16, 4:20, 4:20] = True
    stray = one.copy()
    stray[10, 28, 28] = True
    assert hd95_mm(one, stray, SPACING) == 0


def test_a_perfect_segmentation_scores_one_everywhere():
    rows = score_case("a", "ours", scan(), scan(), SPACING)
    assert [row["tissue"] for row in rows] == [t.key for t in TISSUES]
    assert all(row["dice"] == 1 and row["hd95_mm"] == 0 and row["false_ml"] == 0 for row in rows)
    assert by_tissue(rows)["fibrosis"]["truth_ml"] == pytest.approx(7 * 5 * 27 * 2.5 * 1.5 * 1.5 / 1000)


def test_half_a_lesion_scores_two_thirds():
    truth = scan()
    labels = truth.copy()
    cavity = np.argwhere(truth == Tissue.CAVITY)
    labels[tuple(cavity[::2].T)] = Tissue.HEALTHY
    row = by_tissue(score_case("a", "ours", truth, labels, SPACING))["cavity"]
    assert row["dice"] == pytest.approx(2 / 3, abs=1e-3)
    assert row["false_ml"] == 0


def test_a_tissue_that_is_not_there_earns_no_score_but_its_false_volume():
    truth = scan(without=(Tissue.CAVITY,))
    labels = truth.copy()
    labels[:, :2, :4] = Tissue.CAVITY
    for found in (labels, truth):
        row = by_tissue(score_case("a", "ours", truth, found, SPACING))["cavity"]
        assert math.isnan(row["dice"])
        assert math.isnan(row["hd95_mm"])
        assert row["false_ml"] == pytest.approx(
            np.count_nonzero(found == Tissue.CAVITY) * 2.5 * 1.5 * 1.5 / 1000
        )


def test_a_tissue_that_was_missed_pays_with_the_diagonal():
    truth = scan()
    row = by_tissue(score_case("a", "ours", truth, np.ones_like(truth), SPACING))["emphysema"]
    assert row["dice"] == 0
    assert row["hd95_mm"] == pytest.approx(math.hypot(12 * 2.5, 40 * 1.5, 40 * 1.5))


def test_rows_fit_an_arrow_table():
    table = pa.Table.from_pylist(score_case("a", "ours", scan(), scan(without=(Tissue.CAVITY,)), SPACING))
    assert table.num_rows == len(TISSUES)
    assert table.schema.field("hd95_mm").type == pa.float64()


def test_a_slice_is_scored_as_a_plane():
    truth = scan()
    rows = score_slices("a", "ours", truth, np.roll(truth, 2, axis=2), SPACING, [4, 11])
    assert {row["case_id"] for row in rows} == {"a/z004", "a/z011"}
    assert by_tissue(rows[:6])["fibrosis"]["hd95_mm"] == pytest.approx(2 * 1.5)
    assert math.isnan(by_tissue(rows[6:])["fibrosis"]["dice"])
    assert math.isnan(rows[0]["truth_ml"])


def worsened(truth, share, seed):
    labels = truth.copy()
    wrong = np.random.default_rng(seed).random(truth.shape) < share
    labels[wrong] = Tissue.HEALTHY
    return labels


def cohort():
    """Eight scans, one without cavity, one healthy; `ours` misses a tenth, `theirs` a half."""
    rows = []
    for i in range(8):
        truth = (
            np.ones((12, 40, 40), np.uint8) if i == 7 else scan(without=(Tissue.CAVITY,) if i == 0 else ())
        )
        ours, theirs = worsened(truth, 0.05 + 0.01 * i, i), worsened(truth, 0.4 + 0.03 * i, i)
        if i == 7:
            theirs[:6] = Tissue.FIBROSIS
        rows += score_case(f"s{i}", "ours", truth, ours, SPACING)
        rows += score_case(f"s{i}", "theirs", truth, theirs, SPACING)
    return rows


def test_the_mean_over_diseases_is_the_mean_of_their_means():
    rows = cohort()
    summary = {(row["method"], row["tissue"]): row for row in summarise(rows)}
    means = [
        np.nanmean([r["dice"] for r in rows if r["method"] == "ours" and r["tissue"] == t.key])
        for t in DISEASES
    ]
    ours = summary["ours", MEAN]
    assert ours["dice"] == pytest.approx(np.mean(means))
    assert ours["dice_low"] < ours["dice"] < ours["dice_high"]
    assert summary["ours", "cavity"]["scans"] == 6
    assert summary["ours", "fibrosis"]["scans"] == 7
    assert summary["theirs", "fibrosis"]["false_ml"] == pytest.approx(
        6 * 40 * 40 * 2.5 * 1.5 * 1.5 / 1000 / 8
    )


def test_the_interval_covers_the_spread_of_the_scans():
    """For one tissue the bootstrap's width is that of a mean: 3.92 standard errors."""
    rng = np.random.default_rng(3)
    dices = rng.normal(0.7, 0.1, 60)
    rows = [
        {"case_id": f"{i:02d}", "method": "m", "tissue": t.key, "dice": float(d), "hd95_mm": 1.0}
        | dict.fromkeys(("truth_ml", "pred_ml", "false_ml"), 1.0)
        for i, d in enumerate(dices)
        for t in TISSUES
    ]
    row = summarise(rows)[2]
    error = dices.std() / math.sqrt(60)
    assert row["dice_high"] - row["dice_low"] == pytest.approx(3.92 * error, rel=0.1)


def test_a_gain_is_measured_on_the_same_scans():
    rows = cohort()
    better = gain(rows, "ours", "theirs")
    assert 0 < better["gain_low"] < better["gain"] < better["gain_high"]
    assert gain(rows, "ours", "ours")["gain_high"] == 0
    fewer = [row for row in rows if not (row["method"] == "theirs" and row["case_id"] == "s3")]
    with pytest.raises(ValueError, match="not scored on the same scans"):
        gain(fewer, "ours", "theirs")


def test_a_healthy_scan_called_diseased_is_told_as_a_share_of_its_lung():
    shares = {row["method"]: row for row in called_diseased(cohort())}
    assert shares["ours"]["share"] == 0
    assert shares["theirs"]["share"] == pytest.approx(0.5)
    assert shares["theirs"]["scans"] == 1


def test_the_table_has_a_line_a_method():
    table = scores_table_markdown(cohort())
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert lines[0].count("|") == 11
    assert lines[2].startswith("| ours | .9")
    assert "50.0%" in lines[3]
    assert "8 scans" in table


def test_a_cohort_without_disease_or_truth_for_a_tissue_still_makes_a_table():
    healthy = np.ones((4, 8, 8), np.uint8)
    assert "| - |" in scores_table_markdown(score_case("a", "ours", healthy, healthy, SPACING))


def test_label_maps_on_another_grid_are_refused_in_words():
    with pytest.raises(ValueError, match="do not fit together"):
        score_case("a", "ours", scan(), scan()[1:], SPACING)


def volumes(case, method, called_ml, true_ml, dice=0.5, seed=0):
    return [
        {"case_id": case, "method": method, "tissue": t.key, "dice": dice, "hd95_mm": 1.0, "seed": seed}
        | {"truth_ml": true_ml, "pred_ml": called_ml, "false_ml": 0.0}
        for t in TISSUES
    ]


def test_limits_of_agreement_are_the_bias_and_two_spreads_of_the_volumes_error():
    """Bland and Altman on errors of +10, +20, +30 ml: mean 20, SD 10."""
    rows = [row for i, error in enumerate((10, 20, 30)) for row in volumes(f"s{i}", "m", 50 + error, 50)]
    row = next(row for row in agreement(rows) if row["tissue"] == "fibrosis")
    assert (row["bias_ml"], row["scans"]) == (pytest.approx(20), 3)
    assert (row["low_ml"], row["high_ml"]) == (pytest.approx(20 - 19.6), pytest.approx(20 + 19.6))
    assert agreement_markdown(rows).splitlines()[2].startswith("| m | +20 [+0, +40] |")
    assert "+20 [+0, +40]" in scores_table_markdown(rows)


def test_a_volume_that_was_called_where_the_tissue_is_not_counts_in_the_agreement():
    rows = score_case("a", "m", scan(without=(Tissue.CAVITY,)), scan(), SPACING)
    row = by_tissue(agreement(rows))["cavity"]
    assert row["bias_ml"] == pytest.approx(by_tissue(rows)["cavity"]["false_ml"])
    assert row["bias_ml"] > 0
    assert math.isnan(row["low_ml"])  # one scan has no spread


def test_seeds_are_averaged_scan_by_scan_before_anything_is_said_of_scans():
    rows = volumes("a", "m", 10, 0, 0.2, seed=0) + volumes("a", "m", 30, 0, 0.6, seed=1)
    rows += volumes("b", "m", 5, 0, math.nan, seed=0) + volumes("b", "m", 5, 0, math.nan, seed=1)
    merged = over_seeds(rows)
    assert len(merged) == 2 * len(TISSUES)
    assert (merged[0]["dice"], merged[0]["pred_ml"]) == (pytest.approx(0.4), pytest.approx(20))
    assert math.isnan(merged[len(TISSUES)]["dice"])
