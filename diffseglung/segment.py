"""One scan, the whole story: from a CT to six tissues on its own grid."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from diffseglung.anatomy import Anatomy
from diffseglung.cells import Cells
from diffseglung.features import extract
from diffseglung.grid import crop_grid, largest_of
from diffseglung.labels import TISSUES, Tissue
from diffseglung.look import Observation, Stopwatch, look
from diffseglung.mixture import ANCHORED_MODES, CellTable, couple, entropy, share_names
from diffseglung.model import Model
from diffseglung.patches import Scan, between_cells, regrid
from diffseglung.refine import Voxels, by_density, fuse, lung_box, without_crumbs
from diffseglung.teacher import TEACHER
from diffseglung.tissue import scan_reference, to_tissues
from diffseglung.volume import Volume

GUESS = 0.5  # a posterior of this entropy (share of log 6) spreads over two or three tissues

Progress = Callable[[Iterable], Iterable]
Judge = Callable[[Cells, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Six tissues on the volume's canonical grid.

    `labels` uint8 (z, y, x); `posteriors` float32 (6, z, y, x) and their entropy (share of log 6) lie on the
    lung box of `scan`; `uncertainty` is the mean entropy over the lung, `uncertain_pct` the share of the lung
    where it is above `GUESS`; `teacher_distance` as that function says; `seconds` by stage.
    """

    labels: np.ndarray
    anatomy: Anatomy
    scan: Scan
    posteriors: np.ndarray
    uncertainty: float
    uncertain_pct: float
    teacher_distance: float | None
    mode: str
    seconds: dict[str, float]


def segment(
    volume: Volume, model: Model, lungs: np.ndarray | None = None, *, progress: Progress = iter
) -> Segmentation:
    """Segment one CT. `lungs` is a given mask on its grid, used as it is.

    Raises ValueError, in words, where the scan holds no lung.
    """
    return decide(observe(volume, model, lungs, progress=progress), model)


def observe(
    volume: Volume, model: Model, lungs: np.ndarray | None = None, *, progress: Progress = iter
) -> Observation:
    """Anatomy, the lung box on the recipe's grid, physical evidence of each cell, and the student's features."""
    config, watch = model.config, Stopwatch()
    seen = look(volume, config, lungs, watch=watch)
    with watch("features"):
        features = extract(model.student, seen.scan, config.patches, config.features, progress)
    return seen.with_features(features, watch)


def decide(
    seen: Observation, model: Model, mode: str | None = None, posteriors: np.ndarray | None = None
) -> Segmentation:
    """Mixture, neighbours, density, boundaries and cavities: what each voxel is.

    `posteriors` (6, z, y, x) on the lung box, where they are known by other means, take the mixture's place.
    """
    config, scan, watch = model.config, seen.scan, Stopwatch(dict(seen.watch.seconds))
    mode = mode or config.mixture.mode
    if posteriors is None:
        with watch("mixture"):
            posteriors = judged(
                seen, partial(cell_posteriors, model=model, mode=mode), config.patches.cell_vox
            )
    with watch("refine"):
        mode_hu = scan_reference(seen.cells.evidence[seen.cells.inside], config.tissue).mode_hu
        voxels = Voxels(
            hu=scan.hu,
            lungs=scan.lungs,
            vessels=scan.vessels,
            evident=seen.evident,
            mode_hu=mode_hu,
            spacing_mm=config.patches.spacing_mm,
        )
        posteriors = fuse(by_density(posteriors, voxels, config.refine), voxels, config.refine)
        posteriors = with_cavities(posteriors, seen)
    with watch("labels"):
        labels = to_labels(posteriors, seen, config.refine.crumb_ml)
    doubt = entropy(posteriors[:, scan.lungs])
    return Segmentation(
        labels=labels,
        anatomy=seen.anatomy,
        scan=scan,
        posteriors=posteriors,
        uncertainty=float(doubt.mean()),
        uncertain_pct=float(100 * (doubt > GUESS).mean()),
        teacher_distance=teacher_distance(seen.cells, model),
        mode=mode,
        seconds=watch.seconds,
    )


