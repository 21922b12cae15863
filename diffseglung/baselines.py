"""The plain ways to beat, scored beside ours in the same run. None has seen a label, none has a network.

Every baseline is `f(hu, lungs, airways, spacing_mm) -> labels`: density in HU (int16) and masks in (z, y, x) on
one canonical grid, spacing in mm; labels are uint8 tissues, 0 outside the lungs. Work is done in the lung box.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from diffseglung.cavity import CavityConfig, find_cavities
from diffseglung.cells import describe_cells
from diffseglung.grid import largest_of, resample_labels, respace, respaced_grid
from diffseglung.labels import TISSUES, Tissue
from diffseglung.patches import PatchConfig
from diffseglung.refine import RefineConfig, lung_box, sobel_diffusion, temper
from diffseglung.segment import to_voxels
from diffseglung.teacher import TEACHER, Standardiser, TeacherConfig, describe_windows
from diffseglung.tissue import (
    ANCHORED,
    TissueConfig,
    anchor_log_likelihood,
    name_by_hu,
    prior,
    scan_reference,
    to_tissues,
    voxel_densities,
)
from diffseglung.volume import Volume

Spacing = tuple[float, float, float]
Baseline = Callable[[np.ndarray, np.ndarray, np.ndarray, Spacing], np.ndarray]

# Upper bounds of each tissue in HU, from light to heavy: the published recipe's bands (`tissue.HU_BANDS`), with
# emphysema at LAA-950 (Gevenois 1996), where single voxels rather than the means of clusters are judged.
UPPER_HU: dict[Tissue, float] = {
    Tissue.EMPHYSEMA: -950,
    Tissue.HEALTHY: -750,
    Tissue.GROUND_GLASS: -500,
    Tissue.FIBROSIS: -200,
    Tissue.CONSOLIDATION: math.inf,
}
COMPONENTS = 5  # the published recipe's K
SAMPLE_VOX = 40_000
GROUND_GLASS_HU = -720
MEDIAN_MM = 10.0
WINDOW_MM, STEP_MM = 24.0, 8.0
# The rule's, as METHOD.md tried them, on the grid, cells and windows of the recipe.
RULE_TISSUE = TissueConfig(temperature=2.5)
RULE_REFINE = RefineConfig(edge_hu=60, flow_time=16.8)
RULE_PATCHES = PatchConfig()


def hu_thresholds(hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Each voxel by its own density: emphysema < -950 < healthy < -750 < ground glass < -500 < fibrosis < -200 HU.

    Source: `UPPER_HU`. Smoothing first, by 1 or 2 mm, scored lower on phantoms: it takes emphysema away.
    """
    return _in_lungs(hu, lungs, lambda box: _by_thresholds(hu[box]))


