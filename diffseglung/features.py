"""What the student sees: bottleneck features of a scan at several timesteps. Torch ends here."""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import torch

from diffseglung.frozen import frozen
from diffseglung.patches import PatchConfig, Scan, cut, regrid, seed_of, stitch, tile_corners
from diffseglung.schedule import Schedule, to_unit
from diffseglung.schemas import cells_schema
from diffseglung.student import Student

COMBINE = ("concatenate", "average")


@frozen
class FeatureConfig:
    """Where in the noise the student is asked, and how many tiles at once."""

    timesteps: tuple[int, ...] = (10, 50)
    combine: str = "concatenate"  # what the timesteps say, side by side; or "average"
    levels: int = (
        1  # of the encoder: 1 is the bottleneck alone, 2 also what lies above it, on a grid twice as fine
    )
    tiles: int = 16
    cells_per_patch: int = 48  # sampled for the mixture; dense features are never stored
    seed: int = 0

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise ValueError(f"features.combine {self.combine!r} is none of: {', '.join(COMBINE)}")
        if not self.timesteps or min(self.tiles, self.cells_per_patch, self.levels) < 1:
            raise ValueError(
                "features.timesteps needs at least one step; features.tiles, cells_per_patch and levels at least 1"
            )


def width(student: Student, config: FeatureConfig) -> int:
    """Numbers per position: the channels of the levels that are read, once for each timestep that stands apart."""
    apart = len(config.timesteps) if config.combine == "concatenate" else 1
    return sum(student.config.channels[-config.levels :]) * apart


@torch.no_grad()
def encode(
    student: Student, hu: np.ndarray, lungs: np.ndarray, noise: torch.Tensor, config: FeatureConfig
) -> np.ndarray:
    """Features (b, c, gz, gy, gx) of tiles (b, z, y, x), all timesteps combined; the decoder is never run.

    `noise` is (b, z, y, x), the same for every timestep.
    """
    device = next(student.parameters()).device
    clean = to_unit(torch.from_numpy(hu.astype(np.float32))).to(device)[:, None]
    mask = torch.from_numpy(lungs.astype(np.float32)).to(device)[:, None]
    noise = noise.to(device)[:, None]
    schedule = Schedule(student.config.timesteps)
    parts = []
    for step in config.timesteps:
        t = torch.full((len(hu),), step, device=device)
        parts.append(student.encode(schedule.add_noise(clean, noise, t), mask, t, config.levels))
    both = torch.cat(parts, dim=1) if config.combine == "concatenate" else torch.stack(parts).mean(dim=0)
    return both.float().cpu().numpy()


def extract(
    student: Student,
    scan: Scan,
    patches: PatchConfig,
    config: FeatureConfig,
    progress: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """Features (c, gz, gy, gx) of a whole scan on the grid of the finest level; 0 where no lung is near.

    Tiles have the size that the student was trained on, since its normalisation depends on it; they overlap and
    are blended with tent weights.
    """
    stride, size = student.config.stride_vox, patches.size_vox
    edge = stride >> config.levels - 1
    shape = tuple(n // edge for n in scan.hu.shape)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(scan.hu.shape, generator=generator).numpy()
    corners = tile_corners(scan.lungs, size, patches.overlap, stride)

    def tiles() -> Iterable:
        for start in progress(range(0, len(corners), config.tiles)):
            some = corners[start : start + config.tiles]
            hu, lungs = (np.stack([cut(a, c, size) for c in some]) for a in (scan.hu, scan.lungs))
            eps = torch.from_numpy(np.stack([cut(noise, c, size) for c in some]))
            for corner, tile in zip(some, encode(student, hu, lungs, eps, config), strict=True):
                yield tuple(c // edge for c in corner), tile

    return np.nan_to_num(stitch(iter(tiles()), shape, width(student, config)))


def sample_cells(student: Student, batch: dict[str, np.ndarray], config: FeatureConfig) -> pa.Table:
    """A bounded sample of the cells of some patches (columns as in `patches_schema`) with their features.

    What is drawn depends on the case, the corner and the seed alone.
    """
    n, cells = len(batch["hu"]), batch["evidence"].shape[1:4]
    seeds = [
        seed_of(config.seed, f"{case}/{z},{y},{x}")
        for case, z, y, x in zip(*(batch[k] for k in ("case_id", "z0", "y0", "x0")), strict=True)
    ]
    noise = torch.stack(
        [torch.randn(batch["hu"].shape[1:], generator=torch.Generator().manual_seed(s >> 1)) for s in seeds]
    )
    features = encode(student, batch["hu"], batch["lungs"], noise, config)
    rows: dict[str, list] = {name: [] for name in cells_schema(1).names}
    for i in range(n):
        evidence, descriptors = batch["evidence"][i], batch["descriptors"][i]
        usable = np.isfinite(evidence).all(-1) & np.isfinite(descriptors).all(-1) & (evidence[..., 6] > 0)
        where = np.random.default_rng(seeds[i]).permutation(np.flatnonzero(usable))[: config.cells_per_patch]
        where.sort()
        fine = regrid(features[i], cells).reshape(features.shape[1], -1).T
        for name in ("case_id", "z0", "y0", "x0", "mode_hu", "roughness"):
            rows[name] += [batch[name][i]] * len(where)
        rows["cell"] += where.tolist()
        rows["evidence"].append(evidence.reshape(-1, evidence.shape[-1])[where])
        rows["descriptors"].append(descriptors.reshape(-1, descriptors.shape[-1])[where])
        rows["features"].append(fine[where])
    schema = cells_schema(width(student, config))
    return pa.Table.from_arrays(
        [
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.concatenate(rows[f.name]).astype(np.float32))
            if f.name in ("evidence", "descriptors", "features")
            else pa.array(rows[f.name], f.type)
            for f in schema
        ],
        schema=schema,
    )
