"""What patches and windows share: checked input, grey levels, and work spread over threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from diffseglung.teacher.names import TeacherConfig


def grey_levels(config: TeacherConfig) -> np.ndarray:
    """The grey level 1.. of every HU from the lowest to the highest: uint8 (high - low + 1,)."""
    low, high = config.clip_hu
    return ((np.arange(low, high + 1) - config.bin_origin_hu) // config.bin_width_hu + 1).astype(np.uint8)


def clipped(hu: np.ndarray, lungs: np.ndarray, config: TeacherConfig) -> tuple[np.ndarray, np.ndarray]:
    """HU within the clip range as int16 and the lungs as bool, contiguous; a ValueError in words."""
    if hu.shape != lungs.shape:
        raise ValueError(f"HU {hu.shape} and lungs {lungs.shape} must lie on one grid")
    if not np.issubdtype(hu.dtype, np.integer):
        raise ValueError(f"HU must be whole numbers (int16), not {hu.dtype}: round them first")
    bounded = np.clip(hu, *config.clip_hu).astype(np.int16, order="C")
    return bounded, np.ascontiguousarray(lungs, dtype=bool)


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Run work(first, last) over 0..count on as many threads as torch may use: a Ray worker has its share."""
    parts = max(1, min(torch.get_num_threads(), count))
    edges = [count * i // parts for i in range(parts + 1)]
    if parts == 1:
        work(0, count)
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
