"""One Ray for all integration tests: local, small, and nobody else's."""

import os
from collections.abc import Iterator

import pytest
import ray

from diffseglung_ray.cluster import OWN_RAY, keep_to_this_machine


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """Two CPUs and 200 MB of objects; `address="local"` picks free ports and joins no stranger's cluster.

    RAY_AUTH_MODE is left as it is: Ray reads it when it is imported and turns its token on in `init` by itself.
    Set between the two, servers would ask for a token that this process does not send.
    """
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= OWN_RAY
    keep_to_this_machine()
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
