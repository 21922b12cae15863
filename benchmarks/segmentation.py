"""What does a large scan take, stage by stage, in seconds and memory, and what does Ray add over a cohort?

One scan of 600x512x512 voxels (a phantom on a fine grid, with noise), in a process of its own for each way, after a
tiny scan, as in the middle of a cohort:
- ours: as jobs/segment.py does it, by a Ray actor, twice in a row; its own peak of resident memory (VmHWM).
- straightforward: the same up to the features; those from the whole network by a hook on its middle block, one
  timestep and one patch at a time, brought to every voxel, and the mixture asked at every voxel.
Both use the mode that needs the features (`anchored_distilled`). Then a cohort of phantoms: a plain loop over
the same actor's code in one process, two such loops at once with half of the scans each, and Ray with one and with
two workers.
Processor seconds are those of all processes of a way; wall seconds mean something on a quiet machine alone.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import ray
import torch
from record import record
from scipy import ndimage

from diffseglung.cells import Cells
from diffseglung.config import recipe
from diffseglung.features import sample_cells, width
from diffseglung.look import Observation, Stopwatch
from diffseglung.mixture import CellTable, couple, fit_mixture
from diffseglung.model import Model
from diffseglung.patches import cut, half_a_cell_on, stitch, tile_corners
from diffseglung.phantom import PhantomConfig, make_phantom, write_cohort
from diffseglung.prepare import prepare_case
from diffseglung.results import case_result, write_case
from diffseglung.schedule import Schedule, to_unit
from diffseglung.segment import Segmentation, decide, judged, observe
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import ANCHORED, scan_reference, to_tissues
from diffseglung.volume import Volume, read_labels, read_volume
from diffseglung_ray.cases import attempts_in, on_its_way
from diffseglung_ray.cluster import case_workers, ray_cluster
from diffseglung_ray.cohort import find_cohort
from diffseglung_ray.config import load_config
from diffseglung_ray.segmentation import CaseSegmenter, place_model, segment_cases
from diffseglung_ray.storage import Store

QUESTION = (
    "What does a large scan take, by stage, in seconds and memory, and what does Ray add over a cohort?"
)
MODE = "anchored_distilled"
COARSE = PhantomConfig(size_vox=(150, 128, 128), spacing_mm=(2.4, 2.7, 2.7))
SMALL = PhantomConfig(size_vox=(150, 180, 180), spacing_mm=(2.0, 1.8, 1.8))
FIRST = PhantomConfig(size_vox=(60, 80, 80), spacing_mm=(5.0, 4.5, 4.5))
NOISE_HU = 15
LOOK_S = 5


def make_model(image: Path, folder: Path) -> Path:
    """Recipe `demo` with an untrained student, which takes as long as a trained one, and a mixture of one scan."""
    config = recipe("demo")
    config = replace(config, mixture=replace(config.mixture, mode=MODE))
    torch.manual_seed(0)
    student = Student(config.student).eval()
    table = prepare_case("made", read_volume(image), config)
    batch = {name: _numpy(table[name].combine_chunks()) for name in table.column_names}
    flat = batch["teacher_local"].reshape(-1, batch["teacher_local"].shape[-1])
    standardiser = Standardiser.fit(flat[np.isfinite(flat).all(axis=1)])
    mixture = fit_mixture(
        sample_cells(student, batch, config.features), config.mixture, config.tissue, standardiser
    )
    return Model(config, student, standardiser, mixture).save(folder)


def _numpy(column: Any) -> np.ndarray:
    tensor = hasattr(column, "to_numpy_ndarray")
    return column.to_numpy_ndarray().copy() if tensor else column.to_numpy(zero_copy_only=False)


def make_large(image: Path, path: Path, shape: tuple[int, int, int]) -> None:
    """The phantom of `image` (x, y, z) on a finer grid of `shape` (z, y, x), with noise; a slice at a time."""
    coarse = nib.load(image)
    given = np.asarray(coarse.dataobj, dtype=np.float32)
    zoom = [new / old for new, old in zip(shape[::-1], given.shape, strict=True)]
    fine = ndimage.zoom(given, zoom, order=1, grid_mode=True, mode="nearest", output=np.int16)
    rng = np.random.default_rng(0)
    for z in range(fine.shape[2]):
        fine[:, :, z] += rng.normal(0, NOISE_HU, fine.shape[:2]).astype(np.int16)
    affine = coarse.affine.copy()
    affine[:3, :3] = affine[:3, :3] @ np.diag([1 / factor for factor in zoom])
    nib.save(nib.Nifti1Image(fine, affine), path)


def hooked_features(seen: Observation, model: Model) -> np.ndarray:
    """Features (c, z, y, x) of every voxel: the whole network, a hook, one timestep and one patch at a time."""
    config, scan, student = model.config, seen.scan, model.student
    stride, size = config.student.stride_vox, config.patches.size_vox
    noise = torch.randn(scan.hu.shape, generator=torch.Generator().manual_seed(config.features.seed))
    schedule, held = Schedule(config.student.timesteps), {}
    hook = student.unet.middle_block.register_forward_hook(lambda _, __, out: held.update(out=out))
    parts = []
    with torch.no_grad():
        for step in config.features.timesteps:
            tiles = []
            for corner in tile_corners(scan.lungs, size, config.patches.overlap, stride):
                hu, lungs, eps = (torch.as_tensor(cut(a, corner, size)[None, None].astype(np.float32)) for a in (
                    scan.hu, scan.lungs, noise.numpy()
                ))  # fmt: skip
                t = torch.full((1,), step)
                student(schedule.add_noise(to_unit(hu), eps, t), lungs, t)
                tiles.append((tuple(c // stride for c in corner), held["out"][0].numpy()))
            coarse = stitch(
                iter(tiles),
                tuple(n // stride for n in scan.hu.shape),
                width(student, config.features) // len(config.features.timesteps),
            )
            factors = [fine / n for fine, n in zip(scan.hu.shape, coarse.shape[1:], strict=True)]
            parts.append(
                np.stack(
                    [
                        ndimage.zoom(np.nan_to_num(c), factors, order=1, grid_mode=True, mode="nearest")
                        for c in coarse
                    ]
                )
            )
    hook.remove()
    return np.concatenate(parts)


def straightforward(seen: Observation, model: Model) -> Segmentation:
    """The mixture asked at every voxel, with the features of every voxel in memory."""
    seen.watch.seconds.pop("features")  # ours, which `observe` brings along
    with seen.watch("features of every voxel"):
        features = hooked_features(seen, model)
    cell_vox = model.config.patches.cell_vox

    def named(cells: Cells, _: np.ndarray) -> np.ndarray:
        lungs, there = seen.scan.lungs, features
        if cells is seen.between:
            lungs = half_a_cell_on(lungs, cell_vox)
            there = np.stack([half_a_cell_on(one, cell_vox) for one in features])
        inside = lungs & _fine(cells.inside, cell_vox)
        evidence, descriptors = (_fine(a, cell_vox)[inside] for a in (cells.evidence, cells.descriptors))
        reference = scan_reference(cells.evidence[cells.inside], model.config.tissue)
        posterior = np.zeros((*inside.shape, len(ANCHORED)), np.float32)
        table = CellTable(evidence, descriptors, np.moveaxis(there, 0, -1)[inside], reference)
        posterior[inside] = model.mixture.classes(table, MODE)
        coarse = _mean(posterior, inside, cells, cell_vox)
        return to_tissues(couple(coarse, cells.evidence, model.config.mixture))

    with seen.watch("mixture of every voxel"):
        posteriors = judged(seen, named, cell_vox)
    return decide(seen, model, MODE, posteriors)


def _fine(cells: np.ndarray, cell_vox: tuple[int, int, int]) -> np.ndarray:
    """What each voxel's cell has."""
    for axis, count in enumerate(cell_vox):
        cells = np.repeat(cells, count, axis=axis)
    return cells


