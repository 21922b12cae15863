"""The brushes that the digital chest is painted with: millimetre frames, soft edges, smooth noise, tubes."""

from dataclasses import dataclass

import numba
import numpy as np

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """Millimetres from the middle of a canonical (z, y, x) grid: +z head, +y back, +x the patient's left."""

    shape: Shape
    spacing_mm: Spacing

    def axis_mm(self, axis: int) -> np.ndarray:
        """Voxel centres along one axis, shaped to broadcast against the volume; float32."""
        mm = (np.arange(self.shape[axis]) - (self.shape[axis] - 1) / 2) * self.spacing_mm[axis]
        return mm.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])

    @property
    def zyx_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.axis_mm(0), self.axis_mm(1), self.axis_mm(2)

    @property
    def extent_mm(self) -> np.ndarray:
        return np.array(self.shape) * np.array(self.spacing_mm)

    @property
    def pixel_mm(self) -> float:
        """The edge of a cube as large as a voxel: how wide a sharp edge looks before the scanner blurs it."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))

    def to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """Points (n, 3) in mm (z, y, x) as fractional voxel indices."""
        return points_mm / np.array(self.spacing_mm) + (np.array(self.shape) - 1) / 2

    def to_mm(self, index: np.ndarray) -> np.ndarray:
        """Voxel indices (n, 3) as points in mm (z, y, x)."""
        return (index - (np.array(self.shape) - 1) / 2) * np.array(self.spacing_mm)


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, and the smooth S-curve in between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cover(depth_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """How much of each voxel a structure fills, from the depth inside it: the partial volume of its edge."""
    return np.clip(0.5 + depth_mm / edge_mm, 0, 1)


def blend(under: np.ndarray | float, over: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """`over` painted on `under` where its share of the voxel is 1, mixed where it is less."""
    return under + share * (over - under)


def depth_of(field: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """An implicit shape (positive inside) as depth in mm: its value over its own slope (first order)."""
    slope = np.zeros_like(field)
    for axis, step_mm in enumerate(spacing_mm):
        slope += (np.gradient(field, axis=axis) / step_mm) ** 2
    return field / np.maximum(np.sqrt(slope), 1e-4)


def either(a: np.ndarray, b: np.ndarray, round_mm: float) -> np.ndarray:
    """The union of two depths with its inner corner rounded (polynomial smooth maximum)."""
    h = np.clip(0.5 + 0.5 * (a - b) / round_mm, 0, 1)
    return b + h * (a - b) + round_mm * h * (1 - h)


def both(a: np.ndarray, b: np.ndarray, round_mm: float) -> np.ndarray:
    """The intersection of two depths with its outer corner rounded."""
    return -either(-a, -b, round_mm)


def smooth_noise(rng: np.random.Generator, frame: Frame, scale_mm: float | Spacing) -> np.ndarray:
    """Random relief with hills about `scale_mm` wide, mean 0 and standard deviation 1: float32 (z, y, x).

    A cubic B-spline on a random lattice, evaluated one axis at a time, so that any hill size costs the same.
    """
    scales = scale_mm if isinstance(scale_mm, tuple) else (scale_mm,) * 3
    weights = [
        _spline_weights(frame.shape[axis], frame.spacing_mm[axis], scales[axis], rng.random())
        for axis in range(3)
    ]
    lattice = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    for axis, weight in enumerate(weights):
        lattice = np.moveaxis(np.tensordot(weight, lattice, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(lattice)


def _spline_weights(count: int, step_mm: float, scale_mm: float, phase: float) -> np.ndarray:
    """Cubic B-spline weights (count, knots), each row scaled to unit variance."""
    knot_mm = max(scale_mm / 2, step_mm)
    place = np.arange(count) * step_mm / knot_mm + 1 + phase
    distance = np.abs(place[:, None] - np.arange(int(place[-1]) + 3)[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    weight = np.where(distance < 1, near, far)
    return (weight / np.sqrt((weight**2).sum(1, keepdims=True))).astype(np.float32)


def tubes(frame: Frame, start_mm: np.ndarray, end_mm: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    """How much of each voxel is inside any of n tapering tubes: float32 (z, y, x), 0 to 1.

    start_mm, end_mm (n, 3) in (z, y, x); radii_mm (n, 2) at the two ends. A tube thinner than a voxel
    fills only the share of the voxel that its cross-section has.
    """
    share = np.zeros(frame.shape, np.float32)
    _paint_tubes(
        share,
        np.array(frame.spacing_mm),
        frame.to_index(start_mm) * np.array(frame.spacing_mm),
        frame.to_index(end_mm) * np.array(frame.spacing_mm),
        np.ascontiguousarray(radii_mm, np.float64),
        frame.pixel_mm,
    )
    return share


def path(
    frame: Frame, points_mm: list[tuple[float, float, float]], radius_mm: float | list[float]
) -> np.ndarray:
    """A tube through the given points (z, y, x), as `tubes` paints it."""
    points = np.array(points_mm, float)
    radii = np.broadcast_to(np.asarray(radius_mm, float), len(points))
    return tubes(frame, points[:-1], points[1:], np.stack([radii[:-1], radii[1:]], 1))


@numba.njit(cache=True)
def _paint_tubes(share, spacing_mm, start_mm, end_mm, radii_mm, pixel_mm):  # type: ignore[no-untyped-def]
    for n in range(len(start_mm)):
        a, b = start_mm[n], end_mm[n]
        along = b - a
        length2 = max((along * along).sum(), 1e-6)
        reach = max(radii_mm[n, 0], radii_mm[n, 1]) + pixel_mm
        low = np.zeros(3, np.int64)
        high = np.zeros(3, np.int64)
        for axis in range(3):
            low[axis] = max(int(np.ceil((min(a[axis], b[axis]) - reach) / spacing_mm[axis])), 0)
            high[axis] = min(
                int(np.floor((max(a[axis], b[axis]) + reach) / spacing_mm[axis])) + 1, share.shape[axis]
            )
        for k in range(low[0], high[0]):
            dz = k * spacing_mm[0] - a[0]
            for j in range(low[1], high[1]):
                dy = j * spacing_mm[1] - a[1]
                for i in range(low[2], high[2]):
                    dx = i * spacing_mm[2] - a[2]
                    t = (dz * along[0] + dy * along[1] + dx * along[2]) / length2
                    t = min(max(t, 0.0), 1.0)
                    away2 = (dz - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dx - t * along[2]) ** 2
                    radius = radii_mm[n, 0] + t * (radii_mm[n, 1] - radii_mm[n, 0])
                    filled = 0.5 + (radius - np.sqrt(away2)) / pixel_mm
                    thin = min(1.0, np.pi * (radius / pixel_mm) ** 2)
                    filled = min(max(filled, 0.0), 1.0) * thin
                    if filled > share[k, j, i]:
                        share[k, j, i] = filled