def teacher_distance(cells: Cells, model: Model) -> float | None:
    """How far a scan is from those that the model was trained on, as the teacher sees them: 0 is in their middle.

    The median of the scan's cells against the mean of the training's, in spreads of the training's cells, root mean
    square over the families of descriptors; None where no cell can be described.
    """
    described = model.standardiser.apply(cells.descriptors[cells.inside])
    described = described[np.isfinite(described).all(axis=1)]
    if not len(described):
        return None
    apart = np.median(described, axis=0) - model.mixture.arrays["descriptors.mean"]
    return float(np.linalg.norm(apart) / np.sqrt(len(TEACHER.families)))


def judged(seen: Observation, judge: Judge, cell_vox: tuple[int, int, int]) -> np.ndarray:
    """Posteriors (6, z, y, x) of every voxel: the mean of what the cells around it and those between them are.

    `judge(cells, features)` says what cells are, (z, y, x, 6), from what is known of them and a student's features
    (z, y, x, c) there. Raises ValueError where no cell holds enough lung.
    """
    features = regrid(seen.features, seen.cells.inside.shape)
    lattices = [(seen.cells, features)]
    if seen.between is not None:
        lattices.append((seen.between, between_cells(features)))
    # A small lung may fill cells of one lattice alone; where it fills none, `to_voxels` says so.
    lattices = [one for one in lattices if one[0].inside.any()] or lattices[:1]
    maps = [
        to_voxels(judge(cells, np.moveaxis(there, 0, -1)), seen.scan.lungs, cell_vox)
        for cells, there in lattices
    ]
    return sum(maps[1:], maps[0]) / np.float32(len(maps))


def cell_posteriors(cells: Cells, features: np.ndarray, model: Model, mode: str) -> np.ndarray:
    """Posterior (z, y, x, 6) of each cell, its neighbours heard; 0 where there is no lung."""
    inside, evidence = cells.inside, cells.evidence[cells.inside]
    table = CellTable(
        evidence,
        cells.descriptors[inside],
        features[inside],
        scan_reference(evidence, model.config.tissue),
    )
    named = model.mixture.classes(table, mode)
    if mode in ANCHORED_MODES:
        named = share_names(named, evidence, model.config.mixture)
    return to_tissues(couple(cells.laid_out(named), cells.evidence, model.config.mixture))


def to_voxels(coarse: np.ndarray, lungs: np.ndarray, cell_vox: tuple[int, int, int]) -> np.ndarray:
    """Cell posteriors (z, y, x, 6) onto the voxels (6, z, y, x), linear, summing to one inside the lung, 0 outside.

    `lungs` bool (z, y, x) is cut into the cells, or into those between. Raises ValueError where no cell is known.
    """
    known = coarse.sum(axis=-1) > 0
    if not known.any():
        raise ValueError("no cell of this scan holds enough lung to judge")
    # Each unknown cell takes its nearest known neighbour, so that the pleura does not pull posteriors to zero.
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled = np.moveaxis(coarse[tuple(nearest)], -1, 0)
    whole = tuple(cells * n for cells, n in zip(known.shape, cell_vox, strict=True))
    box = [slice((n - inner) // 2, (n + inner) // 2) for n, inner in zip(whole, lungs.shape, strict=True)]
    fine = regrid(filled, whole)[:, *box]
    fine /= np.maximum(fine.sum(axis=0), 1e-6)
    return fine * lungs


def with_cavities(posteriors: np.ndarray, seen: Observation) -> np.ndarray:
    """Air that dense tissue encloses needs no cluster."""
    posteriors[:, seen.enclosed] = 0
    posteriors[Tissue.CAVITY - 1, seen.enclosed] = 1
    return posteriors


def to_labels(posteriors: np.ndarray, seen: Observation, crumb_ml: float) -> np.ndarray:
    """The most likely tissue of each lung voxel on the volume's canonical grid (uint8), `without_crumbs`."""
    labels = np.zeros(seen.volume.shape, np.uint8)
    box = lung_box(seen.anatomy.side)
    if box is not None:
        found = [t for t in TISSUES if t != Tissue.CAVITY]  # cavities are known on this very grid
        names = np.array([Tissue.HEALTHY, *found], np.uint8)  # healthy where nothing is known
        maps, grid = posteriors[[t - 1 for t in found]], crop_grid(seen.volume.grid, box)
        labels[box] = largest_of(maps, seen.scan.grid, grid, seen.anatomy.within(box).lungs, names)
        np.copyto(labels[box], np.uint8(Tissue.CAVITY), where=seen.cavities[box])
        without_crumbs(labels[box], crumb_ml / seen.anatomy.voxel_ml)
    return labels
