from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffseglung.config import Config
from diffseglung.distill import (
    Distillation,
    TrainConfig,
    collapse,
    distill,
    distillation_loss,
    draw_randomness,
    flip_some,
    info_nce,
    prepare_batch,
    rare_first,
)
from diffseglung.patches import PatchConfig
from diffseglung.student import StudentConfig
from diffseglung.teacher import TEACHER, Standardiser, flip_batch

STUDENT = StudentConfig(channels=(8, 8, 16), norm_groups=4, timesteps=50, embedding=16)
TRAIN = TrainConfig(steps=6, batch=4, lr_warmup=1, warmup=(1, 3), lr=2e-3, positions=8)
DESCRIPTORS = len(TEACHER.names)


def batches(size: int = 4, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Blocks of one density each, whose descriptors tell the density: easy to distil."""
    step = start
    while True:
        rng = np.random.default_rng(step)
        level = rng.uniform(-950, 0, size=(size, 1, 1, 1)).astype(np.float32)
        hu = level + rng.normal(0, 30, size=(size, 8, 16, 16))
        local = (
            np.broadcast_to(level[..., None] / 300, (size, 1, 2, 2, DESCRIPTORS)).astype(np.float32).copy()
        )
        local[0, 0, 0, 0] = np.nan
        yield {
            "hu": torch.from_numpy(hu.astype(np.int16)),
            "lungs": torch.ones(size, 8, 16, 16, dtype=torch.uint8),
            "teacher": torch.from_numpy(local.reshape(size, -1, DESCRIPTORS)[:, -1].copy()),
            "teacher_local": torch.from_numpy(local),
        }
        step += 1


@pytest.fixture(scope="module")
def standardiser() -> Standardiser:
    return Standardiser.fit(np.random.default_rng(0).normal(size=(200, DESCRIPTORS)).astype(np.float32))


def start(standardiser: Standardiser, **changes) -> Distillation:
    return Distillation(STUDENT, replace(TRAIN, **changes), standardiser)


def test_training_ends_after_its_steps_and_reports_each(standardiser):
    steps = list(distill(start(standardiser), batches()))
    assert [s for s, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert {
        "loss",
        "noise_loss",
        "distill_loss",
        "weight",
        "retrieval",
        "effective_rank",
        "spread",
        "grad_norm",
        "lr",
    } <= set(steps[0][1])


def test_the_network_learns_to_denoise(standardiser):
    losses = [
        m["noise_loss"] for _, m in distill(start(standardiser, steps=60, variant="none", lr=1e-2), batches())
    ]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])


def test_the_teacher_is_silent_until_the_warm_up():
    weights = [TrainConfig(warmup=(10, 20), weight=0.5).weight_at(step) for step in (0, 10, 15, 20, 500)]
    assert weights == [0, 0, 0.25, 0.5, 0.5]
    assert TrainConfig(variant="none").weight_at(10**6) == 0


def test_a_stopped_run_goes_on_as_if_undisturbed(standardiser):
    whole = start(standardiser)
    losses = [m["loss"] for _, m in distill(whole, batches())]
    first = start(standardiser)
    for step, _ in distill(first, batches()):
        if step == 3:
            break
    second = start(standardiser, seed=0)
    second.load_state_dict(first.state_dict())
    rest = [m["loss"] for _, m in distill(second, batches(start=3))]
    assert rest == losses[3:]
    for a, b in zip(whole.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("variant", ["local", "global"])
def test_distillation_moves_the_student_only_through_its_weight(standardiser, variant):
    def student_gradient(weight: float) -> torch.Tensor:
        run = start(standardiser, variant=variant, weight=weight, warmup=(0, 0), steps=1)
        for p in run.network.parameters():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        next(distill(run, batches()))
        return torch.cat(
            [p.grad.flatten() for p in run.network.student_head.parameters() if p.grad is not None]
        )

    assert student_gradient(0.5).abs().max() > 0
    assert student_gradient(0.0).abs().max() == 0


def test_contrast_is_zero_for_perfect_pairs_and_log_n_for_chance():
    eye = torch.eye(8)
    ones, keep = torch.ones(8), torch.ones(8, dtype=torch.bool)
    perfect, metrics = info_nce(eye, eye, ones, keep, temperature=0.05)
    assert float(perfect) == pytest.approx(0, abs=1e-6)
    assert metrics["retrieval"] == 1
    same = torch.ones(8, 8) / 8**0.5
    chance, metrics = info_nce(same, same, ones, keep, temperature=0.05)
    assert float(chance) == pytest.approx(np.log(8), abs=1e-5)
    assert metrics["effective_rank"] == pytest.approx(1, abs=0.01)
    assert metrics["spread"] == pytest.approx(0, abs=1e-3)


def test_a_collapse_is_told_once_the_teacher_has_full_weight():
    train = TrainConfig(weight=0.5)
    well = {"step": 400, "weight": 0.5, "effective_rank": 6.0, "spread": 0.8}
    assert collapse(well, train) == ""
    assert "effective rank 1.1" in collapse(well | {"effective_rank": 1.1}, train)
    assert "spread 0.01" in collapse(well | {"spread": 0.01}, train)
    assert collapse(well | {"effective_rank": 1.1, "weight": 0.2}, train) == ""
    assert collapse(well | {"effective_rank": 1.1, "weight": 0.0}, replace(train, variant="none")) == ""


def test_the_heads_learn_at_a_rate_of_their_own(standardiser):
    def moved(**rates: float) -> tuple[float, float]:
        run = start(standardiser, steps=1, warmup=(0, 0), **rates)
        before = {name: p.clone() for name, p in run.network.state_dict().items()}
        list(distill(run, batches()))
        change = {name: float((p - before[name]).abs().max()) for name, p in run.network.state_dict().items()}
        student = max(value for name, value in change.items() if name.startswith("student."))
        return student, max(value for name, value in change.items() if not name.startswith("student."))

    assert moved(lr=1e-3) == pytest.approx((1e-3, 1e-3), rel=0.01)
    assert moved(lr=1e-3, lr_heads=1e-2) == pytest.approx((1e-3, 1e-2), rel=0.01)


def test_a_split_batch_is_the_same_batch_to_the_denoiser(standardiser):
    def trained(accumulate: int, **changes) -> tuple[list[dict[str, float]], torch.Tensor]:
        run = start(standardiser, batch=8, accumulate=accumulate, **changes)
        metrics = [m for _, m in distill(run, parts(8 // accumulate))]
        return metrics, torch.cat([p.detach().flatten() for p in run.network.student.parameters()])

    def parts(size: int) -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches(8):
            for first in range(0, 8, size):
                yield {name: column[first : first + size] for name, column in batch.items()}

    (whole, weights), (split, same) = trained(1, variant="none"), trained(2, variant="none")
    assert [m["noise_loss"] for m in split] == pytest.approx([m["noise_loss"] for m in whole], rel=1e-4)
    # Sums in another order; Adam's first steps divide by gradients that may be as small as their rounding.
    torch.testing.assert_close(same, weights, rtol=1e-3, atol=1e-3)
    # Each half is contrasted within itself: half of the negatives, and so a smaller loss.
    (whole, _), (split, _) = trained(1, warmup=(0, 0)), trained(2, warmup=(0, 0))
    assert whole[0]["distill_loss"] - split[0]["distill_loss"] > 0.2  # of log 2 x mean alpha_bar at chance


def test_half_precision_learns_what_full_precision_learns(standardiser):
    def curve(precision: str) -> np.ndarray:
        run = start(standardiser, steps=12, precision=precision, warmup=(2, 4))
        rows = [(m["noise_loss"], m["distill_loss"], m["grad_norm"]) for _, m in distill(run, batches())]
        assert {p.dtype for p in run.network.parameters()} == {torch.float32}
        return np.array(rows)

    full, half = curve("float32"), curve("bfloat16")
    # bfloat16 keeps 8 bits: a rounding of 0.4 % a number, which averages out over a loss of 16,000 voxels; what is
    # learned from it parts a little more with each step.
    np.testing.assert_allclose(half[0, 0], full[0, 0], rtol=0.002)
    np.testing.assert_allclose(half[:, 0], full[:, 0], rtol=0.04)
    np.testing.assert_allclose(half[:, 1], full[:, 1], rtol=0.05)
    np.testing.assert_allclose(half[0, 2], full[0, 2], rtol=0.05)
    assert not np.array_equal(half, full)
    np.testing.assert_array_equal(half, curve("bfloat16"))  # oneDNN's kernels give others each time


def test_unknown_positions_take_no_part_in_the_contrast():
    rows = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    keep = torch.tensor([True, True, True, True, False, False])
    share = torch.ones(6)
    all_six, _ = info_nce(rows, rows.flip(0), share, keep, 0.1)
    only_four, _ = info_nce(rows[:4], rows.flip(0)[:4], share[:4], keep[:4], 0.1)
    assert float(all_six) == pytest.approx(float(only_four))


@pytest.mark.parametrize("variant", ["local", "global"])
def test_what_the_teacher_could_not_describe_says_nothing(standardiser, variant):
    run = start(standardiser, variant=variant)
    raw = next(batches())
    raw["teacher"][1] = torch.nan
    batch = prepare_batch(raw, run)
    unknown = raw["teacher_local" if variant == "local" else "teacher"].isnan().any(dim=-1)
    assert unknown.any()
    assert torch.equal(batch["known"], ~unknown)
    draw = draw_randomness(batch, run, True, 0, 0, 1)
    other = batch | {"descriptors": torch.where(unknown[..., None], 5.0, batch["descriptors"])}
    losses = [float(distillation_loss(run.network, b, draw, run, 1.0)[0].detach()) for b in (batch, other)]
    assert np.isfinite(losses[0])
    assert losses[0] == losses[1]


def test_rare_positions_come_first():
    crowd, loner = torch.zeros(50, 3), torch.full((1, 3), 9.0)
    crowd = crowd + 0.1 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    weight = rare_first(torch.cat([crowd, loner]), torch.ones(51, dtype=torch.bool))
    assert weight[50] > 3 * weight[:50].mean()


def uneven(size: int) -> dict[str, torch.Tensor]:
    """Patches that no flip leaves as they are."""
    rng = np.random.default_rng(1)
    return {
        "hu": torch.from_numpy(rng.integers(-1000, 0, (size, 8, 16, 16)).astype(np.int16)),
        "lungs": torch.from_numpy(rng.integers(0, 2, (size, 8, 16, 16)).astype(np.uint8)),
        "teacher": torch.from_numpy(rng.normal(size=(size, DESCRIPTORS)).astype(np.float32)),
        "teacher_local": torch.from_numpy(rng.normal(size=(size, 2, 4, 4, DESCRIPTORS)).astype(np.float32)),
    }


def test_a_flipped_patch_takes_all_its_targets_with_it(standardiser):
    batch = uneven(64)
    flipped = flip_some(batch, start(standardiser, flip=(1, 2)), 0, 0, 1)
    seen = []
    for i in range(64):
        one, found = ({name: column[i : i + 1] for name, column in b.items()} for b in (batch, flipped))
        ways = [(), (1,), (2,), (1, 2)]
        mirrored = [flip_batch(one, axes) for axes in ways]
        seen += [
            w for w, m in zip(ways, mirrored, strict=True) if all(torch.equal(m[k], found[k]) for k in m)
        ]
    assert len(seen) == 64
    # About 16 of each by chance; fewer than 5 happens once in a thousand seeds, and the seed is fixed.
    assert min(seen.count(way) for way in set(seen)) >= 5
    assert set(seen) == {(), (1,), (2,), (1, 2)}


def test_flips_know_seed_and_step_and_not_who_draws_them(standardiser):
    batch, run = uneven(8), start(standardiser, flip=(2,))
    whole = flip_some(batch, run, 0, 0, 1)["hu"]
    assert torch.equal(flip_some(batch, run, 0, 0, 1)["hu"], whole)
    halves = [{k: v[i : i + 4] for k, v in batch.items()} for i in (0, 4)]
    by_two = [flip_some(half, run, 0, rank, 2)["hu"] for rank, half in enumerate(halves)]
    assert torch.equal(torch.cat(by_two), whole)
    split = start(standardiser, flip=(2,), accumulate=2)
    in_two = [flip_some(half, split, micro, 0, 1)["hu"] for micro, half in enumerate(halves)]
    assert torch.equal(torch.cat(in_two), whole)
    run.step += 1
    assert not torch.equal(flip_some(batch, run, 0, 0, 1)["hu"], whole)
    assert flip_some(batch, start(standardiser), 0, 0, 1) is batch


def test_training_sees_the_flipped_patches(standardiser):
    # The network begins with an answer of 0, whatever it sees.
    plain, turned = (list(distill(start(standardiser, **c), batches()))[-1][1] for c in ({}, {"flip": (2,)}))
    assert plain["loss"] != turned["loss"]


def test_windows_that_a_mirror_moves_are_refused():
    patches = PatchConfig(local_window_vox=(15, 16, 16))
    assert Config(patches=patches, train=TrainConfig(flip=(2,)))
    with pytest.raises(ValueError, match="not centred"):
        Config(patches=patches, train=TrainConfig(flip=(0,)))


def test_a_batch_that_does_not_split_is_refused_in_words():
    with pytest.raises(ValueError, match="does not split over 3 workers"):
        TrainConfig(batch=8).micro_batch(3)


@pytest.mark.parametrize(
    "bad",
    [
        {"variant": "both"},
        {"temperature": 0.0},
        {"batch": 1},
        {"warmup": (5, 2)},
        {"precision": "half"},
        {"flip": (2, 2)},
        {"flip": (3,)},
    ],
)
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(ValueError, match="train"):
        TrainConfig(**bad)
