"""MONAI's diffusion U-Net, split so that its bottleneck can be had.

A module of its own, since MONAI takes longer to import than everything else together: only who builds a network
waits for it.
"""

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet, get_timestep_embedding


class FeatureUNet(DiffusionModelUNet):
    """MONAI's diffusion U-Net that also hands out its middle block."""

    def encode(
        self, x: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """The bottleneck, the skip connections and the time embedding: a third of the whole network's work."""
        embedding = self.time_embed(get_timestep_embedding(t, self.block_out_channels[0]).to(x.dtype))
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            h, residuals = block(hidden_states=h, temb=embedding, context=None)
            skips.extend(residuals)
        return self.middle_block(hidden_states=h, temb=embedding, context=None), skips, embedding

    def decode(self, h: torch.Tensor, skips: list[torch.Tensor], embedding: torch.Tensor) -> torch.Tensor:
        """From the bottleneck back to the input's grid."""
        for block in self.up_blocks:
            split = len(skips) - len(list(block.get_submodule("resnets")))  # type: ignore[call-overload]
            h = block(hidden_states=h, res_hidden_states_list=skips[split:], temb=embedding, context=None)
            skips = skips[:split]
        return self.out(h)
