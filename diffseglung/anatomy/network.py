"""Lungs by the `lungmask` package's network, for who has it: `pip install lungmask`, weights already on disk.

Hofmanninger et al., European Radiology Experimental 2020. Nothing is downloaded here, and nothing else needs it.
"""

import importlib.util
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffseglung.volume import Volume

WEIGHTS = "unet_r231-d5d2fc3d.pth"  # R231: right and left lung, lesions included, trachea out


class NoNetwork(ValueError):
    """lungmask or its weights are not on this machine."""


def lungs_by_network(volume: Volume) -> np.ndarray:
    """Both lungs as lungmask's R231 has them: bool (z, y, x) on the volume's grid.

    Raises NoNetwork, in words, where the package or its weights are missing.
    """
    weights = find_weights()
    from lungmask import LMInferer

    network = LMInferer(modelpath=str(weights), tqdm_disable=True)
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing_mm[::-1])
    return np.asarray(network.apply(image)) > 0


def find_weights() -> Path:
    """The file of R231's weights, where torch keeps what lungmask once downloaded."""
    if importlib.util.find_spec("lungmask") is None:
        raise NoNetwork(
            "lungs by lungmask need that package, which is not installed (pip install lungmask); "
            "leave anatomy.lungs as it is, shape, to find them without a network"
        )
    import torch  # is slow to import, and who finds the lungs by their shape does without

    weights = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not weights.is_file():
        raise NoNetwork(
            f"lungs by lungmask need its weights at {weights}, and nothing is downloaded here; put the file "
            "there, or leave anatomy.lungs as it is, shape, to find them without a network"
        )
    return weights