def _mean(
    posterior: np.ndarray, inside: np.ndarray, cells: Cells, cell_vox: tuple[int, int, int]
) -> np.ndarray:
    """The mean over each cell's voxels, for its neighbours to hear."""
    z, y, x = cells.inside.shape
    blocks = (z, cell_vox[0], y, cell_vox[1], x, cell_vox[2])
    total = posterior.reshape(*blocks, -1).sum(axis=(1, 3, 5))
    count = inside.reshape(blocks).sum(axis=(1, 3, 5))
    return np.where(count[..., None] > 0, total / np.maximum(count[..., None], 1), 0).astype(np.float32)


def by_stage(way: str, image: Path, model: Path, out: Path) -> dict[str, Any]:
    """One scan in this process, after a tiny one: seconds by stage, peak of memory."""
    torch.set_num_threads(1)
    loaded, watch = Model.load(model), Stopwatch()
    first = make_phantom(0, FIRST)  # what is loaded with the first scan of a cohort is no part of the second
    observe(Volume.from_array(first.hu, first.spacing_mm), loaded)
    base = peak_gib()
    with watch("read"):
        volume = read_volume(image)
    if way == "ours":
        result = decide(observe(volume, loaded), loaded)
    else:
        result = straightforward(observe(volume, loaded), loaded)
    with watch("write"):
        write_case(out, volume, result, case_result("large", volume, result))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "stages": watch.seconds | result.seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": peak_gib(),
        "base": base,
    }


