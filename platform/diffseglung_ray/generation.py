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
COLUMNS = ("case_id", "hu", "lungs")

Patches = dict[str, np.ndarray]  # case_id (n,), hu int16 and lungs uint8 (n, z, y, x)


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
    with tempfile.TemporaryDirectory() as folder:
        trained = Model.load(fetch_model(model, Path(folder)).path)
    config = configure(trained.config)
    real = _prepared(workspace, config) if workspace else _phantoms(count, seed, config.method)
    store = Store.at(out)
    store.check("out")
    first, second = _halves(real)
    drawn = np.random.default_rng(seed).integers(len(first["hu"]), size=count)
    lungs = first["lungs"][drawn] > 0
    samples = generate(trained, count, seed, lungs=lungs)
    for i, sample in enumerate(samples):
        _write_sample(store, f"samples/sample-{i:04d}.nii.gz", sample, trained.config)
    measured: dict[str, Any] = fidelity(
        samples,
        first["hu"],
        second["hu"] if second else None,
        generated_lungs=lungs,
        real_lungs=first["lungs"],
        real_b_lungs=second["lungs"] if second else None,
        config=trained.config.teacher,
    )
    measured |= {
        "count": count,
        "seed": seed,
        "model": model,
        "model_sha256": trained.sha256,
        "compared_with": f"{len(real['hu'])} patches of {workspace or 'digital phantoms'}",
    }
    store.write("fidelity.json", json.dumps(measured, indent=1) + "\n")
    return measured


def _halves(real: Patches) -> tuple[Patches, Patches | None]:
    """Every other case on either side, so that real is measured against real; None where there is but one case."""
    cases = sorted(set(real["case_id"]))
    left = np.isin(real["case_id"], cases[::2])
    first, second = ({name: column[side] for name, column in real.items()} for side in (left, ~left))
    return first, second if len(cases) > 1 else None


def _prepared(workspace: str, config: RunConfig) -> Patches:
    """Some patches of a workspace."""
    prepared = open_workspace(workspace, config.method)
    with ray_cluster(config.resources):
        rows = prepared.read(COLUMNS)
        if prepared.patches > MOST_REAL:
            rows = rows.random_sample(MOST_REAL / prepared.patches, seed=0)
        parts = list(rows.iter_batches(batch_size=None, batch_format="numpy"))
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def _phantoms(count: int, seed: int, config: Config) -> Patches:
    """Patches of digital chests, at least two, that together have about twice `count`."""
    parts = []
    for i in range(max(2, -(-2 * count // config.patches.per_case))):
        phantom = make_phantom(seed + i)
        table = prepare_case(f"phantom-{i}", Volume.from_array(phantom.hu, phantom.spacing_mm), config)
        tensors = {name: table[name].combine_chunks().to_numpy_ndarray() for name in ("hu", "lungs")}
        parts.append({"case_id": np.array(table["case_id"].to_pylist()), **tensors})
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def _write_sample(store: Store, name: str, hu: np.ndarray, config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.nii.gz"
        write_volume(path, Volume.from_array(hu, config.patches.spacing_mm))
        store.write(name, path.read_bytes())
