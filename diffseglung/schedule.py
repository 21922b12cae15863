"""How noise is added to a CT and how much of the CT is left at each timestep."""

import math

import torch

HU_RANGE = (-1000.0, 400.0)  # "HU-preserving" window of the paper: -1000 maps to -1, 400 to +1


def to_unit(hu: torch.Tensor) -> torch.Tensor:
    """HU clipped to [-1000, 400] and mapped linearly onto [-1, 1]; float32, same shape."""
    low, high = HU_RANGE
    return (hu.float().clamp(low, high) - low) * (2 / (high - low)) - 1


def to_hu(unit: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_unit`, clipped to the window; float32 HU."""
    low, high = HU_RANGE
    return (unit.float().clamp(-1, 1) + 1) * ((high - low) / 2) + low


class Schedule:
    """Cosine noise schedule (Nichol and Dhariwal 2021, eq. 17) with `timesteps` steps.

    `alpha_bar` (T,) is the share of the signal's variance left at step t = 0 .. T-1.
    """

    def __init__(self, timesteps: int) -> None:
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        offset = 0.008
        f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        self.timesteps = timesteps
        self.alpha_bar = torch.cumprod(1 - beta, dim=0).float()

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, eq. 4); t is (b,)."""
        share = self.alpha_bar.to(clean.device)[t].view(-1, *[1] * (clean.ndim - 1))
        return share.sqrt() * clean + (1 - share).sqrt() * noise
