"""Where does a U-Net end that is taught by the chain's own sure voxels?

The phantoms of `accuracy.py` and what it keeps in `--place`. The chain labels the training scans; a U-Net learns the
voxels of which it is sure and names the tissues of the validation scans: alone, together with the mixture (the root of
the product of their posteriors), and both fused, in the chain's place. `student` is the student's own U-Net, which
folds eight voxels into one, from scratch or from a student's weights; `full` has a feature for every voxel. Each
network has one plain run a seed, from scratch and taught by the chain at the first of `--sure`; the other runs differ
from it in one thing: the start, how sure the chain must be, or that the truth teaches. Meant for a GPU, which holds all
volumes; a CPU gets through few steps. Scores are kept, so that a run may be stopped.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
from accuracy import Row, interval, line, number
from chain import DEVICE
from joblib import delayed
from looked import LABELLED_BY, SPLITS, Bench, key_of, read_json, say, source
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from record import record
from torch import nn
from torch.nn import functional as F
from ways import Lessons, observed

from diffseglung.config import recipe
from diffseglung.evaluate import MEAN, gain, over_seeds, score_case, summarise
from diffseglung.grid import resample_labels
from diffseglung.labels import DISEASES, TISSUES, Tissue
from diffseglung.model import Model
from diffseglung.patches import Scan
from diffseglung.refine import OFF, lung_box
from diffseglung.schedule import to_unit
from diffseglung.segment import cell_posteriors, decide, judged
from diffseglung.student import Student, fold, laid_out, unfold

QUESTION = "Where does a U-Net end that is taught by the chain's own sure voxels?"
LR, LR_WARMUP, LR_LEAST, CLIP, EMA = 1e-3, 50, 0.01, 1.0, 0.998
SHIFT_HU, NOISE_HU = 15.0, 15.0  # standard deviations, drawn for each patch
WAIT = 100  # steps after which a GPU, which works behind the clock, is waited for
JITTER_VOX = 8  # how far a patch's middle may lie from the voxel that it was drawn around
PLACES = 20_000  # at most so many voxels of a scan and tissue have patches drawn around them
CHAIN, UNFUSED = "chain", "chain, not fused"
ALONE, BOTH, FUSED = "U-Net alone", "both", "both, fused"
HEAD = ["network, start, taught by", "seeds", "steps", "labels by", "mean of diseases", "beside the chain"]
STARTS = {"scratch": None, "distilled": "local", "undistilled": "undistilled"}  # whose weights: a contrast's


@dataclass(frozen=True, slots=True)
class Teaching:
    """How a network is taught: so many cubes a step, a share of them around a disease, each as likely as the others.

    A tissue weighs as much as it is rare, to the power of `rarity`.
    """

    patch_vox: int
    patches: int
    rarity: float
    diseased: float


NETWORKS = {"student": Teaching(48, 16, 0.5, 0.75), "full": Teaching(64, 4, 0.25, 0.6)}


@dataclass(frozen=True, slots=True)
class Run:
    """One training: of which network, from what, and the least posterior that the chain teaches; None: the truth."""

    network: str
    start: str
    sure: float | None
    seed: int

    @property
    def title(self) -> str:
        """What all its seeds are called."""
        taught = "truth" if self.sure is None else f"{CHAIN} {self.sure:g}"
        return f"{self.network}, {self.start}, {taught}"


def runs_of(networks: Iterable[str], starts: Iterable[str], sures: list[float], seeds: int) -> list[Run]:
    """A plain run of each network, what differs from it in one thing, seed by seed; `full` starts from scratch."""
    found = []
    for seed, network in product(range(seeds), networks):
        plain = Run(network, "scratch", sures[0], seed)
        others = [replace(plain, start=start) for start in starts if network == "student"]
        others += [replace(plain, sure=sure) for sure in (*sures[1:], None)]
        found += [plain, *(one for one in others if one != plain)]
    return found


class Segmenter(nn.Module):
    """The student's U-Net with tissues (b, 6, z, y, x), as logits, for its answer."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.fold = student.config.fold
        self.unet = copy.deepcopy(student.unet).requires_grad_(True)
        width, cube = student.config.channels[0], self.fold**3
        self.unet.out[-1] = nn.Conv3d(width, len(TISSUES) * cube, 3, padding=1)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """`seen` (b, 2, z, y, x): CT in [-1, 1] and lungs."""
        t = torch.zeros(len(seen), dtype=torch.long, device=seen.device)
        answer = self.unet.decode(*self.unet.encode(fold(seen, self.fold), t))
        return unfold(answer, self.fold).unflatten(1, (len(TISSUES), -1)).squeeze(2)


