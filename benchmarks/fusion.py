"""What does Sobel-diffusion fusion change, tissue by tissue, and what does it cost?

The validation phantoms of `accuracy.py`, with what it keeps in `--place`: what the mixture believes, what is believed
once each voxel's density had its say (`refine.by_density`), and both fused with the CT (`refine.fuse`). Then the flow
alone on boxes of noise that are lung all over, beside the same equation in NumPy.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cc3d
import numpy as np
import torch
from looked import SPLITS, Bench
from monai.metrics import compute_average_surface_distance
from record import record
from ways import Lessons, observed

from diffseglung.config import recipe
from diffseglung.evaluate import score_case
from diffseglung.labels import DISEASES, Tissue
from diffseglung.refine import OFF, RefineConfig, conductance, lung_box, sobel_diffusion, steps
from diffseglung.segment import cell_posteriors, decide, judged

QUESTION = "What does Sobel-diffusion fusion change, and what does it cost?"
MIXED = tuple(t for t in DISEASES if t != Tissue.CAVITY)  # a cavity is found before and only drawn in
PLAIN, PLAIN_FUSED, LEANED, OURS = "mixture", "mixture, fused", "density", "density, fused: ours"
BESIDE = {PLAIN: PLAIN, PLAIN_FUSED: PLAIN, LEANED: PLAIN, OURS: LEANED}  # what each is compared with
FEW = RefineConfig(flow_time=0.6)  # what NumPy is given time for


def fusions(own: RefineConfig) -> dict[str, RefineConfig]:
    """What is compared; bodies below `crumb_ml` are none in any."""
    return {
        PLAIN: replace(OFF, crumb_ml=own.crumb_ml),
        PLAIN_FUSED: replace(own, hu_power=0.0),
        LEANED: replace(own, flow_time=0.0),
        OURS: own,
    }


def changes(bench: Bench) -> str:
    """Dice, HD95, bodies and volume of each tissue and fusion, over the validation phantoms."""
    model = Lessons(bench, 0).learned(bench.config)[1]
    kinds = fusions(bench.config.refine)
    found: dict[tuple[Tissue, str], list[list[float]]] = {}
    for case_id in bench.cases("validation"):
        seen = bench.seen("validation", case_id)
        judge = partial(cell_posteriors, model=model, mode="anchored")
        posteriors = judged(observed(seen), judge, bench.config.patches.cell_vox)
        labels = {}
        for name, refine in kinds.items():
            one = replace(model, config=replace(bench.config, refine=refine))
            labels[name] = decide(observed(seen), one, posteriors=posteriors).labels
        for name, called in labels.items():
            box = lung_box((seen.truth > 0) | (called > 0))
            rows = score_case(case_id, name, seen.truth[box], called[box], seen.volume.spacing_mm)
            scores = {row["tissue"]: row for row in rows}
            for tissue in MIXED:
                bodies = cc3d.connected_components((called == tissue).view(np.uint8))
                count = int(bodies.max())
                known = len(np.unique(bodies[(called == tissue) & (labels[BESIDE[name]] == tissue)]))
                row = scores[tissue.key]
                apart = borders_mm(seen.truth[box] == tissue, called[box] == tissue, seen.volume.spacing_mm)
                values = [
                    row["dice"],
                    row["hd95_mm"],
                    apart,
                    count,
                    count - known,
                    row["pred_ml"],
                    row["truth_ml"],
                ]
                found.setdefault((tissue, name), []).append([np.nan if v is None else v for v in values])
        print(case_id, flush=True)
    return table(found, list(kinds))


def borders_mm(truth: np.ndarray, called: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """How far the borders of what was found lie apart: of bodies that overlap, the mean both ways; NaN without any."""
    if not (truth & called).any():
        return np.nan
    bodies = (cc3d.connected_components(mask.view(np.uint8)) for mask in (truth, called))
    met = [np.isin(one, np.unique(one[truth & called])) for one in bodies]
    pair = (torch.from_numpy(mask)[None, None] for mask in met)
    apart = compute_average_surface_distance(
        *pair, include_background=True, symmetric=True, spacing=spacing_mm
    )
    return float(apart)


def table(found: dict[tuple[Tissue, str], list[list[float]]], names: list[str]) -> str:
    """One line a tissue and way."""
    head = [
        "tissue",
        "labels",
        "Dice",
        "HD95, mm",
        "borders, mm",
        "nearer in",
        "bodies",
        "of these new",
        "ml",
        "change",
        "truth, ml",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for tissue in MIXED:
        for name in names:
            beside, values = (np.array(found[tissue, one]) for one in (BESIDE[name], name))
            beside_ml = beside[:, 5].sum()
            dice, hd95_mm, apart_mm = np.nanmean(values[:, :3], axis=0)
            nearer = f"{(values[:, 2] < beside[:, 2]).sum()} of {np.isfinite(values[:, 2]).sum()}"
            bodies, new, ml, truth_ml = values[:, 3:].sum(axis=0)
            cells = [
                f"{dice:.3f}",
                f"{hd95_mm:.1f}",
                f"{apart_mm:.2f}",
                "" if name == BESIDE[name] else nearer,
            ]
            cells += [f"{bodies:.0f}", f"{new:.0f}", f"{ml:.0f}"]
            cells += [f"{100 * (ml / beside_ml - 1):+.1f} %", f"{truth_ml:.0f}"]
            lines.append("| " + " | ".join([tissue.title, name, *cells]) + " |")
    return "\n".join(lines)


def in_numpy(u: np.ndarray, hu: np.ndarray, lungs: np.ndarray, mm: tuple, config: RefineConfig) -> np.ndarray:
    """The equation as it is written down, on arrays; voxels of one size."""
    flow, anchor, u = np.pad(conductance(hu, lungs, mm, config), 1), u, np.pad(u, ((0, 0), *[(1, 1)] * 3))
    core, before = (slice(1, -1),) * 3, u
    for keep, back, pull, part in planned(config):
        new = np.zeros_like(u)
        new[:, *core] = keep * u[:, *core] + back * before[:, *core] + pull * anchor
        for axis in range(3):
            for step in (-1, 1):
                beside = tuple(
                    slice(1 + step * (a == axis), -1 + step * (a == axis) or None) for a in range(3)
                )
                gate = np.where((flow[core] > 0) & (flow[beside] > 0), flow[core] + flow[beside], 0)
                new[:, *core] += 0.5 * part * gate * (u[:, *beside] - u[:, *core])
        u, before = new, u
    return u[:, *core]


def planned(config: RefineConfig) -> np.ndarray:
    """The steps on voxels of one size."""
    return steps(config.flow_time, config.pull, 12.0)


def costs(sizes: list[int]) -> str:
    """Seconds of the flow on boxes that are lung all over, all six maps in motion."""
    lines = [
        "| box, voxels | steps | NumPy, 1 core, s | ours, 1 core, s | ours, 2 cores, s | times faster |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for size in sizes:
        rng = np.random.default_rng(0)
        u = rng.random((6, size, size, size), np.float32)
        u /= u.sum(axis=0)
        hu, lungs = rng.normal(-850, 30, u.shape[1:]).astype(np.float32), np.ones(u.shape[1:], bool)
        given = u, hu, lungs, (2.0, 2.0, 2.0)
        own = RefineConfig()
        few = sobel_diffusion(*given, FEW)  # compiles, too
        plain_s, plain = timed(lambda given=given: in_numpy(*given, FEW))
        np.testing.assert_allclose(few, plain, atol=1e-5)
        one_s, two_s = (
            timed(lambda n=n, given=given, own=own: sobel_diffusion(*given, own, threads=n))[0]
            for n in (1, 2)
        )
        plain_s *= len(planned(own)) / len(planned(FEW))
        cells = [f"{size}x{size}x{size}", len(planned(own)), f"{plain_s:.1f}", f"{one_s:.2f}", f"{two_s:.2f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{plain_s / one_s:.0f}"])) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Wall seconds, and what came out."""
    began = time.perf_counter()
    made = run()
    return time.perf_counter() - began, made


def main() -> None:
    """Decide, count, time, and record the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/accuracy"), help="as of accuracy.py")
    parser.add_argument("--sizes", type=int, nargs="*", default=[150, 300], help="edges of the boxes, voxels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.place, recipe("demo"))
    made = (
        f"{bench.counts['validation']} validation phantoms (seed {SPLITS['validation'][1]}), mixture fitted on "
        f"{bench.counts['train']} others. Dice and HD95: means over scans. Bodies: 26 neighbours, on the scan's own "
        "grid; new ones hold no voxel that was called so before. Borders: of bodies that meet the truth's, mean "
        "surface distance both ways. Nearer, new, change: what is fused beside itself, density beside the mixture."
    )
    few, all_steps = len(planned(FEW)), len(planned(RefineConfig()))
    boxes = (
        "The flow alone, wall seconds; a box of 150 voxels is a chest of 300 mm on the grid of 2 mm. NumPy: "
        f"{few} steps, times {all_steps / few:g}; the same numbers come out."
    )
    record(QUESTION, f"{changes(bench)}\n\n{made}\n\n{costs(args.sizes)}\n\n{boxes}")


if __name__ == "__main__":
    main()
