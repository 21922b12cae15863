"""A worker's share of a machine is what its libraries use, whoever shares a thread pool with whom."""

import os
import subprocess
import sys

import pytest

# numba's OpenMP layer and torch share one pool: to set numba's threads had given torch all cores again.
COUNTED = """
import sys
import numpy as np, SimpleITK, torch
from diffseglung.teacher import window_evidence
from diffseglung_ray.processes import use_threads

use_threads(int(sys.argv[1]))
hu, cells = np.zeros((8, 8, 8), np.int16), {"size_vox": (4, 4, 4), "step_vox": (4, 4, 4), "mesh_vox": (3, 3, 3)}
window_evidence(hu, np.ones(hu.shape, bool), **cells)
print(torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads())
"""


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "1"}])
def test_a_worker_uses_as_many_threads_as_it_has_cpus(count: int, environment: dict[str, str]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", COUNTED, str(count)]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(count), str(count)]
