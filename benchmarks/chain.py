"""The product's chain on a phantom without Ray, in pieces: what the benchmarks of its method share."""

from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from diffseglung.config import Config
from diffseglung.distill import Distillation, distill
from diffseglung.labels import TISSUES
from diffseglung.look import Look, look
from diffseglung.patches import regrid
from diffseglung.prepare import cell_tissues, prepare_case
from diffseglung.teacher import Standardiser
from diffseglung.volume import read_labels, read_volume
from diffseglung_ray.training_process import COLUMNS, in_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Seen(Look):
    """All that is known of a phantom without a network, and its truth; `tissue` is that of each cell, 0 if mixed."""

    case_id: str
    truth: np.ndarray
    tissue: np.ndarray

    def per_cell(self, features: np.ndarray) -> np.ndarray:
        """A student's features (c, z, y, x) at each cell: (z, y, x, c)."""
        return np.moveaxis(regrid(features, self.cells.inside.shape), 0, -1)

    @property
    def described(self) -> np.ndarray:
        """Cells (z, y, x) of lung that have evidence and descriptors."""
        return self.cells.inside & np.isfinite(self.cells.descriptors).all(axis=-1)

    @property
    def blank(self) -> np.ndarray:
        """Noise in the place of features (2, z, y, x), for ways that do not look at them."""
        shape = tuple(max(1, n // 4) for n in self.cells.inside.shape)
        return np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)


def look_at(case_id: str, image: Path | str, truth: Path | str, config: Config) -> Seen:
    """A phantom as the product sees it, without the network."""
    volume = read_volume(image, config=config.volume)
    labels, seen = read_labels(truth, volume), look(volume, config)
    tissue = cell_tissues(labels, volume, seen.scan, config.patches)
    return Seen(*(getattr(seen, part.name) for part in fields(Look)), case_id, labels, tissue)


def cut_patches(case_id: str, image: Path | str, config: Config) -> Columns:
    """The columns of `patches_schema` that jobs/prepare.py would leave of one phantom."""
    table = prepare_case(case_id, read_volume(image, config=config.volume), config)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return {
        name: column.to_numpy_ndarray()
        if isinstance(column, pa.FixedShapeTensorArray)
        else column.to_numpy(zero_copy_only=False)
        for name, column in columns.items()
    }


def together(parts: list[Columns]) -> Columns:
    """The patches of several phantoms."""
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def train(config: Config, patches: Columns, *, say_every: int = 20) -> tuple[Distillation, Standardiser]:
    """The loop of jobs/train.py in this process, on its GPU where it has one."""
    column = patches["teacher" if config.train.variant == "global" else "teacher_local"]
    standardiser = Standardiser.fit(column)
    run = Distillation(config.student, config.train, standardiser, DEVICE)
    epoch_of = in_memory({name: patches[name] for name in COLUMNS}, config.train.micro_batch(1))
    batches = (batch for epoch in count() for batch in epoch_of(config.train.seed + epoch))
    for step, metrics in distill(run, batches):
        if step % say_every == 0:
            print(step, {k: round(v, 3) for k, v in metrics.items()}, flush=True)
    return run, standardiser


def dice(truth: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of each tissue; NaN where the scan has none of it."""
    found = []
    for tissue in TISSUES:
        there, called = truth == tissue, labels == tissue
        both, size = (there & called).sum(), there.sum()
        found.append(float(2 * both / (size + called.sum())) if size else float("nan"))
    return found


def diseases(rows: list[list[float]]) -> np.ndarray:
    """Of each disease, the mean of `dice` over the scans that have it: the product's ruler, before its own mean."""
    return np.nanmean(np.array(rows)[:, 1:], axis=0)
