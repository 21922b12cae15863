import numpy as np
import pytest

from diffseglung.patches import (
    PatchConfig,
    between_cells,
    cell_share,
    cut,
    regrid,
    sample_corners,
    seed_of,
    stitch,
    tile_corners,
    window_mean,
)

SIZE, STRIDE = (16, 32, 32), 8


def ball(shape: tuple[int, int, int] = (48, 64, 80), radius: float = 22) -> np.ndarray:
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    centre = [n / 2 for n in shape]
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


def test_stitching_undoes_cutting():
    field = np.random.default_rng(0).normal(size=(3, 48, 64, 80)).astype(np.float32)
    everywhere = np.ones((48, 64, 80), bool)
    corners = tile_corners(everywhere, SIZE, 0.5, STRIDE)
    tiles = ((c, np.stack([cut(f, c, SIZE) for f in field])) for c in corners)
    assert stitch(tiles, (48, 64, 80), 3) == pytest.approx(field, abs=1e-5)  # float32 sums


def test_between_cells_lies_what_lies_on_both_sides():
    ramp = np.broadcast_to(np.arange(4.0), (1, 2, 3, 4))
    between = between_cells(ramp)
    assert between.shape == (1, 3, 4, 5)
    assert np.array_equal(between[0, 1, 1], [0, 0.5, 1.5, 2.5, 3])


def test_tiles_cover_every_lung_voxel():
    lungs = ball(radius=11)
    covered = np.zeros_like(lungs)
    for corner in tile_corners(lungs, SIZE, 0.5, STRIDE):
        covered[tuple(slice(c, c + n) for c, n in zip(corner, SIZE, strict=True))] = True
    assert covered[lungs].all()
    assert not covered.all()


def test_tiles_without_lung_are_left_out_and_seen_as_unknown():
    lungs = np.zeros((32, 64, 64), bool)
    lungs[2:6, 2:6, 2:6] = True
    corners = tile_corners(lungs, SIZE, 0.0, STRIDE)
    assert corners == [(0, 0, 0)]
    assert np.isnan(
        stitch(((c, np.ones((1, *SIZE), np.float32)) for c in corners), lungs.shape, 1)[0, -1, -1, -1]
    )


def test_sampled_patches_hold_enough_lung_and_lie_on_whole_strides():
    config, lungs = PatchConfig(per_case=10), ball(radius=26)
    corners = sample_corners(lungs, config, STRIDE, seed=1)
    assert len(corners) == 10
    assert corners == sorted(corners)
    for corner in corners:
        assert cut(lungs, corner, SIZE).mean() >= config.min_lung
        assert all(c % STRIDE == 0 for c in corner)


def test_small_lungs_give_their_best_patches_rather_than_none():
    lungs = ball(radius=9)
    corners = sample_corners(lungs, PatchConfig(per_case=3), STRIDE, seed=1)
    assert len(corners) == 3
    assert all(cut(lungs, c, SIZE).any() for c in corners)


def test_sampling_depends_on_seed_and_case_alone():
    lungs = ball(radius=28)
    first, again, other = (
        sample_corners(lungs, PatchConfig(per_case=5), STRIDE, seed_of(0, case)) for case in ("a", "a", "b")
    )
    assert first == again != other


def test_window_mean_is_the_mean_of_the_window():
    mask = np.random.default_rng(3).random((9, 8, 7)) > 0.5
    means = window_mean(mask, (3, 4, 2))
    assert means.shape == (7, 5, 6)
    assert means[2, 1, 3] == pytest.approx(mask[2:5, 1:5, 3:5].mean())


def test_cell_share_counts_each_cell():
    mask = np.zeros((4, 8, 8), bool)
    mask[:2, :4, :4] = True
    share = cell_share(mask, (4, 4, 4))
    assert share.shape == (1, 2, 2)
    assert share[0, 0, 0] == 0.5
    assert share[0, 1, 1] == 0


def test_regridding_is_linear_between_cell_centres():
    ramp = np.arange(4, dtype=np.float32)[None, :, None, None] * np.ones((1, 4, 4, 4), np.float32)
    fine = regrid(ramp, (8, 8, 8))
    assert fine[0, :, 0, 0] == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize(
    "bad", [{"min_lung": 0.0}, {"overlap": 1.0}, {"thick_mm": -1.0}, {"spacing_mm": (0.0, 2.0, 2.0)}]
)
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(ValueError, match="patches"):
        PatchConfig(**bad)
