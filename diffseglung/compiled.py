"""Compile ahead what numba would compile in the first worker that meets it: `python -m diffseglung.compiled`.

The code is kept beside the modules, or where `NUMBA_CACHE_DIR` points. `make install` does it; so should whoever
builds the image of a cluster, or the first case on every node waits for half a minute.
"""

import numpy as np

from diffseglung.config import smoke
from diffseglung.grid import largest_of
from diffseglung.phantom import PhantomConfig, make_phantom
from diffseglung.prepare import prepare_case
from diffseglung.refine import RefineConfig, sobel_diffusion
from diffseglung.volume import Volume

SMALL = PhantomConfig(size_vox=(40, 60, 60), spacing_mm=(6.0, 5.0, 5.0))


def compile_all() -> None:
    """Go once through everything that is compiled, on a chest so small that only compiling takes time."""
    phantom = make_phantom(0, SMALL)
    prepare_case("phantom", Volume.from_array(phantom.hu, phantom.spacing_mm), smoke())
    posterior = np.full((2, *phantom.hu.shape), 0.5, np.float32)
    grid = Volume.from_array(phantom.hu, phantom.spacing_mm).grid
    largest_of(posterior, grid, grid, phantom.lungs)
    sobel_diffusion(posterior, phantom.hu, phantom.lungs, phantom.spacing_mm, RefineConfig())


if __name__ == "__main__":
    compile_all()
