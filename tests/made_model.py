"""A small cohort of phantoms and a model made of it in this process: what the cluster is compared with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from diffseglung.config import recipe
from diffseglung.features import sample_cells
from diffseglung.mixture import fit_mixture
from diffseglung.model import Model
from diffseglung.phantom import PhantomConfig, write_cohort
from diffseglung.prepare import prepare_case
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.volume import read_volume

SMALL = PhantomConfig(size_vox=(60, 80, 80), spacing_mm=(4.0, 4.0, 4.0))
BROKEN = "broken"


def make_cohort(folder: Path, cases: int = 2) -> Path:
    """A manifest of phantoms and of one file that is no scan; each with truth."""
    rows = write_cohort(folder, cases, seed=1, config=SMALL)
    (folder / "images" / f"{BROKEN}.nii.gz").write_bytes(b"no scan")
    lines = [f"{row['case_id']},{row['image']},{row['truth']}" for row in rows]
    lines.append(f"{BROKEN},images/{BROKEN}.nii.gz,{rows[0]['truth']}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(["case_id,image,truth", *lines]) + "\n")
    return manifest


def make_model(image: Path, folder: Path) -> Path:
    """A model of recipe `smoke` with an untrained student and a mixture fitted on one scan."""
    config = recipe("smoke")
    torch.manual_seed(0)
    student = Student(config.student).eval()
    table = prepare_case("made", read_volume(image, config=config.volume), config)
    batch = {name: to_numpy(table[name]) for name in table.column_names}
    flat = batch["teacher_local"].reshape(-1, batch["teacher_local"].shape[-1])
    standardiser = Standardiser.fit(flat[np.isfinite(flat).all(axis=1)])
    cells = sample_cells(student, batch, config.features)
    mixture = fit_mixture(cells, config.mixture, config.tissue, standardiser)
    return Model(config, student, standardiser, mixture, {"made": "for a test"}).save(folder)


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array, tensors with their shape."""
    array = column.combine_chunks()
    if isinstance(array, pa.FixedShapeTensorArray):
        return array.to_numpy_ndarray().copy()
    return array.to_numpy(zero_copy_only=False)