def peak_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def over_cohort(workers: int, manifest: Path, model: Path, out: Path) -> dict[str, float]:
    """Every scan of a cohort, by a plain loop (`workers` 0) or by Ray: seconds, processor seconds, a worker's peak."""
    config = load_config("demo", None, [f"resources.workers={workers}", "resources.object_store_mb=200"])
    placed, _ = place_model(str(model), lambda _: config_like(config, model))
    store, cases = Store.at(out), find_cohort(manifest)
    watch = Watch()
    with ray_cluster(config.resources):  # the plain loop too takes its model from Ray
        watch.start()
        began, cpu = time.perf_counter(), watch.cpu()
        if workers:
            rows = segment_cases(cases, placed, store, replace(case_workers(config.resources), count=workers))
        else:
            with attempts_in(store) as attempts:
                arguments = (ray.put(placed), store, attempts, case_workers(config.resources), False)
                segmenter = CaseSegmenter(*arguments)
                rows = [
                    segmenter({k: [v] for k, v in on_its_way(case).items()}).to_pylist()[0] for case in cases
                ]
        seconds, spent = time.perf_counter() - began, watch.cpu() - cpu
        watch.over.set()
        watch.join()
    wrong = [row for row in rows if row["status"] != "ok"]
    assert not wrong, wrong
    return {
        "seconds": seconds,
        "cpu": spent,
        "peak": watch.peak_gib,
        "inside": sum(row["seconds"] for row in rows),
    }


def config_like(config: Any, model: Path) -> Any:
    """The run's resources with the model's own settings."""
    own = Model.load(model).config
    return replace(config, **{name: getattr(own, name) for name in own.__dataclass_fields__})