def full() -> nn.Module:
    """A U-Net that folds nothing: the same question and answer, 3.2 million weights."""
    strides, widths, norm = [1, 2, 2, 2], (24, 48, 96, 192), ("INSTANCE", {"affine": True})
    return DynUNet(3, 2, len(TISSUES), [3] * 4, strides, strides[1:], filters=widths, norm_name=norm)


def network_of(bench: Bench, run: Run) -> nn.Module:
    """The network that a run starts with. Ends in words where its student is not there."""
    torch.manual_seed(run.seed)
    if run.network == "full":
        return full()
    contrast = STARTS[run.start]
    if contrast is None:
        return Segmenter(Student(bench.config.student))
    student = bench.student(contrast, run.seed, None, train=False)
    if student is None:
        raise SystemExit(f"{bench.place}/students/{contrast}-{run.seed} is not there; accuracy.py leaves one")
    return Segmenter(student.network)


# ---- what is taught


@dataclass(frozen=True, slots=True, eq=False)
class Scans:
    """All training scans on the device, padded to one box, each (n, z, y, x): `hu` int16, `lungs` bool, the chain's
    tissue `called` (uint8) with its posterior `belief` (float32) after fusion, the `truth` (uint8).
    """

    hu: torch.Tensor
    lungs: torch.Tensor
    called: torch.Tensor
    belief: torch.Tensor
    truth: torch.Tensor

    @classmethod
    def of(cls, each: list[dict[str, np.ndarray]], least_vox: int) -> "Scans":
        """On the device; the box is no smaller than a patch."""
        box = np.max([np.full(3, least_vox), *(one["hu"].shape for one in each)], axis=0)

        def padded(name: str) -> torch.Tensor:
            out = np.full((len(each), *box), -1024 if name == "hu" else 0, each[0][name].dtype)
            for volume, one in zip(out, each, strict=True):
                volume[tuple(slice(n) for n in one[name].shape)] = one[name]
            return torch.from_numpy(out).to(DEVICE)

        return cls(**{name: padded(name) for name in cls.__slots__})

    def taught(self, sure: float | None) -> torch.Tensor:
        """The tissue of each voxel of which the chain is so sure, or the true one; 0 where nothing is taught."""
        if sure is None:
            return self.truth
        return torch.where(self.belief >= sure, self.called, torch.zeros_like(self.called))


def labelled(bench: Bench, model: Model, case_id: str) -> dict[str, np.ndarray]:
    """What `Scans` holds of one training scan."""
    seen = bench.seen("train", case_id)
    scan, posteriors = seen.scan, decide(observed(seen), model).posteriors
    truth = resample_labels(seen.truth, seen.volume.grid, scan.grid)
    return {
        "hu": scan.hu.astype(np.int16),
        "lungs": scan.lungs,
        "called": ((posteriors.argmax(axis=0) + 1) * scan.lungs).astype(np.uint8),
        "belief": posteriors.max(axis=0).astype(np.float32),
        "truth": (truth * scan.lungs).astype(np.uint8),
    }


def places_of(tissue: torch.Tensor, rng: np.random.Generator) -> list[dict[int, np.ndarray]]:
    """Voxels (k, 3) of each tissue of each scan, some of them where there are many."""
    found = []
    for scan in tissue.cpu().numpy():
        where = {int(t): np.argwhere(scan == t) for t in TISSUES}
        found.append({t: rng.permutation(w)[:PLACES] for t, w in where.items() if len(w)})
    return found


