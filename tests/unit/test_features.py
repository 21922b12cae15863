import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffseglung.features import FeatureConfig, agreed, encode, extract, width
from diffseglung.grid import Grid
from diffseglung.patches import PatchConfig, Scan
from diffseglung.student import Student, StudentConfig

STUDENT = StudentConfig(channels=(8, 8, 16), norm_groups=4, timesteps=50, embedding=16)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(STUDENT).eval()


def scan(shape: tuple[int, int, int] = (32, 64, 64)) -> Scan:
    rng = np.random.default_rng(0)
    hu = rng.normal(-850, 60, shape).astype(np.int16)
    lungs = np.zeros(shape, bool)
    lungs[:24, :40, :40] = True
    empty = np.zeros(shape, bool)
    return Scan(hu, lungs, empty, empty, Grid(shape, np.diag([2.0, 2, 2, 1])))


def test_features_lie_on_the_bottleneck_grid_once_per_timestep(student):
    features = extract(student, scan(), PatchConfig(), FeatureConfig(timesteps=(2, 9)))
    assert features.shape == (width(student, FeatureConfig(timesteps=(2, 9))), 4, 8, 8) == (32, 4, 8, 8)
    assert np.isfinite(features).all()


def test_a_scan_of_one_tile_gives_the_encoders_own_answer(student):
    one = scan((16, 32, 32))
    config = FeatureConfig(timesteps=(5,))
    noise = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(config.seed))
    expected = encode(student, one.hu[None], one.lungs[None], noise, config)[0]
    got = extract(student, one, PatchConfig(), config)
    assert got == pytest.approx(expected, abs=1e-5)  # one tile, weights divide out in float32


def test_the_number_of_tiles_at_once_changes_nothing(student):
    few, many = (
        extract(student, scan(), PatchConfig(), FeatureConfig(timesteps=(5,), tiles=n)) for n in (1, 16)
    )
    assert few == pytest.approx(many, abs=1e-5)  # convolutions may sum in another order


def test_features_see_the_ct(student):
    other = replace_hu(scan(), 300)
    config = FeatureConfig(timesteps=(5,))
    assert not np.allclose(
        extract(student, scan(), PatchConfig(), config), extract(student, other, PatchConfig(), config)
    )


def replace_hu(source: Scan, more: int) -> Scan:
    return replace(source, hu=(source.hu + more).astype(np.int16))


def test_settings_without_meaning_are_refused():
    with pytest.raises(ValueError, match=r"features\.timesteps"):
        FeatureConfig(timesteps=())
    with pytest.raises(ValueError, match=r"features\.precision"):
        FeatureConfig(precision="float16")


def test_timesteps_in_one_batch_are_those_asked_one_by_one(student):
    hu, lungs = (
        np.stack([array[:16, :32, :32], array[8:24, 8:40, 8:40]]) for array in (scan().hu, scan().lungs)
    )
    noise = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = [encode(student, hu, lungs, noise, FeatureConfig(timesteps=(t,))) for t in (2, 9)]
    together = encode(student, hu, lungs, noise, FeatureConfig(timesteps=(2, 9)))
    assert together == pytest.approx(np.concatenate(alone, axis=1), abs=1e-5)


def test_half_precision_is_kept_where_it_agrees(student):
    config = FeatureConfig(timesteps=(5,), precision="bfloat16")
    assert agreed(student, (16, 32, 32), config) == config
    full, half = (
        extract(student, scan(), PatchConfig(), FeatureConfig(timesteps=(5,), precision=name))
        for name in ("float32", "bfloat16")
    )
    apart = np.abs(full - half).mean() / full.std()
    assert 0 < apart < 0.05


def test_half_precision_is_given_up_where_it_does_not_agree(student, caplog):
    """A large constant in every channel leaves bfloat16 no digits for what varies."""
    spoilt = copy.deepcopy(student)
    *_, last = (m for m in spoilt.unet.middle_block.modules() if isinstance(m, torch.nn.Conv3d))
    with torch.no_grad():
        last.bias += 1000
    config = FeatureConfig(timesteps=(5,), precision="bfloat16")
    assert agreed(spoilt, (16, 32, 32), config).precision == "float32"
    assert "float32 is used" in caplog.text


def test_on_a_cpu_nothing_is_halved_unasked(student):
    assert FeatureConfig().dtype_on(torch.device("cpu")) == torch.float32
    assert FeatureConfig().dtype_on(torch.device("cuda")) == torch.bfloat16
    assert agreed(student, (16, 32, 32), FeatureConfig()) == FeatureConfig()


def test_the_level_above_the_bottleneck_is_read_beside_it_on_a_grid_twice_as_fine(student):
    """Every second channel block is the bottleneck itself, each position of it eight times."""
    one, two = (FeatureConfig(timesteps=(5,), levels=levels) for levels in (1, 2))
    hu, lungs = (array[None, :16, :32, :32] for array in (scan().hu, scan().lungs))
    noise = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    bottleneck, both = (encode(student, hu, lungs, noise, config)[0] for config in (one, two))
    assert both.shape == (width(student, two), 4, 8, 8) == (16 + 8, 4, 8, 8)
    np.testing.assert_array_equal(both[:16], bottleneck.repeat(2, 1).repeat(2, 2).repeat(2, 3))
    assert both[16:].std(axis=(1, 2, 3)).min() > 0
    whole = extract(student, scan(), PatchConfig(), two)
    assert whole.shape == (24, 8, 16, 16)
    assert np.isfinite(whole).all()
