import pytest
import torch

from diffseglung.schedule import Schedule
from diffseglung.student import (
    TEXTURES,
    DistillationNetwork,
    Student,
    StudentConfig,
    fold,
    load_weights,
    unfold,
)

TINY = StudentConfig(channels=(8, 8, 16), norm_groups=4, timesteps=50, embedding=16)


def inputs(b: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(b, 1, 16, 32, 32, generator=generator)
    return noisy, (noisy > 0).float(), torch.tensor([3, 40])[:b]


def test_folding_is_undone_by_unfolding():
    x = torch.arange(2 * 3 * 4 * 4 * 8).view(2, 3, 4, 4, 8)
    assert torch.equal(unfold(fold(x, 2), 2), x)


def test_a_folded_channel_is_one_corner_of_each_cube():
    x = torch.arange(4 * 4 * 4).view(1, 1, 4, 4, 4)
    assert torch.equal(fold(x, 2)[0, 0], x[0, 0, ::2, ::2, ::2])
    assert torch.equal(fold(x, 2)[0, 7], x[0, 0, 1::2, 1::2, 1::2])


def test_noise_has_the_inputs_grid_and_bottleneck_the_strides():
    noise, bottleneck = Student(TINY)(*inputs())
    assert noise.shape == (2, 1, 16, 32, 32)
    assert bottleneck.shape == (2, 16, 2, 4, 4)
    assert TINY.stride_vox == 8


def test_encoder_alone_gives_the_same_bottleneck():
    student = Student(TINY).eval()
    with torch.no_grad():
        assert torch.equal(student.encode(*inputs()), student(*inputs())[1])


def test_every_parameter_takes_part_in_one_forward_pass():
    network = DistillationNetwork(TINY, descriptors=34)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    noise, student, teacher = network(*inputs(), torch.randn(2, 2, 4, 4, 34))
    # Unit vectors: their sum of squares is constant, so a linear read-out is used.
    (
        noise.sum()
        + (student * torch.randn_like(student)).sum()
        + (teacher * torch.randn_like(teacher)).sum()
    ).backward()
    # Keys' biases cancel in a softmax: attention's own symmetry, not a lost parameter.
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert [n for n in idle if not n.endswith("to_k.bias")] == []


def test_embeddings_are_unit_vectors():
    _, student, teacher = DistillationNetwork(TINY, 34)(*inputs(), torch.randn(2, 2, 4, 4, 34))
    assert student.norm(dim=1).detach().numpy() == pytest.approx(1.0, abs=1e-5)
    assert teacher.norm(dim=-1).detach().numpy() == pytest.approx(1.0, abs=1e-5)


def test_weights_of_another_network_are_refused_in_words():
    with pytest.raises(ValueError, match="another network"):
        load_weights(Student(TINY), Student(StudentConfig(channels=(8, 16, 16), norm_groups=4)).state_dict())


def test_channels_that_do_not_fit_the_groups_are_refused():
    with pytest.raises(ValueError, match="norm_groups"):
        StudentConfig(channels=(10, 20), norm_groups=8)


def test_pure_noise_is_known_before_anything_is_learned():
    noise = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    last = torch.full((2,), TINY.timesteps - 1)
    noisy = Schedule(TINY.timesteps).add_noise(torch.full_like(noise, -0.7), noise, last)
    found, _ = Student(TINY)(noisy, torch.ones_like(noise), last)
    assert float((found.detach() - noise).square().mean().sqrt()) < 0.05


@pytest.mark.parametrize("t", [1, 5, 20])
def test_filters_find_the_noise_in_a_texture_as_well_as_wiener(t):
    """Before anything is learned, for white texture of the middle contrast: what is missed is what must be."""
    generator = torch.Generator().manual_seed(1)
    noise, texture = (torch.randn(2, 1, 24, 24, 24, generator=generator) for _ in range(2))
    steps, middle = torch.full((2,), t), TEXTURES[1]
    schedule, student = Schedule(TINY.timesteps), Student(TINY)
    noisy = schedule.add_noise(middle * texture - 0.7, noise, steps)
    share = schedule.alpha_bar[t]
    said = unfold(student._filtered(noisy, steps), TINY.fold)
    found = ((1 - share).sqrt() * (noisy + 0.7 * share.sqrt()) + share.sqrt() * said).detach()
    inner = (slice(None), slice(None), *[slice(4, -4)] * 3)
    missed = float((found - noise)[inner].square().mean().sqrt())
    signal = float(share) * middle**2
    assert missed == pytest.approx((signal / (1 - float(share) + signal)) ** 0.5, rel=0.05)
