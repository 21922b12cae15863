"""New CT patches from a trained model, and how close they come to real ones."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffseglung.config import Config
from diffseglung.generate import fidelity, generate
from diffseglung.model import Model
from diffseglung.phantom import make_phantom
from diffseglung.prepare import prepare_case
from diffseglung.volume import Volume, write_volume
from diffseglung_ray.cluster import ray_cluster, refuse_fleeting
from diffseglung_ray.config import RunConfig, WrongArgument
from diffseglung_ray.storage import Store
from diffseglung_ray.tracking import fetch_model
from diffseglung_ray.workspace import open_workspace

MOST_REAL = 512  # patches to compare with


def generate_samples(
    model: str,
    out: str,
    configure: Callable[[Config], RunConfig],
    count: int,
    seed: int = 0,
    workspace: str | None = None,
) -> dict[str, Any]:
    """Draw `count` patches into `out/samples`, measure them into `out/fidelity.json`, and return what was measured.

    The patches to compare with, and the lung masks to draw for, come from the prepared `workspace`, or from digital
    phantoms without one. `configure(config)` gives the RunConfig to use the model with. Errors: UserError, in words.
    """
    refuse_fleeting(
        tracking=model.startswith(("models:/", "runs:/")), model=model, out=out, workspace=workspace
    )
    if count < 1:
        raise WrongArgument(f"--count {count} must be at least 1")
    store = Store.at(out)
    store.check("out")
    with tempfile.TemporaryDirectory() as folder:
        trained = Model.load(fetch_model(model, Path(folder)).path)
    config = configure(trained.config)
    hu, lungs = _prepared(workspace, config) if workspace else _phantoms(count, seed, config.method)
    drawn = np.random.default_rng(seed).integers(len(hu), size=count)
    samples = generate(trained, count, seed, lungs=lungs[drawn])
    for i, sample in enumerate(samples):
        _write_sample(store, f"samples/sample-{i:04d}.nii.gz", sample, trained.config)
    measured = {
        **fidelity(samples, hu),
        "count": count,
        "seed": seed,
        "model": model,
        "model_sha256": trained.sha256,
        "compared_with": f"{len(hu)} patches of {workspace or 'digital phantoms'}",
    }
    store.write("fidelity.json", json.dumps(measured, indent=1) + "\n")
    return measured


def _prepared(workspace: str, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """CT (n, z, y, x) int16 and lung masks of some prepared patches."""
    prepared = open_workspace(workspace, config.method)
    with ray_cluster(config.resources):
        rows = prepared.read(("hu", "lungs"), seed=0).limit(MOST_REAL)
        parts = list(rows.iter_batches(batch_size=None, batch_format="numpy"))
    return tuple(np.concatenate([part[name] for part in parts]) for name in ("hu", "lungs"))


def _phantoms(count: int, seed: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """CT (n, z, y, x) int16 and lung masks of patches of as many digital chests as `count` asks for, at least two."""
    tables = []
    for i in range(max(2, -(-count // config.patches.per_case))):
        phantom = make_phantom(seed + i)
        tables.append(prepare_case(f"phantom-{i}", Volume.from_array(phantom.hu, phantom.spacing_mm), config))
    return tuple(
        np.concatenate([table[name].combine_chunks().to_numpy_ndarray() for table in tables])
        for name in ("hu", "lungs")
    )


def _write_sample(store: Store, name: str, hu: np.ndarray, config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.nii.gz"
        write_volume(path, Volume.from_array(hu, config.patches.spacing_mm))
        store.write(name, path.read_bytes())
