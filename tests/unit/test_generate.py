"""Sampling follows the known path of a Gaussian, and fidelity has a floor that real patches reach."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from diffseglung.generate import FIRST_SHARE, denoise, fidelity, frechet, generate, sample, wasserstein
from diffseglung.schedule import Schedule, to_unit
from diffseglung.student import Student, StudentConfig

MEAN, SD = -0.4, 0.1
SCHEDULE = Schedule(250)


def best_noise(noisy, t):
    """The expected noise in `noisy` when the clean voxels are normal with MEAN and SD: a perfect student."""
    share = SCHEDULE.alpha_bar[t].view(-1, *[1] * (noisy.ndim - 1))
    return (1 - share).sqrt() * (noisy - share.sqrt() * MEAN) / (share * SD**2 + 1 - share)


def sampled(steps, noise):
    return denoise(
        best_noise, prior=torch.full_like(noise, MEAN), noise=noise, schedule=SCHEDULE, steps=steps
    )


def probability_flow(noise):
    """Where the exact flow takes the start: the number of standard deviations from the mean stays the same."""
    share = SCHEDULE.alpha_bar[SCHEDULE.alpha_bar >= FIRST_SHARE][-1]
    start = share.sqrt() * MEAN + (1 - share).sqrt() * noise
    return MEAN + SD * (start - share.sqrt() * MEAN) / (share * SD**2 + 1 - share).sqrt()


def test_a_perfect_student_draws_from_the_right_gaussian():
    noise = torch.randn(4, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    drawn = sampled(25, noise)
    # 55,296 voxels: the mean is known to SD / 235, the SD to 0.3 %; 25 steps of the solver add 1 %.
    assert drawn.mean().item() == pytest.approx(MEAN, abs=SD / 50)
    assert drawn.std().item() == pytest.approx(SD, rel=0.02)
    assert stats.kurtosis(drawn.flatten().numpy()) == pytest.approx(0, abs=0.1)


def test_every_voxel_follows_the_exact_flow():
    noise = torch.linspace(-2, 2, 41).view(1, 1, 1, 1, -1)
    exact = probability_flow(noise)
    errors = {steps: (sampled(steps, noise) - exact).abs().max().item() for steps in (10, 25, 200)}
    # 2 SD out; rounding the spaced timesteps to whole ones keeps the limit from being reached.
    assert errors[10] < 0.08 * SD
    assert errors[25] < 0.03 * SD
    assert errors[200] < 0.02 * SD


def test_samples_are_hu_and_depend_on_seed_and_place_alone():
    torch.manual_seed(0)
    student = Student(StudentConfig(channels=(8, 16), norm_groups=4, timesteps=50))
    lungs = np.zeros((3, 8, 8, 8), bool)
    lungs[:, :, 2:] = True
    drawn = sample(student, lungs, seed=1, steps=3)
    assert drawn.shape == lungs.shape
    assert drawn.dtype == np.int16
    assert -1000 <= drawn.min() < drawn.max() <= 400
    # The same patch alone or beside others; a batch's convolutions may round differently.
    assert np.abs(sample(student, lungs[:1], seed=1, steps=3)[0] - drawn[0]).max() <= 1
    assert np.abs(sample(student, lungs, seed=2, steps=3) - drawn).max() > 10


def test_a_student_hears_where_the_lung_shall_be():
    class Painter(torch.nn.Module):
        """Knows the answer: -800 HU in the lung, 40 HU outside."""

        config = StudentConfig(timesteps=250)

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, noisy, lungs, t):
            share = SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1, 1)
            clean = to_unit(torch.where(lungs > 0, -800, 40))
            return (noisy - share.sqrt() * clean) / (1 - share).sqrt(), None

    lungs = np.random.default_rng(0).random((2, 6, 6, 6)) < 0.5
    np.testing.assert_array_equal(sample(Painter(), lungs, seed=0), np.where(lungs, -800, 40))


def test_as_many_masks_as_patches_are_asked_for():
    @dataclass
    class Nothing:
        student: None = None

    with pytest.raises(ValueError, match="as many lung masks"):
        generate(Nothing(), 3, 0, lungs=np.ones((2, 4, 4, 4)))
    with pytest.raises(ValueError, match="steps 0"):
        sampled(0, torch.zeros(1, 1, 2, 2, 2))


def test_frechet_of_two_gaussians_is_the_formulas():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (200_000, 3)), rng.normal(0, 1, (200_000, 3)) * [1, 2, 3] + [1, 0, 0]
    # |shift|^2 + sum (sd - sd)^2 = 1 + 0 + 1 + 4 for independent columns.
    assert frechet(a, b) == pytest.approx(6, rel=0.02)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_wasserstein_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 1000, 1401), rng.integers(0, 1000, 1401)
    hu = np.arange(-1000, 401)
    assert wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(hu, hu, a, b))


def patches(count, mean_hu, sd_hu, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(mean_hu, sd_hu, (count, 6, 12, 12)).round().astype(np.int16)


def test_patches_from_elsewhere_are_farther_than_the_floor():
    real, same, denser = patches(60, -850, 60, 0), patches(30, -850, 60, 1), patches(30, -600, 60, 2)
    near, far = fidelity(same, real), fidelity(denser, real)
    assert near["compared"] == 30
    assert near["frechet"] < 2 * near["frechet_floor"]
    assert far["frechet"] > 4 * far["frechet_floor"]
    assert far["hu_wasserstein"] == pytest.approx(250, abs=3)
    assert near["hu_wasserstein"] < 3 > near["hu_wasserstein_floor"]


def test_fidelity_looks_at_the_lung_alone():
    real, made = patches(40, -850, 60, 0), patches(20, -850, 60, 1)
    lungs = np.random.default_rng(0).random(real.shape) < 0.8
    wall = np.where(lungs[:20], made, 300).astype(np.int16)
    masks = {"generated_lungs": lungs[:20], "real_lungs": lungs}
    assert fidelity(made, real, **masks) == fidelity(wall, real, **masks)


def test_one_patch_has_no_distance():
    real = patches(8, -850, 60, 0)
    assert fidelity(real[:1], real)["frechet"] is None
