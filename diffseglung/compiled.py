"""Compile ahead what numba would compile in the first worker that meets it: `python -m diffseglung.compiled`.

The code is kept beside the modules, or where `NUMBA_CACHE_DIR` points. `make install` does it; so should whoever
builds the image of a cluster, or the first case on every node waits for half a minute.
"""

import numpy as np

from diffseglung.cavity import CavityConfig, find_cavities
from diffseglung.config import smoke
from diffseglung.densities import Densities, voxels_of
from diffseglung.grid import largest_of
from diffseglung.labels import TISSUES
from diffseglung.phantom import PhantomConfig, make_phantom
from diffseglung.prepare import prepare_case
from diffseglung.refine import RefineConfig, sobel_diffusion
from diffseglung.volume import Volume

SMALL = PhantomConfig(size_vox=(40, 60, 60), spacing_mm=(6.0, 5.0, 5.0))


def compile_all() -> None:
    """Go once through everything that is compiled, on a chest so small that only compiling takes time."""
    phantom = make_phantom(0, SMALL)
    prepare_case("phantom", Volume.from_array(phantom.hu, phantom.spacing_mm), smoke())
    posterior = np.full((len(TISSUES), *phantom.hu.shape), 1 / len(TISSUES), np.float32)
    grid = Volume.from_array(phantom.hu, phantom.spacing_mm).grid
    labels = largest_of(posterior, grid, grid, phantom.lungs)
    find_cavities(phantom.hu, phantom.lungs, ~phantom.lungs, phantom.spacing_mm, CavityConfig())
    for part in (slice(None), slice(1, None)):  # whole arrays and boxes in them are compiled apart
        Densities.of(phantom.hu[:, part], labels[:, part])
        voxels_of(labels[:, part])
    sobel_diffusion(posterior, phantom.hu, phantom.lungs, phantom.spacing_mm, RefineConfig())


if __name__ == "__main__":
    compile_all()
