"""How good is the anatomy, and how fast? Tables in Markdown, and a contact sheet of every scan to look at.

    python benchmarks/anatomy.py                          # real scans and phantoms, scored
    python benchmarks/anatomy.py --effusions              # phantoms with pleural fluid: does it stay out?
    python benchmarks/anatomy.py --consolidation 6102     # 24 phantoms of a cohort's seed: does it come in?
    python benchmarks/anatomy.py --speed                  # seconds by stage and memory, beside scikit-image
    python benchmarks/anatomy.py --sheet sheets           # one picture a scan: look at them

Real scans come from the folder that DIFFSEGLUNG_CT names, and from `--public DIR` (the demo's two, fetched into
DIR where it lacks them). Phantoms need nothing. `--only` takes the beginnings of names.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import measure, morphology

from diffseglung.anatomy import Anatomy, NoLungs, find_anatomy
from diffseglung.anatomy.morphology import dilate, erode
from diffseglung.labels import DISEASES, STRUCTURE_RGB, Structure, Tissue
from diffseglung.look import Stopwatch
from diffseglung.phantom import Effusion, case_kinds, case_seed, make_phantom
from diffseglung.volume import Volume, read_labels, read_volume

FOREIGN = ("emphysema-4mm", "emphysema-right")  # their masks are not made by this project
HEALTHY = ("normal-a", "normal-a_full")
DENSE_HU = -700
RIM_MM = 3.0  # from the lung's surface: half chest wall or mediastinum, and dense for that reason
OFF_MM = 2.5  # further from every true airway than this, about a voxel, is none
TEST_COHORT = 2  # the demo's four test phantoms


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan to be looked at; masks are bool (z, y, x) or None."""

    name: str
    volume: Volume
    lungs: np.ndarray | None = None
    tumour: np.ndarray | None = None


def real_scans(folder: Path | None, public: Path | None, only: list[str]) -> Iterator[Scan]:
    """Every scan of the two folders, one at a time, with the masks that lie beside it."""
    files = []
    if folder:
        files += sorted(
            p for p in folder.glob("*.nii.gz") if not p.name.endswith(("_lungs.nii.gz", "_tumour.nii.gz"))
        )
        files += sorted([*folder.glob("*.mha"), *folder.glob("dicom/*")])
    if public:
        files += sorted(p for p in public.glob("*.nrrd") if "_tumour" not in p.name)
    for path in files:
        name = path.name.split(".")[0]
        name = f"dicom/{name}" if path.is_dir() else name
        if only and not name.startswith(tuple(only)):
            continue
        volume = read_volume(path)
        masks = {}
        for kind in ("lungs", "tumour"):
            beside = path.with_name(path.name.replace(".", f"_{kind}.", 1))
            masks[kind] = read_labels(beside, volume) > 0 if beside.is_file() and not path.is_dir() else None
        yield Scan(name, volume, **masks)


def share(part: np.ndarray, of: np.ndarray) -> float:
    """Percent of `of` that is in `part`."""
    return 100 * float((part & of).sum() / max(1, of.sum()))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def windpipe(hu: np.ndarray, airways: np.ndarray) -> np.ndarray:
    """The lumen from the top down to the carina at the scan's own resolution, by a way that is not ours.

    Slice by slice below -800 HU, from the place where the airway enters at the top, as long as it is one patch
    that overlaps the patch above, of at most twice its area and at least two fifths of the usual: below that it
    follows a bronchus.
    """
    found, areas = np.zeros(hu.shape, bool), []
    slices = np.flatnonzero(airways.any((1, 2)))
    above = airways[slices[-1]] if slices.size else None
    for z in slices[::-1]:
        parts = measure.label(hu[z] < -800, connectivity=1)
        touched = np.unique(parts[above & (parts > 0)])
        if touched.size == 0:
            continue
        patch = parts == touched[np.argmax([(parts[above] == n).sum() for n in touched])]
        if areas and not 0.4 * np.median(areas) <= patch.sum() <= 2.0 * areas[-1]:
            break
        found[z], above = patch, patch
        areas.append(patch.sum())
    return found


