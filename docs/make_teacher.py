"""Makes the pictures of docs/teacher.md, and the table of descriptors in it: `python docs/make_teacher.py`.

The patches are cut from digital phantoms, the cohort is the two public CTs that the demo fetches.
"""

import re
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.signal import fftconvolve
from sklearn.decomposition import PCA

from diffseglung.anatomy import find_anatomy
from diffseglung.cells import core
from diffseglung.config import recipe
from diffseglung.labels import Tissue
from diffseglung.patches import cut, to_scan, window_mean
from diffseglung.phantom import make_phantom
from diffseglung.teacher import TEACHER, Standardiser, describe_patches, describe_windows, kernels, reference
from diffseglung.teacher.names import GABOR_FREQUENCIES
from diffseglung.volume import read_volume
from diffseglung_ray.public_scans import fetch_public_scans

HERE = Path(__file__).resolve().parent
CONFIG = recipe("demo")
SIZE = (8, 40, 40)
TISSUES = (
    Tissue.HEALTHY,
    Tissue.EMPHYSEMA,
    Tissue.GROUND_GLASS,
    Tissue.FIBROSIS,
    Tissue.CONSOLIDATION,
)
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def table() -> str:
    """TEACHER as Markdown."""
    rows = [
        f"| {i} | `{row.name}` | {row.unit} | {row.formula} | {row.source} |" for i, row in enumerate(TEACHER)
    ]
    return "\n".join(["| column | name | unit | formula | source |", "|---|---|---|---|---|", *rows]) + "\n"


def find_patches() -> dict[Tissue, tuple[np.ndarray, np.ndarray]]:
    """HU and lungs of the patch that is fullest of each tissue, of one phantom a disease."""
    found = {}
    for tissue in TISSUES:
        healthy = tissue is Tissue.HEALTHY
        phantom = make_phantom(4, healthy=healthy, kinds=None if healthy else (tissue,))
        lungs = phantom.truth > 0
        share = window_mean((phantom.truth == tissue) & ~phantom.vessels, SIZE)
        z, y, x = (int(i) for i in np.unravel_index(share.argmax(), share.shape))
        found[tissue] = cut(phantom.hu, (z, y, x), SIZE), cut(lungs, (z, y, x), SIZE)
    return found


