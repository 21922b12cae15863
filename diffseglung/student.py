"""The student: a 3-D diffusion U-Net whose bottleneck learns to see what the radiomic teacher sees."""

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from diffseglung.frozen import frozen
from diffseglung.schedule import Schedule

# Standard deviations of the CT's textures, in the units of `to_unit`, for which the noise is estimated by a filter.
TEXTURES = (0.03, 0.1, 0.3)

Network = TypeVar("Network", bound=nn.Module)


@frozen
class StudentConfig:
    """Size of the network. The bottleneck's stride is `fold * 2 ** (levels - 1)` voxels."""

    channels: tuple[int, ...] = (16, 32, 64)
    fold: int = 2  # space-to-depth before the first convolution: halves the grid at no loss
    res_blocks: int = 1
    norm_groups: int = 8
    timesteps: int = 250
    embedding: int = 128

    def __post_init__(self) -> None:
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(
                f"student.channels {self.channels} must each be a multiple of student.norm_groups {self.norm_groups}"
            )
        if self.fold < 1:
            raise ValueError(f"student.fold {self.fold} must be at least 1")

    @property
    def stride_vox(self) -> int:
        """Edge of one bottleneck position in voxels."""
        return self.fold * 2 ** (len(self.channels) - 1)


class Student(nn.Module):
    """Noise predictor conditioned on the lung mask (paper, section 3.1).

    noise = s x_t + a (filters + U-Net), where a^2 = alpha_bar and s^2 = 1 - alpha_bar. The noise is read off the input,
    and what is added is v of Salimans and Ho (2022): the error in the clean CT stays finite where no signal is left.
    Beside s x_t each filter makes Wiener's, of weight s / (s^2 + a^2 tau^2), for a texture of standard deviation tau
    (`TEXTURES`). A U-Net alone has to pass the noise of every voxel through its first channels, which are too few.
    """

    alpha_bar: torch.Tensor
    textures: torch.Tensor

    def __init__(self, config: StudentConfig) -> None:
        from diffseglung.unet import FeatureUNet

        super().__init__()
        self.config = config
        self.register_buffer("alpha_bar", Schedule(config.timesteps).alpha_bar, persistent=False)
        self.register_buffer("textures", torch.tensor(TEXTURES).view(-1, 1, 1, 1, 1), persistent=False)
        cube = config.fold**3
        self.filters = nn.Conv3d(cube, len(TEXTURES) * cube, 3, padding=1, bias=False)
        with torch.no_grad():  # what differs from its surroundings is noise, for the middle texture
            banks = self.filters.weight.zero_().unflatten(0, (len(TEXTURES), cube))
            banks[1] = -1 / banks[1, 0].numel()
            banks[1, range(cube), range(cube), 1, 1, 1] += 1
        self.unet = FeatureUNet(
            spatial_dims=3,
            in_channels=2 * cube,
            out_channels=cube,
            num_res_blocks=config.res_blocks,
            channels=config.channels,
            attention_levels=(False,) * len(config.channels),
            norm_num_groups=config.norm_groups,
            num_head_channels=config.channels[-1] // 2,
        )

    def forward(
        self, noisy: torch.Tensor, lungs: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted noise (b, 1, z, y, x) and bottleneck (b, c, z / stride, y / stride, x / stride).

        `noisy` and `lungs` are (b, 1, z, y, x), `t` is (b,) in 0 .. timesteps-1.
        """
        bottleneck, skips, embedding = self.unet.encode(self._fold(noisy, lungs), t)
        said = self.unet.decode(bottleneck, skips, embedding) + self._filtered(noisy, t)
        share = self.alpha_bar[t].view(-1, 1, 1, 1, 1)
        return (1 - share).sqrt() * noisy + share.sqrt() * unfold(said, self.config.fold), bottleneck

    def _filtered(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the filters say of the noise, folded; in float32, since small differences of large numbers count."""
        with torch.autocast(noisy.device.type, enabled=False):
            banks = self.filters(fold(noisy.float(), self.config.fold)).unflatten(1, (len(TEXTURES), -1))
            share = self.alpha_bar[t].view(-1, 1, 1, 1, 1, 1)
            variance = self.textures**2
            gain = (share * (1 - share)).sqrt() * (1 - variance) / (1 - share + share * variance)
            return (gain * banks).sum(dim=1)

    def encode(
        self, noisy: torch.Tensor, lungs: torch.Tensor, t: torch.Tensor, levels: int = 1
    ) -> torch.Tensor:
        """The bottleneck alone; the decoder is not run.

        With `levels` above 1 beside it the last features of as many levels, all on the finest one's grid.
        """
        bottleneck, skips, _ = self.unet.encode(self._fold(noisy, lungs), t)
        above = [last_of_width(skips, bottleneck.shape[-1] << level) for level in range(1, levels)]
        finest = (above or [bottleneck])[-1].shape[2:]
        return torch.cat([F.interpolate(x, size=finest, mode="nearest") for x in (bottleneck, *above)], dim=1)

    def _fold(self, noisy: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        return fold(torch.cat([noisy, lungs.to(noisy.dtype)], dim=1), self.config.fold)


def last_of_width(skips: list[torch.Tensor], width: int) -> torch.Tensor:
    """The deepest of the encoder's features (b, c, z, y, x) whose x is so many positions."""
    return next(skip for skip in reversed(skips) if skip.shape[-1] == width)


def fold(x: torch.Tensor, n: int) -> torch.Tensor:
    """Space to depth: (b, c, z, y, x) -> (b, c n^3, z/n, y/n, x/n)."""
    b, c, z, y, w = x.shape
    x = x.view(b, c, z // n, n, y // n, n, w // n, n).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * n**3, z // n, y // n, w // n)


def unfold(x: torch.Tensor, n: int) -> torch.Tensor:
    """Depth to space: undoes `fold`."""
    b, c, z, y, w = x.shape
    x = x.view(b, c // n**3, n, n, n, z, y, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // n**3, z * n, y * n, w * n)


class DistillationNetwork(nn.Module):
    """What is trained: the student and the two heads that bring it and its teacher into one space.

    One forward pass gives all that the loss needs, so that a data-parallel wrapper sees every parameter.
    """

    def __init__(self, config: StudentConfig, descriptors: int) -> None:
        super().__init__()
        width = config.channels[-1]
        self.student = Student(config)
        # GroupNorm and LayerNorm: batch statistics would let small batches leak which patch is which.
        self.student_head = nn.Sequential(
            nn.Conv3d(width, width, 1),
            nn.GroupNorm(config.norm_groups, width),
            nn.SiLU(),
            nn.Conv3d(width, config.embedding, 1),
        )
        self.teacher_head = nn.Sequential(
            nn.Linear(descriptors, config.embedding),
            nn.LayerNorm(config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )

    def forward(
        self, noisy: torch.Tensor, lungs: torch.Tensor, t: torch.Tensor, descriptors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise (b, 1, z, y, x), student embedding (b, e, gz, gy, gx) and teacher embedding (..., e), unit length.

        `descriptors` is (..., 34), standardised.
        """
        noise, bottleneck = self.student(noisy, lungs, t)
        return (
            noise,
            F.normalize(self.student_head(bottleneck), dim=1),
            F.normalize(self.teacher_head(descriptors), dim=-1),
        )


def laid_out(network: Network) -> Network:
    """The same network in the memory layout in which its device is fastest.

    Channels last on a CPU (8 % faster, benchmarks/steps.py). Channels first on a GPU (15 to 28 %, benchmarks/gpu.py):
    normalisations know no other there.
    """
    on_gpu = next(network.parameters()).is_cuda
    layout = torch.contiguous_format if on_gpu else torch.channels_last_3d
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def load_weights(module: nn.Module, weights: dict[str, Any]) -> None:
    """Fill a module, refusing weights of another architecture in words."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"these weights belong to another network than the config describes: {error}"
        ) from error