def row(scan: Scan, anatomy: Anatomy) -> list[str]:
    """One line of the table of real scans."""
    hu, lungs, voxel_ml = scan.volume.hu, anatomy.lungs, anatomy.voxel_ml
    pipe = windpipe(hu, anatomy.airways)
    dense = erode(lungs, RIM_MM, scan.volume.spacing_mm) & (hu > DENSE_HU)
    lasting = dense & (ndimage.median_filter(hu, 3) > DENSE_HU)  # not one voxel's noise
    return [
        scan.name,
        f"{anatomy.right_ml:.0f}",
        f"{anatomy.left_ml:.0f}",
        f"{hu[lungs].mean():.0f}",
        "-" if scan.lungs is None else f"{dice(lungs, scan.lungs):.3f}" + "*" * (scan.name not in FOREIGN),
        "-" if scan.tumour is None else f"{share(lungs, scan.tumour):.1f}",
        f"{share(lungs, pipe):.2f}" if pipe.any() else "-",
        f"{np.count_nonzero(anatomy.airways) * voxel_ml:.0f}",
        f"{np.count_nonzero(anatomy.vessels) * voxel_ml:.0f}",
        f"{share(anatomy.vessels, dense):.1f} / {share(anatomy.vessels, lasting):.1f}",
    ]


def table(head: list[str], rows: Iterable[list[str]]) -> None:
    """Markdown, a line as soon as it is known."""
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for cells in rows:
        print("| " + " | ".join(cells) + " |", flush=True)
    print(flush=True)


REAL_HEAD = [
    *("scan", "right ml", "left ml", "mean HU", "Dice, given mask", "tumour inside %", "trachea in lungs %"),
    *("airway ml", "vessel ml", "vessels of > -700 HU %, each voxel / median of 27"),
]
PHANTOM_HEAD = [
    *("phantom", "lungs Dice", "airways Dice", "airways found %", "airways elsewhere ml"),
    *(
        "large airway in lungs %",
        "vessels Dice",
        "vessels found %",
        "other in lungs ml",
        *(f"{t.title} inside %" for t in DISEASES),
        "disease called vessel %",
    ),
]


def phantoms(count: int) -> Iterator[tuple[str, int, tuple[Tissue, ...]]]:
    """The demo's four test phantoms, then one after another with all five diseases."""
    for index in range(min(count, 4)):
        yield f"test-{index}", case_seed(TEST_COHORT, index), case_kinds(TEST_COHORT, index)
    for seed in range(500, 500 + max(0, count - 4)):
        yield f"all-{seed}", seed, DISEASES


def phantom_row(name: str, seed: int, kinds: tuple[Tissue, ...]) -> list[str]:
    """One line of the table of phantoms."""
    phantom = make_phantom(seed, healthy=not kinds, kinds=kinds)
    anatomy = find_anatomy(Volume.from_array(phantom.hu, phantom.spacing_mm))
    lungs, truth = anatomy.lungs, phantom.truth
    disease = [truth == t for t in DISEASES]
    near_airways = dilate(phantom.airways, OFF_MM, phantom.spacing_mm)
    return [
        name,
        f"{dice(lungs, phantom.lungs):.3f}",
        f"{dice(anatomy.airways, phantom.airways):.3f}",
        f"{share(anatomy.airways, phantom.airways):.0f}",
        f"{(anatomy.airways & ~near_airways).sum() * anatomy.voxel_ml:.1f}",
        f"{share(lungs, phantom.airways & ~phantom.lungs):.2f}",
        f"{dice(anatomy.vessels, phantom.vessels):.3f}",
        f"{share(anatomy.vessels, phantom.vessels):.0f}",
        f"{(lungs & ~phantom.lungs).sum() * anatomy.voxel_ml:.0f}",
        *(f"{share(lungs, d):.1f}" if d.any() else "-" for d in disease),
        f"{share(anatomy.vessels, truth > Tissue.HEALTHY):.1f}",
    ]


