"""New CT patches from a trained model, and how close they come to real ones."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffseglung.config import Config
from diffseglung.fidelity import Patches, fidelity, fidelity_table, load_network, reconstruction
from diffseglung.generate import SAMPLER, SAMPLERS, generate
from diffseglung.model import Model
from diffseglung.phantom import make_phantom
from diffseglung.prepare import prepare_case
from diffseglung.volume import Volume, write_volume
from diffseglung_ray.cluster import ray_cluster, refuse_fleeting
from diffseglung_ray.config import RunConfig, UserError, WrongArgument
from diffseglung_ray.storage import Store
from diffseglung_ray.tracking import fetch_model
from diffseglung_ray.workspace import open_workspace

MOST_REAL = 512  # patches to compare with
MOST_RECONSTRUCTED = 32
COLUMNS = ("case_id", "hu", "lungs")

Columns = dict[str, np.ndarray]  # case_id (n,), hu int16 and lungs uint8 (n, z, y, x)


def generate_samples(
    model: str,
    out: str,
    configure: Callable[[Config], RunConfig],
    count: int,
    seed: int = 0,
    workspace: str | None = None,
    *,
    sampler: str = SAMPLER,
    steps: int | None = None,
    network: str | None = None,
) -> dict[str, Any]:
    """Draw `count` patches into `out/samples`, measure them into `out/fidelity.json` and `.md`, return the measures.

    The patches to compare with, and the lung masks to draw for, come from the prepared `workspace`, or from digital
    phantoms without one. `network` is a TorchScript file whose features FID is taken of. `configure(config)` gives
    the RunConfig to use the model with. Errors: UserError, in words.
    """
    refuse_fleeting(
        tracking=model.startswith(("models:/", "runs:/")), model=model, out=out, workspace=workspace
    )
    if count < 1:
        raise WrongArgument(f"--count {count} must be at least 1")
    if sampler not in SAMPLERS:
        raise WrongArgument(f"--sampler {sampler} is none of: {', '.join(SAMPLERS)}")
    with _refused(), tempfile.TemporaryDirectory() as folder:
        embed = load_network(Path(network)) if network else None
        trained = Model.load(fetch_model(model, Path(folder)).path)
    config = configure(trained.config)
    real = _prepared(workspace, config) if workspace else _phantoms(count, seed, config.method)
    store = Store.at(out)
    store.check("out")
    first, second = _halves(real)
    lungs = first.lungs[np.random.default_rng(seed).integers(len(first.lungs), size=count)] > 0
    with _refused():
        samples = generate(trained, count, seed, lungs, steps, sampler)
        for i, drawn in enumerate(samples):
            _write_sample(store, f"samples/sample-{i:04d}.nii.gz", drawn, trained.config)
        measured: dict[str, Any] = fidelity(
            Patches(samples, lungs), first, second, config=trained.config.teacher, embed=embed
        )
    some = Patches(first.hu[:MOST_RECONSTRUCTED], first.lungs[:MOST_RECONSTRUCTED])
    measured |= reconstruction(trained.student, some, seed, sampler=sampler)
    table = fidelity_table(measured)
    measured |= {
        "count": count,
        "seed": seed,
        "sampler": sampler,
        "steps": steps,
        "network": network,
        "model": model,
        "model_sha256": trained.sha256,
        "compared_with": f"{len(real['hu'])} patches of {workspace or 'digital phantoms'}",
    }
    store.write("fidelity.json", json.dumps(measured, indent=1) + "\n")
    made = f"{count} patches by {sampler} of {model}, beside {measured['compared_with']}."
    store.write("fidelity.md", f"# Fidelity\n\n{made}\n\n{table}")
    return measured


@contextmanager
def _refused() -> Iterator[None]:
    """What the method refuses in words is an argument's fault here."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise WrongArgument(str(error)) from error


def _halves(real: Columns) -> tuple[Patches, Patches | None]:
    """Every other case on either side, so that real is measured against real; None where there is but one case."""
    cases = sorted(set(real["case_id"]))
    left = np.isin(real["case_id"], cases[::2])
    first, second = (Patches(real["hu"][side], real["lungs"][side]) for side in (left, ~left))
    return first, second if len(cases) > 1 else None


def _prepared(workspace: str, config: RunConfig) -> Columns:
    """Some patches of a workspace."""
    prepared = open_workspace(workspace, config.method)
    with ray_cluster(config.resources):
        rows = prepared.read(COLUMNS)
        if prepared.patches > MOST_REAL:
            rows = rows.random_sample(MOST_REAL / prepared.patches, seed=0)
        parts = list(rows.iter_batches(batch_size=None, batch_format="numpy"))
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def _phantoms(count: int, seed: int, config: Config) -> Columns:
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
