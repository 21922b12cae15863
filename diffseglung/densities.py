"""How many voxels of each tissue have each density: one look at a scan, from which its figures follow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from diffseglung.gate import RANGE_HU
from diffseglung.labels import Tissue

HU = np.arange(RANGE_HU[0], RANGE_HU[1] + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Densities:
    """`counts` int64 (tissues + 1, values of `HU`): row 0 is what lies outside the lungs."""

    counts: np.ndarray

    @staticmethod
    def of(hu: np.ndarray, labels: np.ndarray) -> "Densities":
        """Of a scan (int16, in HU) and its labels (uint8), both (z, y, x); below the lowest of `HU` counts as that."""
        counts = np.zeros((max(Tissue) + 1, len(HU)), np.int64)
        _count(hu, labels, counts)
        return Densities(counts)

    @property
    def voxels(self) -> np.ndarray:
        """Of each tissue, by its number."""
        return self.counts.sum(axis=1)

    @property
    def of_lungs(self) -> np.ndarray:
        """How many voxels of the lungs have each value of `HU`."""
        return self.counts[1:].sum(axis=0)

    def mean_hu(self) -> float:
        """Of the lungs; nan where there are none."""
        lungs = self.of_lungs
        return float(HU @ lungs / lungs.sum()) if lungs.any() else float("nan")

    def share_below(self, hu: float) -> float:
        """Of the lungs' voxels; nan where there are none."""
        lungs = self.of_lungs
        return float(lungs[hu > HU].sum() / lungs.sum()) if lungs.any() else float("nan")

    def in_bins(self, edges_hu: Sequence[int]) -> np.ndarray:
        """Counts (tissues + 1, bins) between edges; the end bins hold the rest."""
        bins = np.clip(np.searchsorted(edges_hu, HU, side="right") - 1, 0, len(edges_hu) - 2)
        starts = np.searchsorted(bins, np.arange(len(edges_hu) - 1))
        return np.add.reduceat(self.counts, starts, axis=1)


def voxels_of(labels: np.ndarray) -> np.ndarray:
    """How many voxels each label has: int64 (tissues + 1)."""
    return _voxels(labels, np.zeros(max(Tissue) + 1, np.int64))


@numba.njit(nogil=True, cache=True)
def _count(hu, labels, counts):
    flat, values, lowest = counts.ravel(), np.uint32(counts.shape[1]), np.int32(RANGE_HU[0])
    for z in range(hu.shape[0]):
        for y in range(hu.shape[1]):
            for x in range(hu.shape[2]):
                value = np.uint32(max(np.int32(hu[z, y, x]), lowest) - lowest)
                flat[np.uint32(labels[z, y, x]) * values + value] += 1


@numba.njit(nogil=True, cache=True)
def _voxels(labels, counts):
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                counts[labels[z, y, x]] += 1
    return counts
