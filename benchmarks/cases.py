"""What does one scan cost, in processor time and memory, to prepare and to segment?

The scans of DIFFSEGLUNG_CT that keep their full field of view, or phantoms without it. Each is read, prepared and
segmented with recipe demo by a process of its own with one thread, as a worker of the cluster does it; seconds are
processor time, so that they hold on a busy machine too. The student is untrained and the mixture fitted on its own
scan: neither changes what there is to compute.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from record import record

from diffseglung.config import recipe
from diffseglung.features import sample_cells
from diffseglung.mixture import fit_mixture
from diffseglung.model import Model
from diffseglung.phantom import write_cohort
from diffseglung.prepare import prepare_case
from diffseglung.results import case_result, write_case
from diffseglung.segment import segment
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.volume import read_volume
from diffseglung_ray.processes import use_threads

QUESTION = "What does one scan cost, in processor time and memory, to prepare and to segment?"
SCANS = ("dicom/covid-a", "normal-a_full.nii.gz", "tumour-large.nii.gz")
ORIGIN = {"model_uri": "none", "model_version": "none", "config_sha256": "none"}


def scans(folder: Path) -> list[Path]:
    """The real scans, or two phantoms drawn into `folder`."""
    real = os.environ.get("DIFFSEGLUNG_CT")
    if real:
        return [Path(real) / name for name in SCANS]
    return [folder / row["image"] for row in write_cohort(folder, 2, seed=2)]


def one(scan: Path) -> dict[str, Any]:
    """Seconds of processor time for each step of one scan in this process, and its peak of memory at the end."""
    use_threads(1)
    config, marks = recipe("demo"), [time.process_time()]
    volume = read_volume(scan, config=config.volume)
    marks.append(time.process_time())
    table = prepare_case("case", volume, config)
    marks.append(time.process_time())
    prepared_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model = fitted(table)
    began = time.process_time()
    segmentation = segment(volume, model)
    marks.append(marks[-1] + time.process_time() - began)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        write_case(
            Path(out) / "case", volume, segmentation, case_result("case", volume, segmentation, **ORIGIN)
        )
    marks.append(marks[-1] + time.process_time() - began)
    seconds = dict(zip(("read", "prepare", "segment", "write"), np.diff(marks), strict=True))
    shape = "x".join(map(str, volume.hu.shape))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"shape": shape, **seconds, "prepared_mib": prepared_mib, "peak_mib": peak, "patches": len(table)}


def fitted(patches: pa.Table) -> Model:
    """A model of recipe demo with an untrained student, its mixture fitted on these patches."""
    config = recipe("demo")
    torch.manual_seed(0)
    student = Student(config.student).eval()
    batch = {name: as_array(patches[name].combine_chunks()) for name in patches.column_names}
    described = batch["teacher_local"].reshape(-1, batch["teacher_local"].shape[-1])
    standardiser = Standardiser.fit(described[np.isfinite(described).all(axis=1)])
    cells = sample_cells(student, batch, config.features)
    mixture = fit_mixture(cells, config.mixture, config.tissue, standardiser)
    return Model(config, student, standardiser, mixture, {"made": "for a benchmark"})


def as_array(column: pa.Array) -> np.ndarray:
    """A column as an array, tensors with their shape."""
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray().copy()
    return column.to_numpy(zero_copy_only=False)


def table(rows: list[dict[str, Any]]) -> str:
    """A line a scan, and the two sums that sizing needs."""
    steps = ("read", "prepare", "segment", "write")
    head = ("scan z y x", *(f"{step}, s" for step in steps), "job prepare, s", "MiB", "job segment, s", "MiB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        prepared, segmented = row["read"] + row["prepare"], row["read"] + row["segment"] + row["write"]
        each = [f"{row[step]:.1f}" for step in steps]
        jobs = [f"{prepared:.1f}", f"{row['prepared_mib']:.0f}", f"{segmented:.1f}", f"{row['peak_mib']:.0f}"]
        lines.append(f"| {' | '.join([row['shape'], *each, *jobs])} |")
    note = (
        "Processor time of one thread; recipe demo. MiB: the process at its peak, up to the end of that job."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    """Measure each scan in a process of its own, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for scan in scans(Path(folder)):
            command = [sys.executable, __file__, "--one", str(scan)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    record(QUESTION, table(rows))


if __name__ == "__main__":
    main()