def hu_thresholds_enclosure(
    hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """`hu_thresholds`, and air that tissue above -300 HU encloses is cavity (`cavity.find_cavities`, its defaults)."""
    labels = hu_thresholds(hu, lungs, airways, spacing_mm)
    labels[find_cavities(hu, lungs, airways, spacing_mm, CavityConfig())] = Tissue.CAVITY
    return labels


def hu_mixture(hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Five Gaussians on this scan's density alone, named by the HU bands of `tissue.HU_BANDS`.

    The first baseline to run, always: what a mixture earns without any feature. Fitted on 40,000 voxels at most.
    """

    def mixture(box: tuple[slice, ...]) -> np.ndarray:
        inside = hu[box][np.asarray(lungs[box], dtype=bool)]
        sample = _sample(inside)[:, None].astype(np.float64)
        fitted = GaussianMixture(min(COMPONENTS, len(np.unique(sample))), random_state=0, reg_covar=25.0)
        names = np.array(name_by_hu(fitted.fit(sample).means_[:, 0]), np.uint8)
        # Density is one whole number: each value is judged once, and every voxel looks its own up.
        low, high = int(inside.min()), int(inside.max())
        table = names[fitted.predict(np.arange(low, high + 1.0)[:, None])]
        return table[np.clip(hu[box].astype(np.int32), low, high) - low]

    return _in_lungs(hu, lungs, mixture)


def radiomic_kmeans(
    hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """K-means, K = 5, on the teacher's descriptors of 24 mm windows every 8 mm, named by their mean HU.

    The paper's weakest row ("K-means on radiomics"): the descriptors without the network, scan by scan. Names by
    the HU bands of `tissue.HU_BANDS`; a place too small to describe takes its nearest neighbour's tissue.
    """

    def kmeans(box: tuple[slice, ...]) -> np.ndarray:
        inside = np.asarray(lungs[box], dtype=bool)
        step = tuple(max(1, round(STEP_MM / mm)) for mm in spacing_mm)
        size = tuple(max(s, round(WINDOW_MM / mm)) for s, mm in zip(step, spacing_mm, strict=True))
        windows = describe_windows(
            hu[box], inside, size_vox=(size[0], size[1], size[2]), step_vox=(step[0], step[1], step[2])
        )
        known = np.isfinite(windows).all(axis=-1)
        cells = np.full(known.shape, Tissue.HEALTHY, np.uint8)
        if known.sum() > COMPONENTS:
            cells[known] = _clustered(windows[known])
            nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
            cells = cells[tuple(nearest)]
        for axis, (repeats, length) in enumerate(zip(step, inside.shape, strict=True)):
            cells = np.repeat(cells, repeats, axis=axis).take(range(length), axis=axis)
        return cells

    return _in_lungs(hu, lungs, kmeans)


def median_ground_glass(
    hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """Ground glass is where the median over 10 mm (5x5x5 voxels of 2 mm) exceeds -720 HU; the rest is healthy.

    One line, and the one to beat on real scans with infection. Only lung voxels have a say: with the chest wall in
    the window, the rim of a healthy lung is called ground glass (12% of one, against 3%).
    """
    size = tuple(2 * round((MEDIAN_MM / mm - 1) / 2) + 1 for mm in spacing_mm)

    def median(box: tuple[slice, ...]) -> np.ndarray:
        # The median exceeds a value exactly where more than half of the window does, and counting is separable.
        inside = np.asarray(lungs[box], dtype=np.float32)
        dense = inside * (hu[box] > GROUND_GLASS_HU)
        dense, inside = (ndimage.uniform_filter(m, size, mode="constant") for m in (dense, inside))
        return np.where(dense > (0.5 + 1e-4) * inside, Tissue.GROUND_GLASS, Tissue.HEALTHY)

    return _in_lungs(hu, lungs, median)


def hu_texture_rule(
    hu: np.ndarray, lungs: np.ndarray, airways: np.ndarray, spacing_mm: Spacing
) -> np.ndarray:
    """What lung looks most like, in HU and texture, within 8 mm of each place; then enclosure and fusion with the CT.

    METHOD.md's "HU-and-texture rule": it knows no neighbours, vessels or airway walls and learns nothing. Of what was
    tried the strongest: the five tissues of `tissue.PROTOTYPES` with their priors, so that ours differs by all else,
    reach .71 on 24 validation phantoms, the trial's own numbers (dissimilarity, windows of 24 mm, each disease as rare)
    .62.
    """
    labels = _in_lungs(hu, lungs, lambda box: _most_like(hu[box], lungs[box], spacing_mm))
    labels[find_cavities(hu, lungs, airways, spacing_mm, CavityConfig())] = Tissue.CAVITY
    return labels


BASELINES: dict[str, Baseline] = {
    "hu_thresholds": hu_thresholds,
    "hu_thresholds_enclosure": hu_thresholds_enclosure,
    "hu_mixture": hu_mixture,
    "radiomic_kmeans": radiomic_kmeans,
    "median_ground_glass": median_ground_glass,
    "hu_texture_rule": hu_texture_rule,
}


def _in_lungs(
    hu: np.ndarray, lungs: np.ndarray, judge: Callable[[tuple[slice, ...]], np.ndarray]
) -> np.ndarray:
    """Labels (uint8) of the whole grid from a judgement of the lung box."""
    if hu.shape != lungs.shape:
        raise ValueError(f"hu {hu.shape} and lungs {lungs.shape} are not on one grid")
    labels = np.zeros(hu.shape, np.uint8)
    box = lung_box(lungs)
    if box is not None:
        np.copyto(labels[box], judge(box), where=np.asarray(lungs[box], dtype=bool), casting="unsafe")
    return labels


def _by_thresholds(density_hu: np.ndarray) -> np.ndarray:
    names = np.array(list(UPPER_HU), np.uint8)
    return names[np.digitize(density_hu, list(UPPER_HU.values())[:-1])]


def _sample(values: np.ndarray) -> np.ndarray:
    """At most `SAMPLE_VOX` of the values, the same ones every time."""
    if len(values) <= SAMPLE_VOX:
        return values
    return np.random.default_rng(0).choice(values, SAMPLE_VOX, replace=False)


def _clustered(descriptors: np.ndarray) -> np.ndarray:
    """The tissue of each described window (n, 34) by the mean HU of its cluster."""
    scaled = Standardiser.fit(descriptors).apply(descriptors)
    cluster = KMeans(COMPONENTS, n_init=4, random_state=0).fit_predict(scaled)
    mean_hu = descriptors[:, TEACHER.names.index("hu_mean")]
    means = np.array([mean_hu[cluster == k].mean() for k in range(COMPONENTS)])
    return np.array(name_by_hu(means), np.uint8)[cluster]


def _most_like(hu: np.ndarray, lungs: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The tissue of each voxel of a lung box (z, y, x) by the rule, which is asked on a grid of its own."""
    fine_mm = RULE_PATCHES.spacing_mm
    z, y, x = (n * mm for n, mm in zip(RULE_PATCHES.cell_vox, fine_mm, strict=True))
    own = Volume.from_array(hu, spacing_mm).grid
    fine = respaced_grid(respaced_grid(own, (z, y, x)), fine_mm)  # whole cells
    density = np.rint(respace(hu, own, fine)).astype(np.int16)
    inside = resample_labels(lungs, own, fine) > 0
    found = _likeness(density, inside)
    if found is None:
        return np.full(hu.shape, Tissue.HEALTHY, np.uint8)
    posterior, mode_hu = found
    leaned = temper(posterior, density, voxel_densities(mode_hu), RULE_REFINE.hu_power)
    fused = sobel_diffusion(leaned, density, inside, fine_mm, RULE_REFINE)
    names = np.array([Tissue.HEALTHY, *TISSUES], np.uint8)  # healthy where nothing is known
    return largest_of(fused, fine, own, np.asarray(lungs, dtype=bool), names)


def _likeness(hu: np.ndarray, lungs: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Posteriors (6, z, y, x) by the prototypes alone, and the lung's mode in HU; None where no cell is known."""
    cells = describe_cells(hu, lungs, RULE_PATCHES, TeacherConfig())
    if not cells.inside.any():
        return None
    evidence = cells.evidence[cells.inside]
    reference = scan_reference(evidence, RULE_TISSUE)
    likely = anchor_log_likelihood(evidence, reference, RULE_TISSUE) + np.log(prior())
    likely[:, ~np.isin(ANCHORED, TISSUES)] = -np.inf  # it knows no class beyond the tissues
    tissues = to_tissues(softmax(likely, axis=1))
    return to_voxels(cells.laid_out(tissues), lungs, RULE_PATCHES.cell_vox), float(reference.mode_hu)
