"""Airways and vessels grown into a lung: every branch heads for the middle of the tissue it will serve.

Source of the algorithm: Tawhai, Pullan and Hunter, Annals of Biomedical Engineering 28 (2000) 793.
"""

from dataclasses import dataclass

import numpy as np

from .fields import Frame, tubes

MURRAY_POWER = 3.1  # radius^p adds up at a branching; Murray (PNAS 12, 1926, 207) has 3


@dataclass(frozen=True, slots=True)
class Tree:
    """Straight branch pieces: ends (n, 3) in mm (z, y, x), and how many tips each piece serves (n,)."""

    start_mm: np.ndarray
    end_mm: np.ndarray
    tips: np.ndarray

    def radii_mm(self, tip_mm: float, most_mm: float) -> np.ndarray:
        """Radius of each piece when its tips have radius `tip_mm`."""
        return np.minimum(tip_mm * self.tips ** (1 / MURRAY_POWER), most_mm)

    def beside(self, aside_mm: np.ndarray) -> "Tree":
        """The same tree moved sideways piece by piece, (n, 3) mm: a bronchus beside its artery."""
        return Tree(self.start_mm + aside_mm, self.end_mm + aside_mm, self.tips)

    def select(self, keep: np.ndarray) -> "Tree":
        return Tree(self.start_mm[keep], self.end_mm[keep], self.tips[keep])

    def paint(self, frame: Frame, radii_mm: np.ndarray) -> np.ndarray:
        return tubes(frame, self.start_mm, self.end_mm, np.stack([radii_mm, radii_mm], 1))


def grow(
    rng: np.random.Generator, root_mm: np.ndarray, targets_mm: np.ndarray, groups: np.ndarray | None = None
) -> Tree:
    """A tree from the root to within reach of every target point.

    root_mm (3,), targets_mm (n, 3) in mm (z, y, x). Where `groups` (n,) names lobes, the first branchings
    separate the lobes, so that no branch crosses a fissure later.
    """
    starts, ends, tips = [], [], []
    first = (
        [np.arange(len(targets_mm))]
        if groups is None
        else [np.flatnonzero(groups == g) for g in np.unique(groups)]
    )
    todo = [(root_mm.astype(float), members) for members in first]
    while todo:
        here, members = todo.pop()
        ahead = targets_mm[members].mean(0) - here
        reach = 0.38 if len(members) > 1 else 0.9
        there = here + reach * ahead
        bend = here + (there - here) * 0.5 + rng.normal(0, 0.05, 3) * np.linalg.norm(there - here)
        starts += [here, bend]
        ends += [bend, there]
        tips += [len(members)] * 2
        if len(members) > 1:
            # Uneven shares, as in the lung, where a small branch often leaves a large one.
            share = rng.uniform(0.25, 0.75)
            todo += [(there, part) for part in _split(targets_mm, members, there, ahead, share)]
    return Tree(np.array(starts), np.array(ends), np.array(tips))


def _split(
    targets_mm: np.ndarray, members: np.ndarray, here: np.ndarray, ahead: np.ndarray, share: float
) -> list[np.ndarray]:
    """The targets in two parts, cut where they spread widest across the branch's direction."""
    forward = ahead / max(np.linalg.norm(ahead), 1e-6)
    offset = targets_mm[members] - here
    across = offset - np.outer(offset @ forward, forward)
    across -= across.mean(0)
    widest = np.linalg.eigh(across.T @ across)[1][:, -1]
    cut = int(np.clip(round(len(members) * share), 1, len(members) - 1))
    order = np.argsort(across @ widest, kind="stable")
    return [members[order[:cut]], members[order[cut:]]]