# Seed and fluid, without disease and with consolidation that lies beside it. Slices of 1 to 5 mm, noise of 8 to 23 HU;
# the blood of 3, 11, 20 and 24 holds contrast.
EFFUSIONS = [
    (4, (), Effusion(right_ml=60, hu=0)),
    (10, (), Effusion(left_ml=120, hu=20)),
    (3, (), Effusion(right_ml=250, left_ml=250, hu=8)),
    (18, (), Effusion(left_ml=500, hu=18)),
    (1, (Tissue.CONSOLIDATION,), Effusion(right_ml=250, left_ml=150, hu=5)),
    (9, (Tissue.CONSOLIDATION,), Effusion(right_ml=200, hu=15)),
    (11, (Tissue.CONSOLIDATION,), Effusion(right_ml=150, left_ml=150, hu=12)),
    (16, (Tissue.CONSOLIDATION,), Effusion(left_ml=300, hu=20)),
    (20, (Tissue.CONSOLIDATION,), Effusion(right_ml=150, left_ml=50, hu=10)),
    (24, (Tissue.CONSOLIDATION,), Effusion(left_ml=150, hu=15)),
]
EFFUSION_HEAD = [
    *("seed", "fluid right, left ml", "fluid HU", "slice mm", "noise HU", "fluid inside % (ml)"),
    *("consolidation (beside fluid) ml", "consolidation inside %", "other in lungs ml", "lungs Dice"),
]
BESIDE_MM = 4.0


def effusion_row(seed: int, kinds: tuple[Tissue, ...], effusion: Effusion) -> list[str]:
    """One line of the table of phantoms with fluid, which is no lung."""
    phantom = make_phantom(seed, healthy=not kinds, kinds=kinds, effusion=effusion)
    anatomy = find_anatomy(Volume.from_array(phantom.hu, phantom.spacing_mm))
    lungs, fluid, dense = anatomy.lungs, phantom.effusion, phantom.truth == Tissue.CONSOLIDATION
    beside = dense & dilate(fluid, BESIDE_MM, phantom.spacing_mm)
    scanner = phantom.story["scanner"]
    assert isinstance(scanner, dict)
    return [
        f"{seed}",
        f"{effusion.right_ml:.0f}, {effusion.left_ml:.0f}",
        f"{effusion.hu:.0f}",
        f"{scanner['slice_mm']:.1f}",
        f"{scanner['noise_hu']:.0f}",
        f"{share(lungs, fluid):.1f} ({(lungs & fluid).sum() * anatomy.voxel_ml:.0f})",
        f"{dense.sum() * anatomy.voxel_ml:.0f} ({beside.sum() * anatomy.voxel_ml:.0f})",
        f"{share(lungs, dense):.1f}" if dense.any() else "-",
        f"{(lungs & ~phantom.lungs & ~fluid).sum() * anatomy.voxel_ml:.0f}",
        f"{dice(lungs, phantom.lungs):.3f}",
    ]


CONSOLIDATION_HEAD = ["case", "consolidation ml", "inside ml", "inside %", "no lung inside, ml"]
COHORT = 24


def consolidation_rows(seed: int) -> Iterator[list[str]]:
    """The phantoms of a cohort that hold any, and their sum; what lies within a working voxel of lung is no leak."""
    total = np.zeros(3)
    for index in range(COHORT):
        kinds = case_kinds(seed, index)
        phantom = make_phantom(case_seed(seed, index), healthy=not kinds, kinds=kinds)
        anatomy = find_anatomy(Volume.from_array(phantom.hu, phantom.spacing_mm))
        lungs, dense = anatomy.lungs, phantom.truth == Tissue.CONSOLIDATION
        leak = lungs & ~dilate(phantom.lungs | phantom.airways, OFF_MM, phantom.spacing_mm)
        ml = np.array([part.sum() for part in (dense, lungs & dense, leak)]) * anatomy.voxel_ml
        total += ml
        if dense.any():
            yield [f"{index}", *consolidation_cells(ml)]
    yield [f"all {COHORT}", *consolidation_cells(total)]


