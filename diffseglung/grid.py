"""Where voxels lie in the patient, and how values move between two grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numba
import numpy as np
import SimpleITK as sitk
from scipy import ndimage, sparse

AXES = ("z", "y", "x")
Order = tuple[int, int, int]
Flips = tuple[bool, bool, bool]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where every voxel of an array lies in the patient.

    `shape` is (z, y, x). `affine` is 4x4 float64 and takes an index (z, y, x, 1) to millimetres (x, y, z, 1)
    in the DICOM frame, LPS: its columns are the step along each index, then the centre of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (z, y, x)."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres, right for oblique and sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """The field of view along (z, y, x), outer edge to outer edge."""
        z, y, x = (count * step for count, step in zip(self.shape, self.spacing_mm, strict=True))
        return z, y, x

    def at_mm(self, index: Sequence[float]) -> np.ndarray:
        """The place (x, y, z) in LPS millimetres of an index (z, y, x), whole or between voxels."""
        return (self.affine @ (*index, 1.0))[:3]

    def matches(self, other: "Grid", tolerance_vox: float = 0.1) -> bool:
        """Whether both grids put every voxel in the same place, to a fraction of a voxel."""
        if self.shape != other.shape:
            return False
        corners = product(*((0, count - 1) for count in self.shape))
        apart_mm = max(np.linalg.norm(self.at_mm(corner) - other.at_mm(corner)) for corner in corners)
        return bool(apart_mm <= tolerance_vox * min(self.spacing_mm))

    def describe(self) -> str:
        """`148x512x512 voxels of 2.00x0.75x0.75 mm from (-190.1, -172.8, -330.0)`, for error messages."""
        shape = "x".join(map(str, self.shape))
        spacing = "x".join(f"{step:.2f}" for step in self.spacing_mm)
        origin = ", ".join(f"{mm:.1f}" for mm in self.affine[:3, 3])
        return f"{shape} voxels of {spacing} mm from ({origin})"


def canonical_axes(grid: Grid) -> tuple[Order, Flips]:
    """Which stored axis runs closest to head, back and patient's left, and which of them run backwards.

    Canonical axis `c` is stored axis `order[c]`, reversed where `flips[c]`. Nothing is rotated: an oblique
    grid keeps its obliqueness in the affine.
    """
    alignment = (grid.affine[:3, :3] / np.asarray(grid.spacing_mm))[::-1]  # [canonical axis, stored axis]
    z, y, x = max(
        permutations(range(3)), key=lambda order: sum(abs(alignment[c, order[c]]) for c in range(3))
    )
    backwards = alignment[range(3), (z, y, x)] < 0
    return (z, y, x), (bool(backwards[0]), bool(backwards[1]), bool(backwards[2]))


def canonical_grid(grid: Grid, order: Order, flips: Flips) -> Grid:
    """The same voxels named in canonical order (z to the head, y to the back, x to the patient's left)."""
    shape = tuple(grid.shape[axis] for axis in order)
    first = [0.0, 0.0, 0.0]
    for axis, count, flipped in zip(order, shape, flips, strict=True):
        first[axis] = count - 1 if flipped else 0
    affine = np.eye(4)
    affine[:3, :3] = grid.affine[:3, list(order)] * np.where(flips, -1.0, 1.0)
    affine[:3, 3] = grid.at_mm(first)
    return Grid((shape[0], shape[1], shape[2]), affine)


def reorder(array: np.ndarray, order: Order, flips: Flips) -> np.ndarray:
    """Stored order to canonical order. A view, not a copy."""
    return np.flip(np.transpose(array, order), _reversed(flips))


def restore(array: np.ndarray, order: Order, flips: Flips) -> np.ndarray:
    """Canonical order back to stored order: undoes `reorder`, voxel for voxel. A view, not a copy."""
    return np.transpose(np.flip(array, _reversed(flips)), np.argsort(order))


def _reversed(flips: Flips) -> tuple[int, ...]:
    return tuple(axis for axis in range(3) if flips[axis])


def crop_grid(grid: Grid, slices: tuple[slice, slice, slice]) -> Grid:
    """The grid of `array[slices]`. Steps must be 1 and the box must not be empty."""
    starts, shape = [], []
    for axis, cut, count in zip(AXES, slices, grid.shape, strict=True):
        start, stop, step = cut.indices(count)
        if step != 1 or stop <= start:
            raise ValueError(
                f"cannot crop axis {axis} of {count} voxels by {cut}: it must be a box with step 1"
            )
        starts.append(start)
        shape.append(stop - start)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.at_mm(starts)
    return Grid((shape[0], shape[1], shape[2]), affine)


def respaced_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """A grid of other spacing over the same field of view and about the same centre.

    It holds just enough voxels to cover the old extent, and every voxel centre of either grid lies inside the
    field of view of the other, so that nothing is extrapolated in either direction.
    """
    if not all(step > 0 for step in spacing_mm):
        raise ValueError(f"spacing_mm must be positive along z, y and x, not {spacing_mm}")
    ratio = np.asarray(spacing_mm) / grid.spacing_mm
    # A billionth off a voxel keeps 100 voxels of 1.5 mm at 75 of 2 mm, whatever the rounding of the affine.
    z, y, x = (int(n) for n in np.maximum(1, np.ceil(np.asarray(grid.shape) / ratio - 1e-6)))
    affine = grid.affine.copy()
    affine[:3, :3] *= ratio
    middle = (np.asarray(grid.shape) - 1) / 2
    affine[:3, 3] = grid.at_mm(middle.tolist()) - affine[:3, :3] @ ((np.array([z, y, x]) - 1) / 2)
    return Grid((z, y, x), affine)


def respace(
    array: np.ndarray, source: Grid, target: Grid, box: tuple[slice, slice, slice] | None = None
) -> np.ndarray:
    """An image carried to a grid of other spacing about the same centre, or to a box of that: float32 (z, y, x).

    Linear, and smoothed along the axes that get coarser; both at once, as one sparse matrix an axis. Slices come
    first, one at a time, and z last, so that 600 slices cost four times 150, and no whole scan is copied.
    """
    axes = zip(source.shape, target.shape, source.spacing_mm, target.spacing_mm, strict=True)
    z, y, x = (_respacing(*axis)[cut] for axis, cut in zip(axes, box or [slice(None)] * 3, strict=True))
    needed = np.unique(z.indices)
    slices = np.empty((len(needed), y.shape[0] * x.shape[0]), np.float32)
    for index, number in enumerate(needed):
        slices[index] = (x @ (y @ array[number].astype(np.float32)).T).T.ravel()
    return (z[:, needed] @ slices).reshape(z.shape[0], y.shape[0], x.shape[0])


def _respacing(count: int, new_count: int, old_mm: float, new_mm: float) -> sparse.csr_array:
    """Weights (new_count, count) that smooth an axis to its new spacing and read it there; its ends are repeated."""
    # To whole micrometres: a spacing that agrees to that is the same, and should be left untouched.
    coarser_mm = np.sqrt(max(0.0, round(new_mm, 3) ** 2 - round(old_mm, 3) ** 2))
    smooth = np.eye(count)
    if coarser_mm:
        sigma = coarser_mm / (2 * np.sqrt(2 * np.log(2))) / old_mm
        smooth = ndimage.gaussian_filter1d(smooth, sigma, axis=0, mode="nearest", truncate=3.0)
    at = (np.arange(new_count) - (new_count - 1) / 2) * (new_mm / old_mm) + (count - 1) / 2
    at = np.clip(np.round(at, 9), 0, count - 1)
    low = np.minimum(at.astype(int), max(0, count - 2))
    share = (at - low)[:, None]
    weights = (1 - share) * smooth[low] + share * smooth[np.minimum(low + 1, count - 1)]
    return sparse.csr_array(weights.astype(np.float32))


def resample_map(array: np.ndarray, source: Grid, target: Grid, fill: float = 0.0) -> np.ndarray:
    """A map, such as a probability, carried to another grid: float32 (z, y, x), linear, `fill` outside.

    It does not smooth where the target is coarser, as `respace` does.
    """
    return _sample(np.asarray(array, dtype=np.float32), source, target, sitk.sitkLinear, fill)


def coarser_of(source: Grid, target: Grid) -> Grid:
    """About the centre of both, along each axis with the wider of their spacings: what `respace` must smooth for.

    From there to `target` linear interpolation is all that `respace` would do.
    """
    # To whole micrometres, as there.
    is_coarser = [
        round(new, 3) > round(old, 3) for old, new in zip(source.spacing_mm, target.spacing_mm, strict=True)
    ]
    z, y, x = (
        b if coarser else a for a, b, coarser in zip(source.shape, target.shape, is_coarser, strict=True)
    )
    affine = source.affine.copy()
    affine[:, :3] = np.where(is_coarser, target.affine[:, :3], source.affine[:, :3])
    middle = (np.asarray(target.shape) - 1) / 2
    affine[:3, 3] = target.at_mm(middle.tolist()) - affine[:3, :3] @ ((np.array([z, y, x]) - 1) / 2)
    return Grid((z, y, x), affine)


Reading = tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


def linear_reading(source: Grid, target: Grid) -> Reading:
    """Along (z, y, x), between which two voxels of `source` each of `target` lies, and its share of the second.

    What lies beyond the outermost voxels is as they are. Raises ValueError where the axes of both are not parallel.
    """
    matrix = _index_to_index(source, target)
    if not _is_parallel(matrix):
        raise ValueError("the axes of both grids must be parallel")
    reading = []
    for axis, (count, new_count) in enumerate(zip(source.shape, target.shape, strict=True)):
        at = np.clip(np.arange(new_count) * matrix[axis, axis] + matrix[axis, 3], 0, count - 1)
        low = np.minimum(at.astype(np.int64), max(0, count - 2))
        reading.append((low, np.minimum(low + 1, count - 1), (at - low).astype(np.float32)))
    return tuple(reading)


def largest_of(
    maps: np.ndarray, source: Grid, target: Grid, where: np.ndarray, names: np.ndarray | None = None
) -> np.ndarray:
    """Which of several maps is the largest at each voxel of another grid: uint8 (z, y, x), 1 for the first.

    maps float32 (k, z, y, x) on `source`, read linearly and held constant beyond its outermost voxels; where: bool on
    `target`, which voxels are asked. 0 where none is asked. `names` (k + 1) are given instead of 0 .. k, the first
    where no map is above 0. Both grids have the same axes.
    The maps are never on the finer grid: a row of voxels at a time lies in the cache.
    """
    if maps.shape[1:] != source.shape or where.shape != target.shape:
        raise ValueError(f"maps {maps.shape} or mask {where.shape} are not on their grids")
    names = np.arange(len(maps) + 1) if names is None else names
    out = np.zeros(target.shape, np.uint8)
    last_axis = np.ascontiguousarray(np.moveaxis(maps, 0, -1), np.float32)
    _largest(last_axis, linear_reading(source, target), where, names.astype(np.uint8), out)
    return out


@numba.njit(nogil=True, cache=True)
def read_row(maps, over_z, over_y, first, end, row):
    """Voxels first .. end of a row between rows of maps (z, y, x, k), into row (x, k), linear along z, then y."""
    (z0, z1, dz), (y0, y1, dy) = over_z, over_y
    for x in range(first, end):
        for k in range(row.shape[1]):
            before = maps[z0, y0, x, k] + dz * (maps[z1, y0, x, k] - maps[z0, y0, x, k])
            behind = maps[z0, y1, x, k] + dz * (maps[z1, y1, x, k] - maps[z0, y1, x, k])
            row[x, k] = before + dy * (behind - before)


@numba.njit(nogil=True, cache=True)
def _largest(maps, at, where, names, out):
    (low_z, high_z, share_z), (low_y, high_y, share_y), (low_x, high_x, share_x) = at
    row = np.empty(maps.shape[2:], np.float32)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            first, last = out.shape[2], -1
            for x in range(out.shape[2]):
                if where[z, y, x]:
                    first, last = min(first, x), x
            if last < 0:
                continue
            over_z, over_y = (low_z[z], high_z[z], share_z[z]), (low_y[y], high_y[y], share_y[y])
            read_row(maps, over_z, over_y, low_x[first], high_x[last] + 1, row)
            for x in range(first, last + 1):
                if where[z, y, x]:
                    x0, x1, dx = low_x[x], high_x[x], share_x[x]
                    best, which = np.float32(0), 0
                    for k in range(row.shape[1]):
                        value = row[x0, k] + dx * (row[x1, k] - row[x0, k])
                        if value > best:
                            best, which = value, k + 1
                    out[z, y, x] = names[which]


def resample_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Labels carried to another grid: uint8 (z, y, x), nearest voxel, 0 outside."""
    labels = np.asarray(labels).astype(np.uint8, copy=False)
    matrix = _index_to_index(source, target)
    if not _is_parallel(matrix):
        return _sample(labels, source, target, sitk.sitkNearestNeighbor, 0)
    _check_shape(labels, source)
    places = [
        np.floor(np.arange(count) * matrix[axis, axis] + matrix[axis, 3] + 0.5).astype(np.int64)
        for axis, count in enumerate(target.shape)
    ]
    inside = [(at >= 0) & (at < count) for at, count in zip(places, source.shape, strict=True)]
    out = np.zeros(target.shape, np.uint8)
    out[np.ix_(*inside)] = labels[np.ix_(*(at[known] for at, known in zip(places, inside, strict=True)))]
    return out


def _sample(array: np.ndarray, source: Grid, target: Grid, interpolator: int, fill: float) -> np.ndarray:
    """`array` read at every voxel centre of `target`, in index space, so that any affine will do."""
    _check_shape(array, source)
    matrix = _index_to_index(source, target)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3][::-1, ::-1].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3][::-1].tolist())
    image = sitk.GetImageFromArray(array)
    moved = sitk.Resample(
        image,
        size=target.shape[::-1],  # type: ignore[arg-type]
        transform=transform,
        interpolator=interpolator,
        outputOrigin=(0.0, 0.0, 0.0),
        outputSpacing=(1.0, 1.0, 1.0),
        defaultPixelValue=fill,
        outputPixelType=image.GetPixelID(),
    )
    return sitk.GetArrayFromImage(moved)


def _check_shape(array: np.ndarray, grid: Grid) -> None:
    if array.shape != grid.shape:
        raise ValueError(f"the array has shape {array.shape}, its grid says {grid.shape}")


def _index_to_index(source: Grid, target: Grid) -> np.ndarray:
    """Takes an index (z, y, x, 1) of `target` to that of `source`."""
    # The round trip through millimetres costs about 1e-13 voxels; without this, whole indices would miss.
    return np.round(np.linalg.inv(source.affine) @ target.affine, 9)


def _is_parallel(matrix: np.ndarray) -> bool:
    """Whether each axis of one grid runs along the same axis of the other."""
    return not np.count_nonzero(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3])))
