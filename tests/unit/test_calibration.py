"""Calibration: numbers that can be worked out by hand, or by scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from diffseglung.calibration import Calibration, calibration_markdown, calibrations


def posteriors(shape=(4, 10, 10), seed=0, sharpness=4.0):
    rng = np.random.default_rng(seed)
    u = np.exp(sharpness * rng.random((6, *shape)))
    return (u / u.sum(axis=0)).astype(np.float32)


def drawn(u, seed=1):
    """A truth that the posteriors describe exactly."""
    dice = np.random.default_rng(seed).random(u.shape[1:])
    return ((u.cumsum(axis=0) < dice).sum(axis=0) + 1).clip(1, 6).astype(np.uint8)


def test_a_truth_drawn_from_the_posterior_is_calibrated_and_a_sharpened_posterior_is_not():
    u = posteriors((40, 60, 60))
    truth = drawn(u)
    honest = Calibration.of(u, truth)
    sharp = u**3 / (u**3).sum(axis=0)
    boastful = Calibration.of(sharp, truth)
    assert honest.error < 0.01
    assert abs(honest.overconfidence) < 0.01
    assert boastful.error > 0.1
    assert boastful.overconfidence == pytest.approx(boastful.error, abs=0.02)
    assert all(abs(right - confidence) < 0.03 for confidence, right, n in honest.curve if n > 2000)


def test_the_error_is_that_of_its_definition():
    u = np.zeros((6, 1, 1, 10), np.float32)
    u[0], u[1] = 0.83, 0.17
    truth = np.full((1, 1, 10), 1, np.uint8)
    truth[..., :4] = 2  # six of ten are right
    found = Calibration.of(u, truth)
    assert found.error == pytest.approx(0.23, abs=1e-6)
    assert found.overconfidence == pytest.approx(0.23, abs=1e-6)
    [(confidence, right, voxels)] = found.curve
    assert (confidence, right, voxels) == (pytest.approx(0.83), pytest.approx(0.6), 10)


def test_error_detection_is_the_area_under_the_curve():
    u = posteriors((20, 30, 30), sharpness=6.0)
    truth = drawn(u)
    found = Calibration.of(u, truth)
    entropy = -(u * np.log(u)).sum(axis=0)
    wrong = u.argmax(axis=0) + 1 != truth
    assert found.error_detection == pytest.approx(roc_auc_score(wrong.ravel(), entropy.ravel()), abs=2e-3)
    assert np.isnan(Calibration.of(u, (u.argmax(axis=0) + 1).astype(np.uint8)).error_detection)


def test_scans_add_up_and_travel_as_plain_lists():
    u, v = posteriors(seed=2), posteriors(seed=3)
    truths = drawn(u), drawn(v)
    both = Calibration.of(np.concatenate([u, v], axis=1), np.concatenate(truths))
    parts = [
        Calibration.from_dict(Calibration.of(*pair).to_dict()) for pair in zip((u, v), truths, strict=True)
    ]
    total = Calibration.total(parts)
    assert (total.error, total.error_detection) == pytest.approx((both.error, both.error_detection))
    assert np.isnan(Calibration.total([]).error)


def test_only_what_both_know_is_counted():
    u = posteriors()
    truth = drawn(u)
    u[:, 0], truth[1] = 0, 0
    found = calibrations(u, truth)
    assert found["lung"].voxels.sum() == 200
    assert found["diseased"].voxels.sum() == (u[:, 2:].argmax(axis=0) > 0).sum()
    table = calibration_markdown({"model": found}).splitlines()
    assert len(table) == 4
    assert "what is called diseased" in table[3]
    with pytest.raises(ValueError, match="six tissues"):
        Calibration.of(u[:5], truth)