def consolidation_cells(ml: np.ndarray) -> list[str]:
    """ml of it, of it inside, and of what is no lung."""
    return [f"{ml[0]:.0f}", f"{ml[1]:.0f}", f"{100 * ml[1] / ml[0]:.1f}", f"{ml[2]:.1f}"]


# ---- speed


def straightforward(volume: Volume, watch: Callable) -> np.ndarray:
    """Lungs as a script has them: threshold, clear border, two largest parts, closing by a ball, fill holes."""
    hu = volume.hu
    with watch("threshold and parts"):
        parts = measure.label(hu < -400, connectivity=1)
        edge = np.unique(np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()]))
        sizes = np.bincount(parts.ravel())
        sizes[[0, *edge]] = 0
        lungs = np.isin(parts, np.argsort(-sizes)[:2])
    with watch("closing by a ball of 10 mm"):
        near = ndimage.distance_transform_edt(~lungs, sampling=volume.spacing_mm) <= 10
        lungs = ndimage.distance_transform_edt(near, sampling=volume.spacing_mm) > 10
    with watch("fill holes"):
        lungs = np.stack([ndimage.binary_fill_holes(one) for one in lungs])
    with watch("remove small"):
        return morphology.remove_small_objects(lungs, max_size=1000)


def time_one(name: str, way: str) -> None:
    """In a process of its own, so that the peak of memory is this one's: prints seconds by stage, and MiB."""
    volume = speed_volume(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    watch = Stopwatch()
    cpu, began = time.process_time(), time.perf_counter()
    if way == "ours":
        find_anatomy(volume, watch=watch)
    else:
        straightforward(volume, watch)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stages = ", ".join(f"{stage} {s:.1f}" for stage, s in watch.seconds.items())
    shape = "x".join(map(str, volume.shape))
    print(
        f"| {name} | {shape} | {way} | {took:.1f} | {cpu:.1f} | {before:.0f} | {peak:.0f} | {stages} |",
        flush=True,
    )


def speed_volume(name: str) -> Volume:
    """`dicom/covid-a` of DIFFSEGLUNG_CT, or with `@n` the same chest in n slices, thinner or thicker."""
    name, _, slices = name.partition("@")
    volume = read_volume(Path(os.environ["DIFFSEGLUNG_CT"]) / name)
    if not slices:
        return volume
    count, (dz, dy, dx) = int(slices), volume.spacing_mm
    at = np.linspace(0, volume.shape[0] - 1, count)
    low = np.minimum(at.astype(int), volume.shape[0] - 2)
    hu = np.empty((count, *volume.shape[1:]), np.int16)
    for z, (a, where) in enumerate(zip(low, at, strict=True)):
        w = where - a
        hu[z] = np.rint(volume.hu[a] * (1 - w) + volume.hu[a + 1] * w)
    return Volume.from_array(hu, (dz * volume.shape[0] / count, dy, dx))


def speed() -> None:
    """Each in a fresh process."""
    head = ("scan", "z y x", "way", "s", "CPU s", "MiB before", "MiB peak", "seconds by stage")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for name in ("dicom/covid-a", "dicom/covid-a@300", "dicom/covid-a@600"):
        for way in ("ours", "scikit-image") if "@" not in name else ("ours",):
            subprocess.run([sys.executable, __file__, "--time", name, way], check=True)


# ---- contact sheet


def sheet(
    path: Path, name: str, hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]
) -> None:
    """Five axial, five coronal and four sagittal slices: the four labels as outlines, vessels and airways filled."""
    held = np.argwhere(labels > 0)
    low, high = held.min(0), held.max(0)
    panels = []
    for axis, count in ((0, 6), (1, 5), (2, 6)):
        for at in np.linspace(low[axis], high[axis], count + 2)[1:-1].astype(int):
            panels.append(
                panel(
                    hu.take(at, axis),
                    labels.take(at, axis),
                    [s for a, s in enumerate(spacing_mm) if a != axis],
                    axis,
                )
            )
    width, line, x, y = 1900, 0, 0, 24
    places = []
    for one in panels:
        if x + one.width > width:
            x, y, line = 0, y + line + 4, 0
        places.append((x, y))
        x, line = x + one.width + 4, max(line, one.height)
    page = Image.new("RGB", (width, y + line), (15, 20, 25))
    for one, place in zip(panels, places, strict=True):
        page.paste(one, place)
    ImageDraw.Draw(page).text((4, 4), name, (232, 237, 242))
    page.save(path)


