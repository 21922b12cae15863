"""Fidelity has a floor that real patches reach, and what is worse than real lies above it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from diffseglung.fidelity import (
    DISTANCES,
    Patches,
    fidelity,
    fidelity_table,
    frechet,
    likeness,
    load_network,
    mmd,
    reconstruction,
    wasserstein,
)
from diffseglung.schedule import Schedule, to_unit
from diffseglung.student import StudentConfig


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


def test_mmd_is_nought_for_one_distribution_and_the_kernels_for_two():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    assert abs(mmd(a, b)) < 0.01  # unbiased: about 1 / n
    # Two points far apart against one of them: the kernel between is 0, within 1 or 1/2.
    near, far = np.zeros((100, 1)), np.repeat([[0.0], [100.0]], 50, axis=0)
    within = (49 + 50 * np.exp(-0.5)) / 99  # width is the median distance, 100
    between = (1 + np.exp(-0.5)) / 2
    assert mmd(near, far) == pytest.approx(1 + within - 2 * between)


def patches(count, mean_hu, sd_hu, seed):
    rng = np.random.default_rng(seed)
    hu = rng.normal(mean_hu, sd_hu, (count, 6, 12, 12)).round().astype(np.int16)
    return Patches(hu, np.ones(hu.shape, bool))


def test_patches_from_elsewhere_are_farther_than_the_floor():
    real, same, denser = patches(60, -850, 60, 0), patches(30, -850, 60, 1), patches(30, -600, 60, 2)
    near, far = fidelity(same, real), fidelity(denser, real)
    assert near["compared"] == 30
    assert near["frechet"] < 2 * near["frechet_floor"]
    assert far["frechet"] > 4 * far["frechet_floor"]
    assert abs(near["mmd"]) < 0.05 < 0.4 < far["mmd"]
    assert far["hu_wasserstein"] == pytest.approx(250, abs=3)
    assert near["hu_wasserstein"] < 3 > near["hu_wasserstein_floor"]
    assert near["fid"] is None


def test_fidelity_looks_at_the_lung_alone():
    real, made = patches(40, -850, 60, 0), patches(20, -850, 60, 1)
    lungs = np.random.default_rng(0).random(real.hu.shape) < 0.8
    wall = np.where(lungs[:20], made.hu, 300).astype(np.int16)
    side = Patches(real.hu, lungs)
    assert fidelity(Patches(made.hu, lungs[:20]), side) == fidelity(Patches(wall, lungs[:20]), side)


def test_one_patch_has_no_distance():
    real = patches(8, -850, 60, 0)
    assert fidelity(Patches(real.hu[:1], real.lungs[:1]), real)["frechet"] is None


class Means(torch.nn.Module):
    """A feature map of the mean of each block: flat or deep."""

    def __init__(self, flat: bool):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 3, bias=False) if flat else torch.nn.Conv3d(1, 2, 3, bias=False)
        torch.nn.init.constant_(self.conv.weight, 1 / self.conv.weight[0].numel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("flat", [True, False])
def test_a_network_of_ones_own_is_given_what_it_asks_for(flat: bool, tmp_path: Path):
    path = tmp_path / "network.pt"
    torch.jit.script(Means(flat)).save(str(path))
    embed = load_network(path)
    hu = np.full((20, 6, 12, 12), -300, np.int16)
    hu[:, 3] = 50
    seen = 50 if flat else (-300 * 9 + 50 * 3) / 12  # the middle slice is in three of four blocks of three
    np.testing.assert_allclose(embed(hu), np.full((20, 2), float(to_unit(torch.tensor(seen)))), rtol=1e-5)
    real, same, denser = patches(60, -850, 60, 0), patches(30, -850, 60, 1), patches(30, -600, 60, 2)
    near, far = (fidelity(made, real, embed=embed) for made in (same, denser))
    assert near["fid"] < 1e-3 > near["fid_floor"]
    assert far["fid"] == pytest.approx(2 * (250 / 700) ** 2, rel=0.02)


def test_what_is_no_network_is_refused(tmp_path: Path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"weights\.pt is no TorchScript network"):
        load_network(path)


def test_likeness_knows_the_same_and_the_noise():
    a = np.random.default_rng(0).normal(-500, 100, (8, 16, 16))
    assert likeness(a, a) == (1.0, float("inf"))
    assert likeness(a, a + 14)[1] == pytest.approx(40)  # 14 HU are a hundredth of the window
    small = np.random.default_rng(1).normal(-500, 100, (6, 8, 8))
    assert 0 < likeness(small, small + np.random.default_rng(2).normal(0, 50, small.shape))[0] < 1


class Blurred(torch.nn.Module):
    """Takes the mean of the noisy patch for the clean one."""

    config = StudentConfig(timesteps=250)

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.schedule = Schedule(250)

    def forward(self, noisy, lungs, t):
        share = self.schedule.alpha_bar[t].view(-1, 1, 1, 1, 1)
        clean = (noisy / share.sqrt()).mean(dim=(2, 3, 4), keepdim=True).expand_as(noisy)
        return (noisy - share.sqrt() * clean) / (1 - share).sqrt(), None


def test_a_denoiser_lies_between_the_noise_and_the_original():
    flat = np.full((4, 8, 16, 16), -600, np.int16) + np.arange(4, dtype=np.int16)[:, None, None, None] * 60
    real = Patches(flat, np.ones(flat.shape, bool))
    found = reconstruction(Blurred(), real, seed=0)
    assert found["noise_share"] == pytest.approx(0.5, abs=0.01)
    assert found["psnr_db"] > 30 > found["psnr_db_floor"] > found["psnr_db_noisy"]
    assert found["ssim"] > 0.9 > 0.1 > found["ssim_noisy"]


def test_the_table_has_each_score_beside_its_floor():
    real = patches(20, -850, 60, 0)
    measured = fidelity(patches(10, -850, 60, 1), real)
    table = fidelity_table(measured)
    assert f"{measured['frechet']:.3g} | {measured['frechet_floor']:.3g}" in table
    assert DISTANCES["mmd"] in table
    assert DISTANCES["fid"] not in table
    measured |= {f"{k}{e}": 0.5 for k in ("ssim", "psnr_db") for e in ("", "_noisy", "_floor")}
    assert "50 % of the variance was noise" in fidelity_table(measured | {"noise_share": 0.5})
