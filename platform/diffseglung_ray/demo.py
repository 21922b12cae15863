"""The whole road on one machine: phantoms and two public scans, from nothing to scores and a report."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from diffseglung.evaluate import scores_table_markdown
from diffseglung.labels import Tissue
from diffseglung.volume import read_labels, read_volume
from diffseglung_ray.cluster import case_workers, ray_cluster
from diffseglung_ray.config import RunConfig
from diffseglung_ray.evaluation import evaluate_cohort
from diffseglung_ray.phantoms import make_cohort
from diffseglung_ray.preparation import prepare
from diffseglung_ray.public_scans import NotFetched, fetch_public_scans
from diffseglung_ray.segmentation import Configure, about, place_model, segment_cohort, write_report
from diffseglung_ray.storage import Store
from diffseglung_ray.training import train

TRAIN_CASES, TRAIN_SEED = 10, 1
TEST_CASES, TEST_SEED = 4, 2
PUBLIC = ("lung1", "lung2")


def run_demo(out: Path, config: RunConfig, model: str, configure: Configure) -> None:
    """Draw, fetch, prepare, train, segment and score; print the score table and the report's path.

    `model` is the registry address that training points at, `configure` the settings to use it with. What an
    earlier run finished is not done again, except for the training.
    """
    began = time.monotonic()
    with ray_cluster(config.resources):
        with stage("1/6 phantoms: ten to learn from, four to be tested on"):
            make_cohort(out / "train", TRAIN_CASES, TRAIN_SEED)
            tests = make_cohort(out / "test", TEST_CASES, TEST_SEED)
        with stage("2/6 two real scans from the source distribution of pyradiomics"):
            public = _public(out / "public")
        with stage("3/6 patches and what the radiomic teacher says of them"):
            prepare(str(out / "train" / "manifest.csv"), str(out / "work"), config)
        with stage("4/6 distillation, mixture, registry"):
            train(config, str(out / "work"))
        with stage("5/6 segmentation of phantoms and real scans"):
            cohort = _write_cohort(out, [row["case_id"] for row in tests], public)
            segment_cohort(str(cohort), model, str(out / "segmented"), configure)
        with stage("6/6 scores beside the label-free baselines"):
            evaluate_cohort(
                str(out / "test" / "manifest.csv"), str(out / "scores"), [model], configure, config.resources
            )
        workers = case_workers(config.resources)
    rows, scores = (
        pq.read_table(out / name).to_pylist()
        for name in ("segmented/results.parquet", "scores/scores.parquet")
    )
    placed, _ = place_model(model, configure)
    write_report(Store.at(str(out / "segmented")), rows, about(placed, str(cohort), workers), scores)
    print(f"\n{scores_table_markdown(scores)}")
    for line in _tumours(out, public):
        print(line)
    print(f"\n{time.monotonic() - began:.0f} s in all. Open {out / 'segmented' / 'report.html'}")


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    print(f"== {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"   {time.monotonic() - began:.0f} s", flush=True)


def _public(folder: Path) -> list[str]:
    try:
        fetch_public_scans(folder)
    except NotFetched as error:
        print(f"   {error} The demo goes on with the phantoms.")
        return []
    return list(PUBLIC)


def _write_cohort(out: Path, tests: list[str], public: list[str]) -> Path:
    """A manifest of the test phantoms and the public scans; truth is not in it."""
    rows = [(case, f"test/images/{case}.nii.gz") for case in tests]
    rows += [(case, f"public/{case}.nrrd") for case in public]
    path = out / "cohort.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("case_id", "image"), *rows])
    return path


def _tumours(out: Path, public: list[str]) -> Iterator[str]:
    """How much of each outlined tumour was called disease: the real scans have no other truth."""
    for case in public:
        result = json.loads((out / "segmented" / "cases" / case / "result.json").read_text())
        volume = read_volume(out / "public" / f"{case}.nrrd")
        tumour = read_labels(out / "public" / f"{case}_tumour.nrrd", volume) > 0
        labels = read_labels(out / "segmented" / "cases" / case / "segmentation.nii.gz", volume)[tumour]
        yield (
            f"{case}: {100 * np.mean(labels > Tissue.HEALTHY):.0f} % of its tumour "
            f"({tumour.sum() * volume.grid.voxel_ml:.1f} ml) called disease, "
            f"{100 * np.mean(labels == Tissue.CONSOLIDATION):.0f} % consolidation; "
            f"lungs {result['lung_ml']:.0f} ml"
        )
