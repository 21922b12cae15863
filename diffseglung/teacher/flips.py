"""What a mirror does to the descriptors: a patch that is flipped takes its stored targets with it."""

from collections.abc import Collection
from typing import TypeVar

import numpy as np
import torch

from diffseglung.teacher.names import TEACHER

Array = TypeVar("Array", np.ndarray, torch.Tensor)

VOLUMES = ("hu", "lungs")
"""Columns of a batch of patches that lie on its voxels, (b, z, y, x)."""
CELLS = ("teacher_local", "descriptors", "evidence")
"""Columns on a coarser grid over the same box, (b, gz, gy, gx, features)."""
DESCRIBED = ("teacher", "teacher_local", "descriptors")
"""Columns whose last axis is TEACHER.names."""


def flipped_columns(axes: Collection[int]) -> list[int]:
    """Where each descriptor of a flipped region stands in the descriptors of the region itself.

    axes of (z, y, x) = (0, 1, 2). A wave at 45 degrees runs at 135 once y or x is turned, and at 45 again
    once both are. Nothing else has a handedness or a direction in the axial plane.
    """
    columns = list(range(len(TEACHER)))
    if (1 in axes) != (2 in axes):
        names = TEACHER.names
        turned = {"_45": "_135", "_135": "_45"}
        for i, name in enumerate(names):
            for end, other in turned.items():
                if name.startswith("gabor_") and name.endswith(end):
                    columns[i] = names.index(name.removesuffix(end) + other)
    return columns


def flip_batch(batch: dict[str, Array], axes: Collection[int]) -> dict[str, Array]:
    """A batch of patches seen in a mirror: voxels, grids and targets of `patches_schema`, all of them.

    Takes and returns numpy arrays or torch tensors, batch first; other columns stay as they are.
    """
    columns = flipped_columns(axes)
    turned = tuple(axis + 1 for axis in sorted(axes))
    out = dict(batch)
    for name in batch.keys() & {*VOLUMES, *CELLS}:
        out[name] = _flip(batch[name], turned)
    for name in batch.keys() & {*DESCRIBED}:
        out[name] = out[name][..., columns]
    return out


def _flip(array: Array, axes: tuple[int, ...]) -> Array:
    return torch.flip(array, axes) if isinstance(array, torch.Tensor) else np.flip(array, axes)
