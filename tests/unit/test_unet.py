import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

from diffseglung.unet import FeatureUNet


def test_split_network_computes_what_monai_computes():
    torch.manual_seed(0)
    kwargs = {
        "spatial_dims": 3, "in_channels": 2, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 16),
        "attention_levels": (False, False), "norm_num_groups": 4, "num_head_channels": 8,
    }  # fmt: skip
    ours, theirs = FeatureUNet(**kwargs), DiffusionModelUNet(**kwargs)
    for p in ours.parameters():  # MONAI zeroes the last convolution: fill it, or both give 0
        torch.nn.init.normal_(p, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    x, t = torch.randn(2, 2, 8, 8, 8), torch.tensor([1, 30])
    with torch.no_grad():
        got = ours.decode(*ours.encode(x, t))
        assert got.abs().max() > 0.1
        assert torch.equal(got, theirs(x, t))
