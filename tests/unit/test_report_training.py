from pathlib import Path

import numpy as np
from PIL import Image

from diffseglung.labels import TISSUE_RGB, Tissue
from diffseglung.mixture import CellTable
from diffseglung.model import Model
from diffseglung.report.training import called, draw_clusters, draw_samples
from diffseglung.tissue import EVIDENCE, PROTOTYPES, Reference


def cells_of(tissues: list[Tissue], model: Model, each: int = 200) -> CellTable:
    """Cells that look like the prototypes of some tissues."""
    rng = np.random.default_rng(0)
    evidence = np.zeros((each * len(tissues), len(EVIDENCE)), np.float32)
    for i, tissue in enumerate(tissues):
        one = PROTOTYPES[tissue]
        rows = evidence[i * each : (i + 1) * each]
        hu = np.array(one.hu) + one.counted.shift_hu(np.array(-850.0))
        rows[:, :5] = hu + rng.normal(0, 5, (each, 1))
        rows[:, 5], rows[:, 6] = one.mesh, 1
    n, width = len(evidence), len(model.mixture.arrays["features.mean"])
    descriptors = model.standardiser.center + model.standardiser.scale * rng.normal(size=(n, 34))
    return CellTable(
        evidence,
        descriptors.astype(np.float32),
        rng.normal(size=(n, width)).astype(np.float32),
        Reference(-850.0, 0.0),
    )


def pixels_of(path: Path, tissue: Tissue) -> int:
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(rgb - TISSUE_RGB[tissue]).max(axis=-1) < 12).sum())


def test_clusters_are_drawn_in_the_colours_of_what_they_are_called(model: Model, tmp_path: Path) -> None:
    with_it = cells_of([Tissue.HEALTHY, Tissue.EMPHYSEMA], model)
    without = cells_of([Tissue.HEALTHY], model)
    assert (called(model.mixture, with_it, "rule") == Tissue.EMPHYSEMA).sum() == 200
    draw_clusters(tmp_path / "with.png", with_it, model.mixture)
    draw_clusters(tmp_path / "without.png", without, model.mixture)
    legend_alone = pixels_of(tmp_path / "without.png", Tissue.EMPHYSEMA)
    assert pixels_of(tmp_path / "with.png", Tissue.EMPHYSEMA) > 2 * legend_alone


def test_what_is_drawn_stands_below_what_is_real(tmp_path: Path) -> None:
    black, white = np.full((3, 4, 8, 8), -1350), np.full((3, 4, 8, 8), 150)
    draw_samples(tmp_path / "samples.png", black, white)
    grey = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    upper, lower = grey[: len(grey) // 2], grey[len(grey) // 2 :]
    assert (upper == 0).mean() > 0.6
    assert (lower == 255).mean() > 0.9
