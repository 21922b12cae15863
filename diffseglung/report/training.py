"""What a training looks like: patches that the student draws, and how the cells that it sees cluster."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffseglung.labels import TISSUE_RGB, TISSUES, Tissue
from diffseglung.mixture import CellTable, Mixture
from diffseglung.report.pictures import WINDOW_HU, write_whole

CELLS_DRAWN = 4000  # more would only lie on top of each other


def draw_samples(path: Path, real_hu: np.ndarray, sampled_hu: np.ndarray) -> None:
    """Real patches above, below what the student draws for the same lungs: middle slices, PNG.

    Both are HU (n, z, y, x).
    """
    count = len(real_hu)
    figure = Figure(figsize=(1.8 * count, 4), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for row, (name, patches) in enumerate({"real": real_hu, "drawn by the student": sampled_hu}.items()):
        axes[row, 0].set_title(name, loc="left", fontsize=10)
        for axis, patch in zip(axes[row], patches, strict=True):
            axis.imshow(patch[len(patch) // 2], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
            axis.set_axis_off()
    _save(figure, path)


def draw_clusters(path: Path, cells: CellTable, mixture: Mixture) -> None:
    """Cells in the descriptors' and in the student's space, by what they are called, and the HU of each name: PNG.

    The descriptors carry the names of the mixture's own mode, the student's features those of the published five
    clusters. Axes are the first two principal components.
    """
    drawn = np.random.default_rng(0).permutation(len(cells.evidence))[:CELLS_DRAWN]
    known = drawn[np.isfinite(cells.descriptors[drawn]).all(axis=1)]
    cells = cells.rows(np.sort(known))
    own, published = (called(mixture, cells, mode) for mode in (mixture.config.mode, "published"))
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _scatter(left, mixture.descriptor_axes(cells), own, f"descriptors, named by {mixture.config.mode}")
    _scatter(middle, mixture.feature_axes(cells), published, "student's features, published clusters")
    bins = np.arange(-1000, 101, 25)
    for tissue in TISSUES:
        if (own == tissue).any():
            right.hist(
                cells.evidence[own == tissue, 2], bins, histtype="step", color=_colour(tissue), linewidth=1.6
            )
    right.set(yscale="log", xlabel="median of the cell's window, HU", ylabel="cells")
    right.set_title(f"density, named by {mixture.config.mode}", loc="left", fontsize=10)
    handles = [right.plot([], [], "o", color=_colour(t), label=t.title)[0] for t in TISSUES]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(TISSUES), frameon=False)
    _save(figure, path)


def called(mixture: Mixture, cells: CellTable, mode: str) -> np.ndarray:
    """The likeliest tissue (n,) of each cell."""
    return 1 + mixture.posterior(cells, mode).argmax(axis=1)


def _scatter(axis: Axes, at: np.ndarray, names: np.ndarray, title: str) -> None:
    for tissue in TISSUES:
        of = names == tissue
        axis.scatter(at[of, 0], at[of, 1], s=6, color=_colour(tissue), alpha=0.7, linewidths=0)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set(xlabel="component 1", ylabel="component 2")


def _colour(tissue: Tissue) -> tuple[float, float, float]:
    red, green, blue = TISSUE_RGB[tissue]
    return red / 255, green / 255, blue / 255


def _save(figure: Figure, path: Path) -> None:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    write_whole(path, held.getvalue())
