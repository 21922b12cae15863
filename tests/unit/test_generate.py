"""Every sampler follows the known path of a Gaussian."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from diffseglung.generate import FIRST_SHARE, SAMPLERS, denoise, foresee, generate, reconstruct, sample
from diffseglung.schedule import Schedule, to_unit
from diffseglung.student import Student, StudentConfig

MEAN, SD = -0.4, 0.1
SCHEDULE = Schedule(250)


def best_noise(noisy, t):
    """The expected noise in `noisy` when the clean voxels are normal with MEAN and SD: a perfect student."""
    share = SCHEDULE.alpha_bar[t].view(-1, *[1] * (noisy.ndim - 1))
    return (1 - share).sqrt() * (noisy - share.sqrt() * MEAN) / (share * SD**2 + 1 - share)


def sampled(steps, noise, sampler="dpm++2"):
    generator = torch.Generator().manual_seed(1)
    return denoise(
        best_noise,
        prior=torch.full_like(noise, MEAN),
        noise=noise,
        schedule=SCHEDULE,
        steps=steps,
        sampler=sampler,
        fresh=(torch.randn(noise.shape, generator=generator) for _ in range(250)),
    )


def probability_flow(noise):
    """Where the exact flow takes the start: the number of standard deviations from the mean stays the same."""
    share = SCHEDULE.alpha_bar[SCHEDULE.alpha_bar >= FIRST_SHARE][-1]
    start = share.sqrt() * MEAN + (1 - share).sqrt() * noise
    return MEAN + SD * (start - share.sqrt() * MEAN) / (share * SD**2 + 1 - share).sqrt()


# Steps, and by how much the standard deviation may be off: DDIM is known to lose texture in few steps.
@pytest.mark.parametrize(
    ("sampler", "steps", "within"),
    [("dpm++2", 25, 0.02), ("dpm++3", 25, 0.02), ("ddim", 200, 0.05), ("ddpm", None, 0.08)],
)
def test_a_perfect_student_draws_from_the_right_gaussian(sampler, steps, within):
    noise = torch.randn(4, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    drawn = sampled(steps, noise, sampler)
    # 55,296 voxels: the mean is known to SD / 235, the SD to 0.3 %.
    assert drawn.mean().item() == pytest.approx(MEAN, abs=SD / 50)
    assert drawn.std().item() == pytest.approx(SD, rel=within)
    assert stats.kurtosis(drawn.flatten().numpy()) == pytest.approx(0, abs=0.1)


# 2 SD out, in SD; rounding the spaced timesteps to whole ones keeps the limit from being reached.
@pytest.mark.parametrize(
    ("sampler", "within"),
    [
        ("ddim", {10: 0.45, 25: 0.2, 200: 0.08}),
        ("dpm++2", {10: 0.08, 25: 0.03, 200: 0.02}),
        ("dpm++3", {10: 0.2, 25: 0.04, 200: 0.03}),
    ],
)
def test_every_voxel_follows_the_exact_flow(sampler, within):
    noise = torch.linspace(-2, 2, 41).view(1, 1, 1, 1, -1)
    exact = probability_flow(noise)
    errors = {steps: (sampled(steps, noise, sampler) - exact).abs().max().item() / SD for steps in within}
    assert all(errors[steps] < most for steps, most in within.items()), errors


def test_the_third_order_is_exact_where_the_estimate_bends_evenly():
    """D = int e^(u - end) p(u) du / (1 - e^-h) over the step, for a parabola p in the log SNR."""

    def parabola(u):
        return 0.3 - 0.2 * u + 0.5 * u**2

    at, h = [-0.7, -0.1, 0.0], 0.8
    u = np.linspace(0, h, 100_001)
    exact = np.trapezoid(np.exp(u - h) * parabola(u), u) / (1 - np.exp(-h))
    cleans = [torch.tensor(parabola(a), dtype=torch.float64) for a in at]
    assert foresee(cleans, [0.6, 0.1, h]).item() == pytest.approx(exact, rel=1e-6)
    assert foresee(cleans[1:], [0.6, 0.1, h]).item() != pytest.approx(exact, rel=1e-2)


def test_ddpm_keeps_the_spread_that_its_posteriors_have():
    """Ho et al. 2020, eq. 7, for a student that is right about normal voxels: an affine map and a noise a step."""
    times = torch.arange(250)[SCHEDULE.alpha_bar >= FIRST_SHARE].flip(0)
    variance = 0.0  # of x_t around its mean, where all begin with the same noise
    for t in times.tolist():
        bar = SCHEDULE.alpha_bar[t].item()
        guess = bar**0.5 * SD**2 / (bar * SD**2 + 1 - bar)  # of x_0, a unit of x_t
        if t == 0:
            variance *= guess**2
            break
        before = SCHEDULE.alpha_bar[t - 1].item()
        beta = 1 - bar / before
        mean = before**0.5 * beta / (1 - bar) * guess + (1 - beta) ** 0.5 * (1 - before) / (1 - bar)
        variance = mean**2 * variance + (1 - before) / (1 - bar) * beta
    drawn = sampled(None, torch.zeros(4, 1, 24, 24, 24), "ddpm")
    assert drawn.std().item() == pytest.approx(variance**0.5, rel=0.01)  # 55,296 voxels: 0.3 %
    assert sampled(25, torch.zeros(1, 1, 8, 8, 8), "ddim").std().item() < 1e-6


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


def test_as_many_masks_as_patches_are_asked_for():
    @dataclass
    class Nothing:
        student: None = None

    with pytest.raises(ValueError, match="as many lung masks"):
        generate(Nothing(), 3, 0, lungs=np.ones((2, 4, 4, 4)))
    with pytest.raises(ValueError, match="steps 0"):
        sampled(0, torch.zeros(1, 1, 2, 2, 2))
    with pytest.raises(ValueError, match="no sampler 'euler'; there are: ddpm, ddim"):
        sampled(3, torch.zeros(1, 1, 2, 2, 2), "euler")


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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_student_hears_where_the_lung_shall_be(sampler):
    lungs = np.random.default_rng(0).random((2, 6, 6, 6)) < 0.5
    answer = np.where(lungs, -800, 40)
    np.testing.assert_array_equal(sample(Painter(), lungs, seed=0, sampler=sampler), answer)
    other = np.full(lungs.shape, -500)
    np.testing.assert_array_equal(
        reconstruct(Painter(), other, lungs, 0, first=80, steps=5, sampler=sampler), answer
    )