class Watch(threading.Thread):
    """The peak of memory of the workers (their own VmHWM), and the processor seconds of all that this process has."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.peak_gib, self.ended = threading.Event(), 0.0, {}

    def run(self) -> None:
        """Look now and then: each look costs a tenth of a second, and peaks are those since a process began."""
        while not self.over.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Note each process's seconds, and each worker's peak."""
        for pid in [os.getpid(), *below(os.getpid())]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                self.ended[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                name = Path(f"/proc/{pid}/cmdline").read_bytes()
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if b"CaseSegmenter" in name:
                self.peak_gib = max(self.peak_gib, int(status.split("VmHWM:")[1].split()[0]) / 2**20)

    def cpu(self) -> float:
        """Processor seconds so far, those of ended processes too."""
        self.look()
        return sum(self.ended.values())


def below(pid: int) -> list[int]:
    """All processes that a process started, and those that these started."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found, more = [], [pid]
    while more:
        more = [child for child, parent in parents.items() if parent in more]
        found += more
    return found


def in_a_process(*words: object) -> dict[str, Any]:
    """What a part of this script, run by itself, finds."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(words[:2], found, flush=True)
    return found


def one_part(words: list[str]) -> dict[str, Any]:
    """`stage WAY IMAGE MODEL OUT` or `cohort WORKERS MANIFEST MODEL OUT`."""
    kind, which, *places = words
    given, model, out = map(Path, places)
    return (
        by_stage(which, given, model, out) if kind == "stage" else over_cohort(int(which), given, model, out)
    )


def large_scan(folder: Path, model: Path, shape: tuple[int, int, int]) -> str:
    """The table of one large scan, and how far the labels of both ways agree."""
    (row,) = write_cohort(folder / "coarse", 1, seed=5, config=COARSE)
    image = folder / "large.nii.gz"
    make_large(folder / "coarse" / row["image"], image, shape)
    found = {
        way: in_a_process("stage", way, image, model, folder / way / "large")
        for way in ("ours", "straightforward")
    }
    manifest = folder / "large.csv"
    manifest.write_text(f"case_id,image\nfirst,{image}\nsecond,{image}\n")
    actor = in_a_process("cohort", 1, manifest, model, folder / "actor")
    stages = list(dict.fromkeys(stage for way in found.values() for stage in way["stages"]))
    lines = ["| stage | ours, s | straightforward, s |", "|---|---|---|"]
    for stage in stages:
        ours, theirs = (way["stages"].get(stage) for way in found.values())
        lines.append(f"| {stage} | {_told(ours)} | {_told(theirs)} |")
    totals = [sum(way["stages"].values()) for way in found.values()]
    lines.append(f"| all | {totals[0]:.1f} | {totals[1]:.1f} |")
    lines.append(
        "| peak of memory, GiB | " + " | ".join(f"{way['peak']:.2f}" for way in found.values()) + " |"
    )
    volume = read_volume(image)
    ours, theirs = (read_labels(folder / way / "large" / "segmentation.nii.gz", volume) for way in found)
    lungs = (ours > 0) | (theirs > 0)
    return "\n".join([
        f"One scan of {'x'.join(map(str, shape))} voxels, mode {MODE}.", "", *lines, "",
        f"The straightforward way takes {totals[1] / totals[0]:.1f} times as long. The labels agree in "
        f"{100 * (ours == theirs)[lungs].mean():.2f} % of the lung.",
        f"A Ray actor that does the scan twice peaks at {actor['peak']:.2f} GiB.",
    ])  # fmt: skip


def _told(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"


def cohort_of_small(folder: Path, model: Path, scans: int) -> str:
    """The table of what Ray adds, and what a second worker brings."""
    rows = write_cohort(folder / "small", min(scans, 4), seed=9, config=SMALL)

    def manifest(name: str, first: int, step: int) -> Path:
        lines = [f"case-{n:03d},{rows[n % len(rows)]['image']}" for n in range(first, scans, step)]
        path = folder / "small" / f"{name}.csv"
        path.write_text("\n".join(["case_id,image", *lines]) + "\n")
        return path

    def loop(name: str, first: int, step: int) -> dict[str, float]:
        return in_a_process("cohort", 0, manifest(name, first, step), model, folder / f"out-{name}")

    found = {"plain loop": loop("plain", 0, 1)}
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(loop, ("even", "odd"), (0, 1), (2, 2)))
    both = {key: sum(half[key] for half in halves) for key in ("cpu", "inside")}
    found["two plain loops at once"] = both | {"seconds": max(half["seconds"] for half in halves)}
    for count in (1, 2):
        way = f"Ray, {count} worker{'s' * (count > 1)}"
        found[way] = in_a_process("cohort", count, manifest(way, 0, 1), model, folder / f"out-{count}")
    plain = found["plain loop"]
    table = [
        "| way | s | times the loop | processor s | times the loop | s inside the scans |",
        "|---" * 6 + "|",
    ]
    for way, row in found.items():
        ratios = (row[key] / plain[key] for key in ("seconds", "cpu"))
        seconds, cpu = (
            f"{row[key]:.0f} | {ratio:.2f}" for key, ratio in zip(("seconds", "cpu"), ratios, strict=True)
        )
        table.append(f"| {way} | {seconds} | {cpu} | {row['inside']:.0f} |")
    return "\n".join([f"{scans} phantoms of {'x'.join(map(str, SMALL.size_vox))} voxels.", "", *table])


def main() -> None:
    """Measure and record; with `--one`, a single part for the process that asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", nargs=3, type=int, default=[600, 512, 512], help="of the large scan, z y x"
    )
    parser.add_argument("--scans", type=int, default=20, help="of the cohort")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with redirect_stdout(sys.stderr):
            found = one_part(arguments.one)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (row,) = write_cohort(folder / "fit", 1, seed=3, config=SMALL)
        model = make_model(folder / "fit" / row["image"], folder / "model")
        parts = [
            large_scan(folder, model, tuple(arguments.shape)),
            cohort_of_small(folder, model, arguments.scans),
            f"Load of the machine in the last 15 minutes: {os.getloadavg()[2]:.1f}.",
        ]
    record(QUESTION, "\n\n".join(parts))


if __name__ == "__main__":
    main()
