"""Can a posterior be believed: are 80 in 100 voxels right that are called with 80 %, and is doubt where errors are?

Counts are kept, not voxels, so that scans add up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffseglung.labels import TISSUES, Tissue
from diffseglung.mixture import entropy

BINS = 20  # of confidence, from 0 to 1
STEPS = 200  # of entropy, from 0 to 1
NAMES = ("voxels", "right", "confidence", "doubt_right", "doubt_wrong")
PARTS = {"lung": "all of the lung", "diseased": "what is called diseased"}


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Voxels by the posterior of the tissue that they are called, and by the entropy (share of log 6) of all six.

    `voxels`, `right` (int64) and `confidence` (float64, their sum) hold one number a bin; `doubt_right` and
    `doubt_wrong` (int64) one a step of entropy.
    """

    voxels: np.ndarray
    right: np.ndarray
    confidence: np.ndarray
    doubt_right: np.ndarray
    doubt_wrong: np.ndarray

    @classmethod
    def empty(cls) -> "Calibration":
        """Of no voxel."""
        whole = [np.zeros(size, np.int64) for size in (BINS, BINS, STEPS, STEPS)]
        return cls(whole[0], whole[1], np.zeros(BINS), whole[2], whole[3])

    @classmethod
    def of(cls, posteriors: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None) -> "Calibration":
        """Of the voxels that a truth knows and a posterior judges.

        posteriors: float32 (6, z, y, x) over `TISSUES`, 0 where nothing is known; truth: uint8 (z, y, x), 0 unknown;
        `where`: bool (z, y, x), to count some of them alone.
        """
        if posteriors.shape != (len(TISSUES), *truth.shape):
            raise ValueError(
                f"posteriors {posteriors.shape} are not those of six tissues for truth {truth.shape}"
            )
        asked = (truth > 0) & posteriors.any(axis=0)
        asked = asked if where is None else asked & where
        known, actual = posteriors[:, asked].astype(np.float64), truth[asked]
        top = known.max(axis=0, initial=0)
        right = known.argmax(axis=0) + Tissue.HEALTHY == actual
        bin_, step = (
            np.minimum((x * n).astype(int), n - 1) for x, n in ((top, BINS), (entropy(known), STEPS))
        )
        return cls(
            np.bincount(bin_, minlength=BINS),
            np.bincount(bin_[right], minlength=BINS),
            np.bincount(bin_, top, minlength=BINS),
            np.bincount(step[right], minlength=STEPS),
            np.bincount(step[~right], minlength=STEPS),
        )

    @classmethod
    def total(cls, parts: Iterable["Calibration"]) -> "Calibration":
        """Of the voxels of several scans."""
        columns = zip(*(part._numbers() for part in (cls.empty(), *parts)), strict=True)
        return cls(*(np.sum(column, axis=0) for column in columns))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists."""
        return {name: numbers.tolist() for name, numbers in zip(NAMES, self._numbers(), strict=True)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """What `to_dict` gave."""
        return cls(*(np.asarray(plain[name]) for name in NAMES))

    def _numbers(self) -> tuple[np.ndarray, ...]:
        return self.voxels, self.right, self.confidence, self.doubt_right, self.doubt_wrong

    @property
    def curve(self) -> list[tuple[float, float, int]]:
        """The reliability diagram: mean confidence, share right and voxels of each bin that holds any."""
        used = np.flatnonzero(self.voxels)
        return [
            (float(self.confidence[i] / n), float(self.right[i] / n), int(n))
            for i, n in zip(used, self.voxels[used], strict=True)
        ]

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: how far confidence is from accuracy, over all bins by their voxels.

        Naeini et al. 2015 (AAAI); NaN of no voxel.
        """
        total = self.voxels.sum()
        return float(np.abs(self.right - self.confidence).sum() / total) if total else float("nan")

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy, -1 to 1; NaN of no voxel."""
        total = self.voxels.sum()
        return float((self.confidence.sum() - self.right.sum()) / total) if total else float("nan")

    @property
    def error_detection(self) -> float:
        """Area under the error-detection curve (AUROC): how often a wrong voxel has more entropy than a right one.

        0.5 by chance, 1 where doubt tells every error; NaN where nothing is wrong, or nothing right.
        """
        wrong, right = self.doubt_wrong.sum(), self.doubt_right.sum()
        if not (wrong and right):
            return float("nan")
        below = np.cumsum(self.doubt_right) - self.doubt_right
        return float((self.doubt_wrong * (below + self.doubt_right / 2)).sum() / (wrong * right))


def calibrations(posteriors: np.ndarray, truth: np.ndarray) -> dict[str, Calibration]:
    """Of all of the lung and, since most of it is healthy and easy, of what is called diseased (keys of `PARTS`)."""
    diseased = posteriors.argmax(axis=0) + Tissue.HEALTHY > Tissue.HEALTHY
    return {
        "lung": Calibration.of(posteriors, truth),
        "diseased": Calibration.of(posteriors, truth, diseased),
    }


def calibration_markdown(found: Mapping[str, Mapping[str, Calibration]]) -> str:
    """One line a method and part of the lung; `found` by method and part."""
    head = [
        "method",
        "of",
        "expected calibration error",
        "confidence above accuracy",
        "errors found by entropy",
    ]
    lines = [_line(head), _line(["---", "---", "---:", "---:", "---:"])]
    for method, parts in found.items():
        for part, one in parts.items():
            numbers = f"{one.error:.3f}", f"{one.overconfidence:+.3f}", f"{one.error_detection:.2f}"
            lines.append(_line([method, PARTS[part], *numbers]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
