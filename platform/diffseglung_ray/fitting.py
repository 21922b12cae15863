"""What a mixture is fitted on: a bounded sample of cells, gathered over the cluster by a trained student."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy

from diffseglung.features import FeatureConfig, sample_cells, width
from diffseglung.patches import seed_of
from diffseglung.schemas import cells_schema
from diffseglung.student import Student
from diffseglung_ray.cluster import Workers
from diffseglung_ray.processes import import_network
from diffseglung_ray.workspace import Workspace, cpus_beside_readers

MOST_CELLS = 200_000  # on the driver: 0.7 GB with the features of the published network
PATCHES_A_BATCH = 16
PATCHES_A_WORKER = 256  # with fewer, starting another worker (or any) costs more than it saves
COLUMNS = ("case_id", "z0", "y0", "x0", "hu", "lungs", "evidence", "descriptors", "mode_hu", "mesh")


def gather_cells(
    student: Student, features: FeatureConfig, workspace: Workspace, workers: Workers
) -> pa.Table:
    """At most about `MOST_CELLS` cells with their features, in no particular order.

    Which cells depends on the patches and the seed, not on how many workers there are.
    """
    share = min(1.0, MOST_CELLS / (workspace.patches * features.cells_per_patch))
    schema = cells_schema(width(student, features))
    if workspace.patches <= PATCHES_A_WORKER and not workers.gpus:
        sampler = CellSampler(student.cpu(), features, share)
        held = workspace.share(COLUMNS, 0, 1)
        starts = range(0, workspace.patches, PATCHES_A_BATCH)
        parts = [sampler({name: held[name][i : i + PATCHES_A_BATCH] for name in COLUMNS}) for i in starts]
    else:
        parts = _gather(student, features, workspace, workers, share)
    return pa.concat_tables([as_schema(part, schema) for part in parts]).combine_chunks()


def _gather(
    student: Student, features: FeatureConfig, workspace: Workspace, workers: Workers, share: float
) -> list[pa.Table]:
    """The same by actors that hold the student, while Ray Data brings them the patches."""
    sampled = workspace.read(COLUMNS).map_batches(
        CellSampler,
        fn_constructor_args=(ray.put(student.cpu()), features, share),
        batch_size=PATCHES_A_BATCH,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=min(workers.count, -(-workspace.patches // PATCHES_A_WORKER))),
        num_cpus=cpus_beside_readers(workers),
        num_gpus=workers.gpus,
        label_selector=workers.label_selector,
    )
    # Always the same batches: a convolution's last bits depend on how many patches it is given at once.
    sampled.context.execution_options.preserve_order = True
    return list(sampled.iter_batches(batch_size=None, batch_format="pyarrow"))


class CellSampler:
    """Holds the student and turns patches into a sample of their cells."""

    def __init__(self, student: Student | ray.ObjectRef, features: FeatureConfig, share: float) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        import_network()
        student = ray.get(student) if isinstance(student, ray.ObjectRef) else student
        self.student = student.to(device).eval()
        # In full precision: they are few, and what the mixture is fitted on.
        self.features, self.share = replace(features, precision="float32"), share

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Cells of the patches that the seed picks from this batch."""
        drawn = np.array(
            [
                self._draw(*corner) < self.share
                for corner in zip(*(batch[k] for k in COLUMNS[:4]), strict=True)
            ]
        )
        return sample_cells(
            self.student, {name: column[drawn] for name, column in batch.items()}, self.features
        )

    def _draw(self, case_id: str, z: int, y: int, x: int) -> float:
        return seed_of(self.features.seed, f"share/{case_id}/{z},{y},{x}") / 2**64


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Ray hands tensor columns back under its own type; the same numbers under ours."""
    columns = []
    for field in schema:
        column = table[field.name].combine_chunks()
        if isinstance(field.type, pa.FixedShapeTensorType) and column.type != field.type:
            column = pa.FixedShapeTensorArray.from_numpy_ndarray(
                np.ascontiguousarray(column.to_numpy_ndarray())
            )
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)
