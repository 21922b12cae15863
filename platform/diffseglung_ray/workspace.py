"""What `jobs/prepare.py` left in a workspace, as training, fitting and tuning read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import ray
import ray.data

from diffseglung.config import Config
from diffseglung.schemas import patches_schema
from diffseglung.teacher import Standardiser
from diffseglung_ray.cluster import Workers
from diffseglung_ray.config import WrongArgument
from diffseglung_ray.storage import Store

TEACHER_PATCHES = 2048  # whose descriptors the standardiser is fitted on, at most
SAMPLED_FILES = 512  # cases that a sample is drawn from, at most


@dataclass(frozen=True, slots=True)
class Workspace:
    """A prepared workspace: where it is, its `manifest.json`, and how many patches it holds."""

    store: Store
    manifest: bytes
    patches: int

    def read(self, columns: Sequence[str], seed: int | None = None) -> ray.data.Dataset:
        """The patches as a stream of rows of `patches_schema`; the files in an order drawn from `seed`."""
        shuffle = None if seed is None else ray.data.FileShuffleConfig(seed, reseed_after_execution=False)
        rows = ray.data.read_parquet(self.store.path("patches"), shuffle=shuffle)
        return rows.select_columns(list(columns))

    def share(self, columns: Sequence[str], rank: int, world: int) -> dict[str, np.ndarray]:
        """Every `world`-th patch from the `rank`-th, equally many for each rank, read by this process."""
        rows = np.arange(rank, self.patches - self.patches % world, world)
        return _take(_patches(self.store), rows, columns)

    def sample(self, columns: Sequence[str], most: int, seed: int) -> dict[str, np.ndarray]:
        """At most `most` patches of at most `SAMPLED_FILES` cases, read by this process."""
        rng, patches = np.random.default_rng(seed), _patches(self.store)
        drawn = sorted(rng.permutation(len(patches.files))[:SAMPLED_FILES])
        parts = list(patches.get_fragments())
        some = _dataset(patches, [parts[i] for i in drawn])
        return _take(some, np.sort(rng.permutation(some.count_rows())[:most]), columns)


def open_workspace(place: str, config: Config) -> Workspace:
    """A workspace whose patches fit this config. Needs no Ray. Errors: WrongArgument, saying what does not fit."""
    store = Store.at(place)
    manifest = store.read("manifest.json")
    if manifest is None:
        raise WrongArgument(
            f"{store.root} holds no prepared patches: run jobs/prepare.py with --workspace {place} first"
        )
    patches = _patches(store)
    count = patches.count_rows()
    if not count:
        raise WrongArgument(
            f"{store.root} is prepared, but no case gave a patch: see the reasons in its cases.parquet"
        )
    _check_schema(store.root, patches.schema, config)
    return Workspace(store, manifest, count)


def fit_standardiser(workspace: Workspace, config: Config) -> Standardiser:
    """Median and spread of the descriptors that training will see, from a bounded sample of patches."""
    column = "teacher" if config.train.variant == "global" else "teacher_local"
    return Standardiser.fit(workspace.sample([column], TEACHER_PATCHES, config.train.seed)[column])


def cpus_beside_readers(workers: Workers) -> float:
    """CPUs that each worker reserves while it is fed from a workspace.

    Where workers would hold all the CPUs there are, the readers of patches could never start and all would wait for
    ever: then each reserves a little less than it uses.
    """
    total = ray.cluster_resources().get("CPU", 1)
    spare = total - workers.count * workers.cpus
    return max(0.1, (total - 1) / workers.count) if 0 <= spare < 1 else workers.cpus


def _check_schema(place: str, found: pa.Schema, config: Config) -> None:
    for field in patches_schema(config.patches, config.student):
        if field.name not in found.names:
            raise WrongArgument(
                f"the patches in {place} lack {field.name}; prepare them again with this version"
            )
        there = found.field(field.name).type
        if isinstance(field.type, pa.FixedShapeTensorType) and tuple(there.shape) != tuple(field.type.shape):
            raise WrongArgument(
                f"the patches in {place} have {field.name} of {tuple(there.shape)}, but these settings ask for "
                f"{tuple(field.type.shape)}: use the recipe they were prepared with, or prepare them again"
            )


def _patches(store: Store) -> pads.FileSystemDataset:
    """The files of patches in the order of their names."""
    filesystem, folder = fsspec.core.url_to_fs(store.path("patches"))
    found = pads.dataset(folder, filesystem=filesystem, format="parquet")
    return _dataset(found, sorted(found.get_fragments(), key=lambda part: part.path))


def _dataset(whole: pads.FileSystemDataset, parts: list[pads.Fragment]) -> pads.FileSystemDataset:
    return pads.FileSystemDataset(parts, whole.schema, whole.format, whole.filesystem)


def _take(patches: pads.FileSystemDataset, rows: np.ndarray, columns: Sequence[str]) -> dict[str, np.ndarray]:
    table = patches.take(rows, columns=list(columns))
    return {name: _to_numpy(table[name].combine_chunks()) for name in columns}


def _to_numpy(column: pa.Array) -> np.ndarray:
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False)
