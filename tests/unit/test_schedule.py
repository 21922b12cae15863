import pytest
import torch

from diffseglung.schedule import Schedule, to_hu, to_unit


def test_the_window_maps_as_published():
    hu = torch.tensor([-2000, -1000, -300, 400, 3000], dtype=torch.int16)
    assert torch.allclose(to_unit(hu), torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))


def test_hu_survive_the_round_trip_inside_the_window():
    hu = torch.arange(-1000, 401, dtype=torch.int16)
    assert torch.allclose(to_hu(to_unit(hu)), hu.float(), atol=1e-3)  # float32 over a range of 1400


def test_signal_falls_from_nearly_all_to_nearly_none():
    share = Schedule(250).alpha_bar
    assert share[0] > 0.999
    assert share[-1] < 1e-3
    assert (share.diff() < 0).all()


def test_noised_data_keeps_unit_variance():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 1, 30, 30, 30, generator=generator) for _ in range(2))
    noisy = Schedule(100).add_noise(clean, noise, torch.tensor([0, 20, 60, 99]))
    assert noisy.var(dim=(1, 2, 3, 4)) == pytest.approx(
        [1.0] * 4, abs=0.03
    )  # 27,000 voxels: 1 % sampling error
