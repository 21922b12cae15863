"""What the student sees: bottleneck features of a scan at several timesteps. Torch ends here."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from diffseglung.frozen import frozen
from diffseglung.patches import PatchConfig, Scan, cut, regrid, seed_of, stitch, tile_corners
from diffseglung.schedule import Schedule, to_unit
from diffseglung.schemas import cells_schema
from diffseglung.student import Student

COMBINE = ("concatenate", "average")
PRECISIONS = ("auto", "float32", "bfloat16")
APART = 0.05  # root mean square difference of features in bfloat16, in standard deviations of the features
TYPICAL_HU, TYPICAL_SD_HU = -850, 60

logger = logging.getLogger(__name__)


@frozen
class FeatureConfig:
    """Where in the noise the student is asked, and how many tiles at once, each at all timesteps.

    `precision` is float32, bfloat16, or auto: bfloat16 on a GPU (see `agreed`) and float32 elsewhere.
    """

    timesteps: tuple[int, ...] = (10, 50)
    combine: str = "concatenate"  # what the timesteps say, side by side; or "average"
    levels: int = (
        1  # of the encoder: 1 is the bottleneck alone, 2 also what lies above it, on a grid twice as fine
    )
    tiles: int = 16
    cells_per_patch: int = 48  # sampled for the mixture; dense features are never stored
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise ValueError(f"features.combine {self.combine!r} is none of: {', '.join(COMBINE)}")
        if not self.timesteps or min(self.tiles, self.cells_per_patch, self.levels) < 1:
            raise ValueError(
                "features.timesteps needs at least one step; features.tiles, cells_per_patch and levels at least 1"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"features.precision {self.precision!r} is none of: {', '.join(PRECISIONS)}")

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """What the network computes in there."""
        half = self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")
        return torch.bfloat16 if half else torch.float32


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
    # As int16 and bool they take a third of the way to a GPU, and it makes floats of them in no time.
    clean = to_unit(torch.tensor(hu, device=device))[:, None]
    mask = torch.tensor(lungs, device=device).float()[:, None]
    noise = noise.to(device)[:, None]
    asked, dtype = len(config.timesteps), config.dtype_on(device)
    t = torch.tensor(config.timesteps, device=device).repeat_interleave(len(hu))
    clean, noise, mask = (x.repeat(asked, 1, 1, 1, 1) for x in (clean, noise, mask))
    noisy = Schedule(student.config.timesteps).add_noise(clean, noise, t)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        features = student.encode(noisy, mask, t, config.levels)
    by_tile = features.float().unflatten(0, (asked, len(hu))).transpose(0, 1)
    both = by_tile.flatten(1, 2) if config.combine == "concatenate" else by_tile.mean(dim=1)
    return both.cpu().numpy()


def agreed(student: Student, size_vox: tuple[int, int, int], config: FeatureConfig) -> FeatureConfig:
    """`config`, in float32 where bfloat16 would give this student other features; that is tried on one made tile."""
    if config.dtype_on(next(student.parameters()).device) == torch.float32:
        return config
    hu = np.random.default_rng(0).normal(TYPICAL_HU, TYPICAL_SD_HU, (1, *size_vox)).astype(np.float32)
    noise = torch.randn(1, *size_vox, generator=torch.Generator().manual_seed(config.seed))
    full = replace(config, precision="float32")
    exact, half = (encode(student, hu, np.ones_like(hu), noise, each)[0] for each in (full, config))
    spread = exact.std(axis=(1, 2, 3), keepdims=True).clip(1e-6)
    apart = float(np.sqrt((((half - exact) / spread) ** 2).mean()))
    if apart <= APART:
        return config
    logger.warning(
        "bfloat16 changes features by %.3f of their spread, more than %g: float32 is used", apart, APART
    )
    return full


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
        for name in ("case_id", "z0", "y0", "x0", "mode_hu", "mesh"):
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