def co_occurrence(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Share of neighbours at each pair of grey levels, all directions, symmetric."""
    grey = (
        hu.clip(*CONFIG.teacher.clip_hu) - CONFIG.teacher.bin_origin_hu
    ) // CONFIG.teacher.bin_width_hu + 1
    codes = np.pad(np.where(lungs, grey, 0) * 16, 1).astype(np.uint16)
    levels = CONFIG.teacher.grey_levels + 1
    pairs = np.zeros(levels * levels * 16, np.uint32)
    kernels.co_occurrences(codes, levels, pairs)
    joint = pairs.reshape(levels, levels, 16)[1:, 1:].sum(axis=2, dtype=float)
    return (joint + joint.T) / (2 * joint.sum())


def patterns(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """The pattern of every voxel of the middle axial slice, NaN where it has none."""
    found = np.full(hu.shape, kernels.NO_PATTERN, np.uint8)
    middle = len(hu) // 2
    bounded = hu.clip(*CONFIG.teacher.clip_hu).astype(np.int16, order="C")
    kernels.plane_patterns(bounded, np.ascontiguousarray(lungs), 0, middle, middle + 1, found)
    return np.where(found[middle] == kernels.NO_PATTERN, np.nan, found[middle])


def waves(hu: np.ndarray, lungs: np.ndarray, frequency: int) -> np.ndarray:
    """|Gabor response| at one frequency, mean of four angles, of the middle axial slice, NaN outside the lung."""
    plane, inside = (array[len(hu) // 2] for array in (hu.astype(float), lungs))
    filled = np.pad(np.where(inside, plane, plane[inside].mean()), reference.REACH, mode="reflect")
    bank = reference.gabor_kernels()[4 * frequency : 4 * frequency + 4]
    mean = np.mean([np.abs(fftconvolve(filled, kernel, "valid")) for kernel in bank], axis=0)
    return np.where(inside, mean, np.nan)


def draw_patches(path: Path) -> None:
    """One row a tissue: the patch, and what each family of descriptors makes of it."""
    titles = ("CT", "HU", "co-occurrence", "patterns", "waves of 10 vox", "waves of 2.5 vox")
    figure, axes = plt.subplots(len(TISSUES), len(titles), figsize=(11, 9.4), layout="constrained")
    for row, (tissue, (hu, lungs)) in zip(axes, find_patches().items(), strict=True):
        numbers = dict(zip(TEACHER.names, describe_patches(hu[None], lungs[None])[0], strict=True))
        said = (
            tissue.name.lower().replace("_", " "),
            f"mean {numbers['hu_mean']:.0f}, sd {numbers['hu_sd']:.0f} HU",
            f"dissimilarity {numbers['glcm_dissimilarity']:.1f} bins",
            f"not uniform {100 * numbers['lbp_9']:.0f} %",
            *(
                f"0 deg: {numbers[f'gabor_{f:.2f}_0']:.0f} HU"
                for f in (GABOR_FREQUENCIES[0], GABOR_FREQUENCIES[2])
            ),
        )
        row[0].imshow(hu[len(hu) // 2], cmap="gray", vmin=-1000, vmax=200)
        row[1].hist(
            hu[lungs].clip(*CONFIG.teacher.clip_hu), bins=50, range=CONFIG.teacher.clip_hu, color="0.3"
        )
        row[1].set_xticks([-1000, -500, 0])
        row[2].imshow(
            np.log10(co_occurrence(hu, lungs) + 1e-6), cmap="magma", origin="lower", vmin=-6, vmax=-1
        )
        row[3].imshow(patterns(hu, lungs), cmap="tab10", vmin=0, vmax=9)
        for panel, frequency in zip(row[4:], (0, 2), strict=True):
            panel.imshow(waves(hu, lungs, frequency), cmap="viridis", vmin=0, vmax=15 if frequency else 120)
        for panel, words in zip(row, said, strict=True):
            panel.set_xlabel(words, fontsize=8)
            panel.set_yticks([])
            panel.tick_params(labelsize=7)
            if panel is not row[1]:
                panel.set_xticks([])
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=9)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def draw_embedding(path: Path) -> str:
    """The teacher space of two public CTs: windows of 32 mm on their first principal components. Returns a caption."""
    folder = fetch_public_scans(Path(tempfile.mkdtemp()))
    rows, scans = [], []
    for number, name in enumerate(("lung1", "lung2")):
        volume = read_volume(folder / f"{name}.nrrd", config=CONFIG.volume)
        scan = to_scan(
            volume, find_anatomy(volume, CONFIG.anatomy), CONFIG.patches, CONFIG.student.stride_vox
        )
        windows = describe_windows(
            scan.hu,
            core(scan.lungs, CONFIG.patches),
            CONFIG.teacher,
            size_vox=(16, 16, 16),
            step_vox=(8, 8, 8),
        ).reshape(-1, len(TEACHER))
        windows = windows[np.isfinite(windows).all(axis=1)]
        rows.append(windows)
        scans += [number] * len(windows)
    descriptors, scan_of = np.concatenate(rows), np.array(scans)
    model = PCA(2).fit(scaled := Standardiser.fit(descriptors).apply(descriptors))
    place = model.transform(scaled)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharex=True, sharey=True)
    mean_hu = descriptors[:, TEACHER.names.index("hu_mean")]
    order = np.random.default_rng(0).permutation(len(place))
    dots = panels[0].scatter(*place[order].T, c=mean_hu[order], s=3, cmap="turbo", vmin=-950, vmax=-500)
    figure.colorbar(dots, ax=panels[0], label="mean HU of the window", extend="both")
    for number, name in enumerate(("lung1", "lung2")):
        panels[1].scatter(*place[scan_of == number].T, s=3, label=name, alpha=0.5)
    panels[1].legend(markerscale=4)
    for panel in panels:
        panel.set_xlabel(f"first component, {100 * model.explained_variance_ratio_[0]:.0f} % of the variance")
    panels[0].set_ylabel(f"second, {100 * model.explained_variance_ratio_[1]:.0f} %")
    figure.savefig(path, dpi=75)
    plt.close(figure)
    along = [np.corrcoef(mean_hu, place[:, i])[0, 1] for i in range(2)]
    return (
        f"{len(place)} windows; correlation of mean HU with the components {along[0]:.2f} and {along[1]:.2f}"
    )


def main() -> None:
    """Draw both pictures and put the table in its place."""
    page = HERE / "teacher.md"
    page.write_text(TABLE.sub(lambda _: table(), page.read_text()))
    (HERE / "teacher").mkdir(exist_ok=True)
    draw_patches(HERE / "teacher" / "patches.png")
    print(draw_embedding(HERE / "teacher" / "embedding.png"))


if __name__ == "__main__":
    main()
