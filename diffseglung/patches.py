"""One geometry, both ways: a scan on the recipe's grid, patches cut from it, tiles stitched back."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from diffseglung.anatomy import Anatomy
from diffseglung.frozen import frozen
from diffseglung.volume import Grid, Volume, crop_grid, resample, resample_labels

Corner = tuple[int, int, int]
Shape = tuple[int, int, int]

MESH_MM = 10.0  # cysts of a honeycomb are 3 to 10 mm wide (Fleischner glossary, Hansell 2008)


@frozen
class PatchConfig:
    """The grid that the method works on, and what is cut from it. All triples are (z, y, x)."""

    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    size_vox: tuple[int, int, int] = (16, 32, 32)
    cell_vox: tuple[int, int, int] = (4, 4, 4)  # the mixture's unit
    window_cells: int = 2  # a cell is judged by this many cells across: 16 mm where they are 8 mm wide
    local_window_vox: tuple[int, int, int] = (
        16,
        16,
        16,
    )  # what the teacher sees around a bottleneck position
    thick_mm: float = 12.0  # lung that is nowhere so thick is no evidence, see `cells.core`
    per_case: int = 48
    min_lung: float = 0.4
    overlap: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.min_lung <= 1:
            raise ValueError(f"patches.min_lung {self.min_lung} must be a share above 0 and at most 1")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"patches.overlap {self.overlap} must be at least 0 and below 1")
        if self.thick_mm < 0:
            raise ValueError(f"patches.thick_mm {self.thick_mm} must not be below 0")
        if min(self.spacing_mm) <= 0 or min(self.size_vox) < 1 or self.per_case < 1:
            raise ValueError("patches.spacing_mm, patches.size_vox and patches.per_case must be above 0")

    @property
    def window_vox(self) -> Shape:
        """Edge of the window that a cell is judged by."""
        z, y, x = self.cell_vox
        return z * self.window_cells, y * self.window_cells, x * self.window_cells

    @property
    def mesh_vox(self) -> Shape:
        """Edge of the box in which a dark spot has its walls: as near to `MESH_MM` as odd numbers come."""
        z, y, x = (max(3, 2 * round((MESH_MM / mm - 1) / 2) + 1) for mm in self.spacing_mm)
        return z, y, x


@dataclass(frozen=True, slots=True)
class Scan:
    """A lung box on the recipe's grid: `hu` int16 and bool masks (z, y, x), every edge a multiple of the stride."""

    hu: np.ndarray
    lungs: np.ndarray
    airways: np.ndarray
    vessels: np.ndarray
    grid: Grid