def batches(
    scans: Scans, tissue: torch.Tensor, how: Teaching, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What is seen (b, 2, z, y, x) and what is taught of it (b, z, y, x), 0 to 5 and -1 where nothing is."""
    rng, noise = np.random.default_rng(seed), torch.Generator(DEVICE).manual_seed(seed)
    normal = partial(torch.randn, device=DEVICE, generator=noise)
    places, edge = places_of(tissue, rng), how.patch_vox
    while True:
        boxes = []
        for scan in rng.integers(len(places), size=how.patches):
            diseases = [t for t in places[scan] if t in DISEASES]
            sick = diseases and rng.random() < how.diseased
            voxel = rng.choice(places[scan][int(rng.choice(diseases)) if sick else int(Tissue.HEALTHY)])
            corner = voxel + rng.integers(-JITTER_VOX, JITTER_VOX + 1, 3) - edge // 2
            corner = corner.clip(0, np.array(tissue.shape[1:]) - edge)
            boxes.append((int(scan), *(slice(int(c), int(c) + edge) for c in corner)))
        hu = torch.stack([scans.hu[box] for box in boxes]).float()
        one_each = len(boxes), 1, 1, 1
        hu = hu + SHIFT_HU * normal(one_each) + NOISE_HU * normal(one_each) * normal(hu.shape)
        lungs = torch.stack([scans.lungs[box] for box in boxes]).float()
        taught = torch.stack([tissue[box] for box in boxes]).long() - 1
        turned = [axis for axis in (-3, -2, -1) if rng.random() < 0.5]
        yield torch.stack([to_unit(hu), lungs], dim=1).flip(turned), taught.flip(turned)


# ---- training


def spent(seconds: float) -> Iterator[float]:
    """The share of a budget that is spent, again and again, until it all is."""
    began = time.monotonic()
    while (share := (time.monotonic() - began) / seconds) < 1:
        yield share


def learn(network: nn.Module, scans: Scans, run: Run, shares: Iterable[float]) -> tuple[int, nn.Module]:
    """Teach for as long as `shares` of the budget come: steps, and the network of the weights' moving average.

    Weighted cross-entropy; the learning rate falls along a cosine over the budget.
    """
    how, tissue = NETWORKS[run.network], scans.taught(run.sure)
    count = torch.bincount(tissue.flatten().long(), minlength=len(TISSUES) + 1)[1:].double()
    weight = ((count.sum() / count.clamp(min=1)) ** how.rarity).float()
    network = laid_out(network.to(DEVICE))
    slow = copy.deepcopy(network).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), LR, fused=True)
    step, lessons = 0, batches(scans, tissue, how, run.seed)
    for step, (share, (seen, taught)) in enumerate(zip(shares, lessons, strict=False), 1):
        rate = max(LR_LEAST, 0.5 * (1 + np.cos(np.pi * share))) * min(1.0, step / LR_WARMUP)
        for group in optimiser.param_groups:
            group["lr"] = LR * rate
        with precision():
            answer = network(seen)
        loss = F.cross_entropy(answer.float(), taught, weight, ignore_index=-1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(slow.parameters()), list(network.parameters()), 1 - decay)
        if step % WAIT == 0:
            say(run.title, run.seed, step, round(loss.item(), 3), f"{share:.2f}")
    return step, slow


def precision() -> torch.autocast:
    """The networks compute in bfloat16 on a GPU."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")


# ---- scores


@torch.no_grad()
def posteriors_of(network: nn.Module, scan: Scan, patch_vox: int) -> np.ndarray:
    """Posterior (6, z, y, x) of each voxel of the lung box, 0 outside the lungs; cavities are left to the chain."""
    seen = torch.stack([to_unit(torch.from_numpy(scan.hu)), torch.from_numpy(scan.lungs).float()])[None]
    seen, size = seen.to(DEVICE), (patch_vox,) * 3
    with precision():
        logits = sliding_window_inference(seen, size, 4, network, overlap=0.25, mode="gaussian")[0].float()
    logits[Tissue.CAVITY - 1] = -torch.inf
    return F.softmax(logits, dim=0).cpu().numpy() * scan.lungs


def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root of two posteriors' product, summing to one where both know something."""
    product = np.sqrt(a * b)
    total = product.sum(axis=0)
    return np.divide(product, total, out=product, where=total > 0)


def scored(bench: Bench, model: Model, case_id: str, alone: np.ndarray | None = None) -> list[Row]:
    """Scores of a validation scan on its own grid: of a U-Net's posteriors in each way, of the chain without any."""
    seen = bench.seen("validation", case_id)
    judge = partial(cell_posteriors, model=model, mode=bench.config.mixture.mode)
    mixture = judged(observed(seen), judge, bench.config.patches.cell_vox)
    as_is = replace(model, config=replace(model.config, refine=OFF))
    ways = {CHAIN: (model, mixture), UNFUSED: (as_is, mixture)}
    if alone is not None:
        both = joined(alone, mixture)
        ways = {ALONE: (as_is, alone), BOTH: (as_is, both), FUSED: (model, both)}
    rows: list[Row] = []
    for name, (judging, posteriors) in ways.items():
        labels = decide(observed(seen), judging, posteriors=posteriors.copy()).labels
        box = lung_box((seen.truth > 0) | (labels > 0)) or (slice(None),) * 3
        rows += score_case(case_id, name, seen.truth[box], labels[box], seen.volume.spacing_mm)
    return rows


def measure(bench: Bench, runs: list[Run], folder: Path, seconds: float) -> None:
    """Train and score what is not there yet, the chain too."""
    model, cases = Lessons(bench, 0).learned(bench.config)[1], bench.cases("validation")
    score = delayed(partial(scored, bench, model))
    if not (chain := folder / f"{CHAIN}.json").exists():
        keep(chain, 0, bench.workers(score(case_id) for case_id in cases))
    missing = [run for run in runs if not file_of(folder, run, seconds).exists()]
    networks = [network_of(bench, run) for run in missing]  # a student that is missing is missed at once
    if not missing:
        return
    label = delayed(partial(labelled, bench, model))
    least_vox = max(how.patch_vox for how in NETWORKS.values())
    scans = Scans.of(bench.workers(label(case_id) for case_id in bench.cases("train")), least_vox)
    for run, network in zip(missing, networks, strict=True):
        steps, slow = learn(network, scans, run, spent(seconds))
        say(run.title, run.seed, steps, "steps")
        vox = NETWORKS[run.network].patch_vox
        asked = ((case_id, bench.seen("validation", case_id).scan) for case_id in cases)
        each = bench.workers(score(case_id, posteriors_of(slow, scan, vox)) for case_id, scan in asked)
        keep(file_of(folder, run, seconds), steps, each)


