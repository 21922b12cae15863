"""What each of our processes on a cluster does before its work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk
import torch


def use_threads(count: int) -> None:
    """As many threads as the worker has CPUs, so that workers on one machine do not slow each other."""
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)  # the distances of the anatomy go by it too


def import_network() -> None:
    """Import MONAI without what it would import for features that no worker uses: half of its time."""
    with _absent("mlflow", "matplotlib"):
        import diffseglung.unet  # noqa: F401


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """As if these packages, where they are not imported yet, were not installed."""
    names = tuple(name for name in names if name not in sys.modules)
    sys.modules |= dict.fromkeys(names)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