def to_scan(volume: Volume, anatomy: Anatomy, config: PatchConfig, stride_vox: int) -> Scan:
    """The lungs of a volume on the recipe's grid, cropped with a margin of one stride and padded to whole strides."""
    whole = resample(volume, config.spacing_mm)
    labels = resample_labels(anatomy.labels, volume.grid, whole.grid)
    inside = np.isin(labels, (1, 2, 4))
    if not inside.any():
        raise ValueError("no lung is left on the working grid: the scan is too coarse or its lungs too small")
    window, pad = [], []
    for axis in range(3):
        along = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        low = max(0, int(along[0]) - stride_vox)
        high = min(inside.shape[axis], int(along[-1]) + 1 + stride_vox)
        length = max(high - low, config.size_vox[axis])
        window.append(slice(low, high))
        pad.append((0, -(-length // stride_vox) * stride_vox - (high - low)))
    box = (window[0], window[1], window[2])
    grid = crop_grid(whole.grid, box)
    shape = tuple(s.stop - s.start + p[1] for s, p in zip(box, pad, strict=True))
    labels = np.pad(labels[box], pad)
    return Scan(
        hu=np.pad(whole.hu[box], pad, constant_values=-1024),
        lungs=np.isin(labels, (1, 2, 4)),
        airways=labels == 3,
        vessels=labels == 4,
        grid=Grid(shape=shape, affine=grid.affine),
    )


def on_scan(labels: np.ndarray, volume: Volume, scan: Scan) -> np.ndarray:
    """A mask (bool) or labels (uint8) of the volume's grid on that of the scan, as what they were."""
    return resample_labels(labels, volume.grid, scan.grid).astype(labels.dtype, copy=False)


def seed_of(seed: int, case_id: str) -> int:
    """A case's own seed: the same on every worker and in every order."""
    return int.from_bytes(sha256(f"{seed}/{case_id}".encode()).digest()[:8], "big")


def sample_corners(lungs: np.ndarray, config: PatchConfig, stride_vox: int, seed: int) -> list[Corner]:
    """Corners (z, y, x) of up to `per_case` patches with at least `min_lung` lung, on whole strides, in rising order.

    A scan whose lungs are too small for that gives the patches with the most lung instead.
    """
    share = window_mean(lungs, config.size_vox)[::stride_vox, ::stride_vox, ::stride_vox]
    candidates = np.argwhere(share >= config.min_lung)
    if not len(candidates):
        best = np.argsort(share, axis=None, kind="stable")[::-1][: config.per_case]
        candidates = (
            np.argwhere(share > 0) if share.max() <= 0 else np.stack(np.unravel_index(best, share.shape), 1)
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(candidates))[: config.per_case]
    return sorted((int(z), int(y), int(x)) for z, y, x in candidates[chosen] * stride_vox)


def window_mean(mask: np.ndarray, size: Shape) -> np.ndarray:
    """Mean of `mask` over the box of `size` that starts at each voxel; shape (z - size_z + 1, ...)."""
    total = np.pad(mask.astype(np.int64), [(1, 0)] * 3)
    for axis in range(3):
        total = np.cumsum(total, axis=axis)
    for axis, n in enumerate(size):
        high = np.take(total, range(n, total.shape[axis]), axis=axis)
        total = high - np.take(total, range(total.shape[axis] - n), axis=axis)
    return total / np.prod(size)


def cut(array: np.ndarray, corner: Corner, size: Shape) -> np.ndarray:
    """The box of `size` at `corner` in the first three axes."""
    return array[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))]


def tile_corners(lungs: np.ndarray, size: Shape, overlap: float, stride_vox: int) -> list[Corner]:
    """Corners of overlapping tiles that cover every lung voxel, on whole strides; tiles without lung are left out."""
    axes = []
    for length, n in zip(lungs.shape, size, strict=True):
        if length < n or length % stride_vox:
            raise ValueError(
                f"a scan of {lungs.shape} is no whole number of strides ({stride_vox}) or below {size}"
            )
        step = max(stride_vox, int(n * (1 - overlap)) // stride_vox * stride_vox)
        axes.append(sorted({*range(0, length - n + 1, step), length - n}))
    corners = [(z, y, x) for z in axes[0] for y in axes[1] for x in axes[2]]
    return [corner for corner in corners if cut(lungs, corner, size).any()]


def tent(size: Shape) -> np.ndarray:
    """Blending weight of a tile: 1 in the middle, falling linearly to the rim, never 0; float32 (z, y, x)."""
    z, y, x = (1 - np.abs((np.arange(n) + 0.5) * 2 / n - 1) + 1e-3 for n in size)
    return (z[:, None, None] * y[None, :, None] * x[None, None, :]).astype(np.float32)


def stitch(tiles: Iterator[tuple[Corner, np.ndarray]], shape: Shape, channels: int) -> np.ndarray:
    """Blend tiles (c, z, y, x), given with their corners on the same grid, into (c, *shape); NaN where none lies."""
    total = np.zeros((channels, *shape), np.float32)
    weight = np.zeros(shape, np.float32)
    for corner, tile in tiles:
        size = tile.shape[1:]
        w = tent(size)
        box = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))
        total[(slice(None), *box)] += tile * w
        weight[box] += w
    with np.errstate(invalid="ignore"):
        return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


def half_a_cell_on(array: np.ndarray, cell_vox: Shape) -> np.ndarray:
    """The same (z, y, x) with half a cell of nothing around it: its cells lie halfway between those of `array`."""
    return np.pad(array, [(n // 2, n - n // 2) for n in cell_vox])


def cell_share(mask: np.ndarray, cell_vox: Shape) -> np.ndarray:
    """Share of each cell that `mask` fills; float32 on the cell grid (edges must be whole cells)."""
    z, y, x = (n // c for n, c in zip(mask.shape, cell_vox, strict=True))
    blocks = mask.reshape(z, cell_vox[0], y, cell_vox[1], x, cell_vox[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def regrid(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Cells (c, z, y, x) onto another cell grid over the same box, linear between cell centres."""
    out = array.astype(np.float32)
    for axis, count in enumerate(shape, 1):
        out = _between(out, axis, count)
    return out


def between_cells(array: np.ndarray) -> np.ndarray:
    """What (c, z, y, x) on cells comes to halfway between them, the ends held: one more along each axis."""
    out = np.pad(array, [(0, 0), (1, 1), (1, 1), (1, 1)], mode="edge")
    for axis in (1, 2, 3):
        count = out.shape[axis]
        out = (out.take(range(1, count), axis) + out.take(range(count - 1), axis)) / 2
    return out


def _between(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """So many values along one axis instead of those that are there, linear, the ends held."""
    old = array.shape[axis]
    if old == count:
        return array
    at = np.clip((np.arange(count) + 0.5) * old / count - 0.5, 0, old - 1)
    low = np.minimum(at.astype(int), max(0, old - 2))
    share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    first, second = (array.take(i, axis) for i in (low, np.minimum(low + 1, old - 1)))
    second -= first
    second *= share
    second += first
    return second
