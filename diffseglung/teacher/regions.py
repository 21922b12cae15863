"""What patches and windows share: checked input, grey levels, and work spread over threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from diffseglung.teacher.names import TeacherConfig


def grey_codes(config: TeacherConfig) -> np.ndarray:
    """16 times the grey level 1.. of every HU from the lowest to the highest: uint16 (high - low + 1,)."""
    low, high = config.clip_hu
    levels = (np.arange(low, high + 1) - config.bin_origin_hu) // config.bin_width_hu + 1
    return (16 * levels).astype(np.uint16)


def clipped(hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig) -> tuple[np.ndarray, np.ndarray]:
    """HU within the clip range as int16 and the lungs as bool, contiguous; a ValueError in words."""
    if hu.shape != lungs.shape:
        raise ValueError(f"HU {hu.shape} and lungs {lungs.shape} must lie on one grid")
    if not np.issubdtype(hu.dtype, np.integer):
        raise ValueError(f"HU must be whole numbers (int16), not {hu.dtype}: round them first")
    bounded = np.clip(hu, *config.clip_hu).astype(np.int16, order="C", copy=False)
    return bounded, np.ascontiguousarray(lungs, dtype=bool)


def window_edges(count: int, size: int, step: int, length: int) -> np.ndarray:
    """Where the windows along an axis begin or end: int64, rising from 0 to the length.

    At most 64 voxels apart: what lies between two is summed in float32.
    """
    if count == 1:
        return np.array((0, *range(64, length, 64), length))
    starts = np.arange(count) * step - (size - step) // 2
    return np.unique(np.clip((*starts, *(starts + size), *range(0, length, 64)), 0, length))


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Run work(first, last) over 0..count on as many threads as torch may use: a Ray worker has its share."""
    parts = max(1, min(torch.get_num_threads(), count))
    edges = [count * i // parts for i in range(parts + 1)]
    if parts == 1:
        work(0, count)
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