def file_of(folder: Path, run: Run, seconds: float) -> Path:
    """Where the scores of a run lie."""
    return folder / f"{run.title}, {seconds:g} s, seed {run.seed}.json"


def keep(path: Path, steps: int, each: list[list[Row]]) -> None:
    """Write the rows of all scans, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}.part")
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    own.write_text(
        json.dumps({"steps": steps, "device": device, "rows": [row for rows in each for row in rows]})
    )
    own.replace(path)


# ---- tables


def tables(runs: list[Run], folder: Path, seconds: float) -> str:
    """A line a run and way, beside the chain; what the student's starts are worth; the devices. Of what is there."""
    rows: list[Row] = read_json(folder / f"{CHAIN}.json")["rows"]
    steps: dict[str, list[int]] = {}
    devices: set[str] = set()
    for run in runs:
        if found := read_json(file_of(folder, run, seconds)):
            steps.setdefault(run.title, []).append(found["steps"])
            devices.add(found["device"])
            rows += [row | {"method": f"{run.title}: {row['method']}"} for row in found["rows"]]
    rows = over_seeds(rows)
    summary = {(r["method"], r["tissue"]): r for r in summarise(rows)}
    head = [*HEAD, *(t.title for t in DISEASES), "HD95, mm"]
    lines = [line(head), line(["---"] * len(head))]

    def row(about: list[str], method: str) -> str:
        mean, dices = summary[method, MEAN], [number(summary[method, t.key]["dice"]) for t in DISEASES]
        beside = "" if method == CHAIN else interval(gain(rows, method, CHAIN), "gain", "+.3f")
        return line([*about, f"{mean['dice']:.3f}", beside, *dices, f"{mean['hd95_mm']:.1f}"])

    lines += [row(["", "", "", way], way) for way in (CHAIN, UNFUSED)]
    for title, reached in sorted(steps.items()):
        about = [title, str(len(reached)), f"{np.mean(reached):.0f}"]
        lines += [row([*about, way], f"{title}: {way}") for way in (ALONE, BOTH, FUSED)]
    lines += ["", line(["the student's U-Net alone", "difference [95 %]"]), "|---|---|"]
    plain = next((run for run in runs if (run.network, run.start) == ("student", "scratch")), runs[0])
    titles = {start: replace(plain, start=start).title for start in STARTS}
    for one, other in combinations([start for start in reversed(STARTS) if titles[start] in steps], 2):
        found = gain(rows, f"{titles[one]}: {ALONE}", f"{titles[other]}: {ALONE}")
        lines.append(line([f"{one} minus {other}", interval(found, "gain", "+.4f")]))
    return "\n".join([*lines, "", f"{seconds:g} s a training on {' or '.join(sorted(devices))}."])


# ---- the run


def main() -> None:
    """Train and score what is not there yet and record the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/accuracy"), help="as of accuracy.py")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--starts", nargs="+", choices=STARTS, default=list(STARTS), help="of the student's U-Net"
    )
    parser.add_argument(
        "--sure", nargs="+", type=float, default=[0.8, 0.6, 0.93], help="least posterior taught"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each training")
    parser.add_argument("--jobs", type=int, default=1, help="scans at a time where the CPU works")
    parser.add_argument("--table", action="store_true", help="only write the tables of what is there")
    args = parser.parse_args()
    bench = Bench(args.place, recipe("demo"), jobs=args.jobs)
    runs = runs_of(args.networks, args.starts, args.sure, args.seeds)
    folder = (
        args.place / "segmenter" / key_of(bench.version, source(*LABELLED_BY, "evaluate.py"), str(NETWORKS))
    )
    if not args.table:
        measure(bench, runs, folder, args.seconds)
    said = (
        f"{bench.counts['train']} training phantoms (seed {SPLITS['train'][1]}), {bench.counts['validation']} "
        f"validation phantoms (seed {SPLITS['validation'][1]}), scored on their own grids. Taught by the chain: voxels "
        "to which it gives at least so much posterior after fusion. Both: the root of the product with the mixture's "
        "posterior, not fused. Cavities are the chain's throughout. Beside the chain: with the 95 % interval of a "
        "bootstrap over scans, in pairs. Taught the truth is not label-free: what this network could learn."
    )
    record(QUESTION, f"{tables(runs, folder, args.seconds)}\n\n{said}")


if __name__ == "__main__":
    main()
