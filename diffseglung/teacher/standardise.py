"""Descriptors on one scale: robust, and with the same say for each family."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from diffseglung.teacher.names import TEACHER

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# The interquartile range of a normal distribution in standard deviations.
_NORMAL_IQR = 1.349


@dataclass(frozen=True, slots=True)
class Standardiser:
    """What a usual lung looks like to the teacher; it travels with the model.

    center and scale are float32 (34,): the median and IQR / 1.349 of each descriptor over a cohort.
    """

    center: np.ndarray
    scale: np.ndarray
    limit: float = 6.0

    @classmethod
    def fit(cls, descriptors: np.ndarray, limit: float = 6.0) -> "Standardiser":
        """Median and spread of each column of descriptors (..., 34); rows with NaN are left out."""
        rows = np.asarray(descriptors, np.float64).reshape(-1, len(TEACHER))
        rows = rows[np.isfinite(rows).all(axis=1)]
        if len(rows) < 2:
            raise ValueError(
                f"{len(rows)} described windows are too few to standardise; is there lung in the patches?"
            )
        low, middle, high = np.percentile(rows, (25, 50, 75), axis=0)
        spread = (high - low) / _NORMAL_IQR
        # A column that is mostly one value (a rare pattern) has no IQR but may have a tail; a constant one
        # has neither.
        spread = np.where(spread > 0, spread, rows.std(axis=0))
        spread = np.where(spread > 0, spread, 1.0)
        return cls(middle.astype(np.float32), spread.astype(np.float32), limit)

    def apply(self, descriptors: Array) -> Array:
        """(..., 34) in spreads from the median, cut at +-limit, over the root of the family's size.

        Takes and returns a numpy array or a torch tensor, float32. With independent columns each family
        then adds the same variance. NaN stays NaN.
        """
        sizes = np.ones(len(TEACHER), np.float32)
        for columns in TEACHER.families.values():
            sizes[columns] = np.sqrt(columns.stop - columns.start)
        if isinstance(descriptors, torch.Tensor):
            center, scale, weight = (
                torch.from_numpy(a).to(descriptors) for a in (self.center, self.scale, sizes)
            )
            return ((descriptors - center) / scale).clip(-self.limit, self.limit) / weight
        scaled = (np.asarray(descriptors, np.float32) - self.center) / self.scale
        return scaled.clip(-self.limit, self.limit) / sizes

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, with the descriptors' names beside them."""
        lists = {"center": self.center.tolist(), "scale": self.scale.tolist()}
        return {"names": list(TEACHER.names), **lists, "limit": self.limit}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Standardiser":
        """The inverse of `to_dict`; a ValueError if it was fitted to other descriptors."""
        if tuple(plain["names"]) != TEACHER.names:
            raise ValueError(
                "these statistics belong to another set of descriptors; fit the standardiser again"
            )
        return cls(
            np.array(plain["center"], np.float32), np.array(plain["scale"], np.float32), float(plain["limit"])
        )