def panel(hu: np.ndarray, labels: np.ndarray, spacing_mm: list[float], axis: int) -> Image.Image:
    """One slice, head up, patient's right at the left."""
    if axis:
        hu, labels = hu[::-1], labels[::-1]
    grey = np.clip((hu.astype(np.float32) + 1000) / 1200, 0, 1) * 255
    size = [round(n * s * 1.05) for n, s in zip(hu.shape, spacing_mm, strict=True)]
    rgb = np.asarray(
        Image.fromarray(grey.astype(np.uint8)).resize(size[::-1], Image.Resampling.BILINEAR).convert("RGB")
    ).copy()
    big = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    inside = np.isin(big, (1, 2, 4))
    for structure, colour in STRUCTURE_RGB.items():
        mask = big == structure
        if structure in (Structure.RIGHT_LUNG, Structure.LEFT_LUNG):
            whole = ndimage.binary_closing(mask, iterations=2)
            edge = (mask | whole) & ~ndimage.binary_erosion(inside) & inside
            rgb[edge] = colour
        else:
            rgb[mask] = (0.5 * rgb[mask] + 0.5 * np.array(colour)).astype(np.uint8)
    return Image.fromarray(rgb)


def main() -> None:
    """The tables, or the sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path)
    parser.add_argument("--phantoms", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--effusions", action="store_true")
    parser.add_argument("--consolidation", type=int, metavar="SEED")
    parser.add_argument("--time", nargs=2, metavar=("SCAN", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.time or args.speed) and not os.environ.get("DIFFSEGLUNG_CT"):
        parser.error(
            "--speed reads dicom/covid-a from the folder that DIFFSEGLUNG_CT names, and it names none"
        )
    if args.time:
        return time_one(*args.time)
    if args.speed:
        return speed()
    if args.effusions:
        return table(EFFUSION_HEAD, (effusion_row(*one) for one in EFFUSIONS))
    if args.consolidation is not None:
        return table(CONSOLIDATION_HEAD, consolidation_rows(args.consolidation))
    if args.public:
        from diffseglung_ray.public_scans import fetch_public_scans

        fetch_public_scans(args.public)
    if args.sheet:
        args.sheet.mkdir(parents=True, exist_ok=True)
    ct = os.environ.get("DIFFSEGLUNG_CT")
    if ct or args.public:
        table(REAL_HEAD, real_rows(Path(ct) if ct else None, args))
        print("* a threshold mask made in a simple way, not a reference\n", flush=True)
    table(PHANTOM_HEAD, (phantom_row(*one) for one in phantoms(args.phantoms)))
    return None


def real_rows(ct: Path | None, args: argparse.Namespace) -> Iterator[list[str]]:
    """Each scan's line; its sheet too, if asked for."""
    for scan in real_scans(ct, args.public, args.only):
        try:
            anatomy = find_anatomy(scan.volume)
        except NoLungs as error:
            yield [scan.name, f"refused: {error}", *["-"] * (len(REAL_HEAD) - 2)]
            continue
        yield row(scan, anatomy)
        if args.sheet:
            path = args.sheet / f"{scan.name.replace('/', '-')}.png"
            sheet(path, scan.name, scan.volume.hu, anatomy.labels, scan.volume.spacing_mm)


if __name__ == "__main__":
    main()
