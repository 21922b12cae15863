"""Where does a U-Net end that is taught by the chain's own confident voxels, pretrained by distillation and not?

The phantoms of `accuracy.py` and what it keeps in `--place`. The chain labels the training scans; the student's own
U-Net, with six tissues for an answer, learns the voxels of which the chain is sure, and the validation scans are
scored as it goes: the chain beside the U-Net's posteriors as they are, both together (the root of their product) and
both fused, in the chain's place. It trains on a GPU where there is one. Scores and weights are kept, so that a run may
be stopped.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from chain import DEVICE, Seen, dice, diseases
from joblib import delayed
from looked import SPLITS, Bench, say
from monai.inferers import sliding_window_inference
from record import record
from torch import nn
from torch.nn import functional as F
from ways import Lessons, observed

from diffseglung.config import Config, recipe
from diffseglung.grid import resample_labels
from diffseglung.labels import DISEASES, TISSUES
from diffseglung.model import Model
from diffseglung.patches import Scan, seed_of
from diffseglung.refine import OFF
from diffseglung.schedule import to_unit
from diffseglung.segment import decide
from diffseglung.student import Student, fold, unfold

QUESTION = "Where does a U-Net end that is taught by the chain's own confident voxels, pretrained and not?"
PATCH_VOX = (
    32,
    48,
    48,
)  # of 2 mm: 64 x 96 x 96 mm; two of them have as many voxels as a step of distillation
SURE = 0.8  # the least posterior of a voxel that is taught
RARE = 0.75  # share of patches around a disease, each as likely as the others
LR, LR_WARMUP, CLIP, EMA = 1e-3, 50, 1.0, 0.99
SHIFT_HU, NOISE_HU = 15.0, 15.0  # standard deviations, drawn for each patch
CHAIN, ALONE, BOTH = "chain", "U-Net alone", "chain and U-Net"
STARTS = ("pretrained", "from scratch", "from scratch, taught the truth")


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


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A scan and what is taught of it: tissue uint8 (z, y, x), 0 where nothing is; some voxels of each tissue."""

    scan: Scan
    tissue: np.ndarray
    places: dict[int, np.ndarray]

    @classmethod
    def of(cls, scan: Scan, tissue: np.ndarray, rng: np.random.Generator) -> "Taught":
        """With up to 20,000 places of each tissue."""
        where = {int(t): np.flatnonzero(tissue == t) for t in TISSUES}
        return cls(scan, tissue, {t: rng.permutation(w)[:20_000] for t, w in where.items() if len(w)})


def sure_of(seen: Seen, model: Model) -> np.ndarray:
    """The tissue of each voxel of the lung box of which the chain is sure, 0 of others."""
    found = decide(observed(seen), model)
    sure = found.posteriors.max(axis=0) >= SURE
    return np.where(sure & found.scan.lungs, found.posteriors.argmax(axis=0) + 1, 0).astype(np.uint8)


def truth_of(seen: Seen) -> np.ndarray:
    """The true tissue of each voxel of the lung box."""
    return resample_labels(seen.truth, seen.volume.grid, seen.scan.grid) * seen.scan.lungs


def batches(lessons: list[Taught], patches: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What is seen (b, 2, z, y, x) and what is taught (b, z, y, x), 0 to 5 and -1 where nothing is."""
    rng = np.random.default_rng(seed)
    while True:
        seen, taught = [], []
        for lesson in (lessons[i] for i in rng.integers(len(lessons), size=patches)):
            diseases = [t for t in lesson.places if t in DISEASES]
            rare = diseases and rng.random() < RARE
            place = rng.choice(lesson.places[int(rng.choice(diseases)) if rare else 1])
            centre = np.array(np.unravel_index(place, lesson.tissue.shape))
            window = patch_around(centre + rng.integers(-8, 9, 3), lesson.tissue.shape)
            hu = lesson.scan.hu[window] + rng.normal(0, SHIFT_HU)
            hu = hu + rng.normal(0, abs(rng.normal(0, NOISE_HU)), hu.shape)
            parts = [
                to_unit(torch.from_numpy(hu).float()),
                torch.from_numpy(lesson.scan.lungs[window]).float(),
            ]
            each, tissue = torch.stack(parts), torch.from_numpy(lesson.tissue[window].astype(np.int64)) - 1
            turned = [axis for axis in range(3) if rng.random() < 0.5]
            short = [n - m for n, m in zip(PATCH_VOX, tissue.shape, strict=True)]
            pad = [width for n in reversed(short) for width in (0, n)]
            seen.append(F.pad(each.flip([axis + 1 for axis in turned]), pad, value=-1.0))
            taught.append(F.pad(tissue.flip(turned), pad, value=-1))
        yield torch.stack(seen), torch.stack(taught)


def patch_around(centre: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The patch inside the scan, smaller where the scan is."""
    starts = [
        int(np.clip(c - n // 2, 0, max(m - n, 0))) for c, n, m in zip(centre, PATCH_VOX, shape, strict=True)
    ]
    return tuple(slice(s, min(s + n, m)) for s, n, m in zip(starts, PATCH_VOX, shape, strict=True))


def learn(
    network: Segmenter, lessons: list[Taught], steps: int, patches: int, seed: int
) -> Iterator[tuple[int, Segmenter]]:
    """Cross-entropy, each tissue by the root of how rare it is; yields (step, its moving average)."""
    count = np.array([sum((one.tissue == t).sum() for one in lessons) for t in TISSUES], float)
    weight = torch.from_numpy(np.sqrt(count.sum() / np.maximum(count, 1))).float().to(DEVICE)
    network.to(DEVICE)
    slow = copy.deepcopy(network).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), LR, fused=True)
    heard = 0.0
    for step, (seen, taught) in enumerate(batches(lessons, patches, seed), 1):
        rate = min(1.0, step / LR_WARMUP) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = LR * max(rate, 0.02)
        optimiser.zero_grad(set_to_none=True)
        answer = network(seen.to(DEVICE))
        loss = F.cross_entropy(answer, taught.to(DEVICE), weight, ignore_index=-1)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, now in zip(slow.parameters(), network.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        heard += float(loss.detach())
        if step % 25 == 0:
            say(step, round(heard / 25, 3))
            heard = 0.0
        yield step, slow
        if step == steps:
            return


@torch.no_grad()
def posteriors_of(network: Segmenter, scan: Scan) -> np.ndarray:
    """Posterior (6, z, y, x) of each voxel of the lung box, 0 outside the lungs."""
    seen = torch.stack([to_unit(torch.from_numpy(scan.hu)), torch.from_numpy(scan.lungs).float()])[None]
    seen = seen.to(DEVICE)
    logits = sliding_window_inference(seen, PATCH_VOX, 2, network, overlap=0.25, mode="gaussian")
    return F.softmax(logits[0], dim=0).cpu().numpy() * scan.lungs


def scored(bench: Bench, model: Model, weights: Path, case_id: str) -> dict[str, list[float]]:
    """Dice of each tissue in a validation scan: of the U-Net alone and of both."""
    network = Segmenter(Student(bench.config.student)).eval().requires_grad_(False)
    network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    as_is, seen = replace(model, config=replace(model.config, refine=OFF)), bench.seen("validation", case_id)
    alone = posteriors_of(network.to(DEVICE), seen.scan)
    both = joined(alone, decide(observed(seen), model).posteriors)
    ways = {ALONE: (as_is, alone), BOTH: (as_is, both), f"{BOTH}, fused": (model, both)}
    return {
        name: dice(seen.truth, decide(observed(seen), judge, posteriors=posteriors).labels)
        for name, (judge, posteriors) in ways.items()
    }


def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root of two posteriors' product, summing to one where both know something."""
    product = np.sqrt(a * b)
    total = product.sum(axis=0)
    return np.divide(product, total, out=product, where=total > 0)


def lesson_of(bench: Bench, model: Model | None, case_id: str) -> Taught:
    """A training scan with what the chain is sure of; with the truth where there is no model."""
    seen = bench.seen("train", case_id)
    tissue = sure_of(seen, model) if model else truth_of(seen)
    return Taught.of(seen.scan, tissue, np.random.default_rng(seed_of(0, case_id)))


def measure(bench: Bench, start: str, marks: list[int], patches: int, pretrained: Path, folder: Path) -> None:
    """Train from one start and leave the scores at each mark."""
    model = Lessons(bench, 0).learned(bench.config)[1]
    torch.manual_seed(0)
    student = Student(bench.config.student)
    if start == "pretrained":
        if not (pretrained / "model.json").exists():
            raise SystemExit(f"--student {pretrained}: no model is there; accuracy.py leaves one")
        student = Model.load(pretrained).student
    files = {step: result_file(folder, start, step, marks[-1], patches) for step in marks}
    weights = {step: file.with_suffix(".pt") for step, file in files.items()}
    if not weights[marks[-1]].exists():
        teach = delayed(partial(lesson_of, bench, None if start.endswith("truth") else model))
        taught = bench.workers(teach(case_id) for case_id in bench.cases("train"))
        for step, slow in learn(Segmenter(student), taught, marks[-1], patches, seed=0):
            if step in marks:
                torch.save({k: v.cpu() for k, v in slow.state_dict().items()}, weights[step])
    score = delayed(partial(scored, bench, model))
    for step in marks:
        each = bench.workers(score(weights[step], case_id) for case_id in bench.cases("validation"))
        found = {name: [one[name] for one in each] for name in each[0]}
        files[step].write_text(json.dumps(found))
        for name, rows in found.items():
            say(start, step, name, np.round(diseases(rows), 3), round(float(diseases(rows).mean()), 3))


def result_file(folder: Path, start: str, step: int, steps: int, patches: int) -> Path:
    """Where the scores at one step of so many lie."""
    return folder / f"{start}-{step}-of-{steps}-by-{patches}.json"


def chain_scores(bench: Bench, folder: Path) -> list[list[float]]:
    """Of the chain itself, kept."""
    path = folder / f"{CHAIN}.json"
    if not path.exists():
        model = Lessons(bench, 0).learned(bench.config)[1]
        seen = (bench.seen("validation", case_id) for case_id in bench.cases("validation"))
        path.write_text(json.dumps([dice(one.truth, decide(observed(one), model).labels) for one in seen]))
    return json.loads(path.read_text())


def table(bench: Bench, marks: list[int], patches: int, folder: Path) -> str:
    """A row a start and step."""
    head = ["start", "steps", "labels by", "mean of diseases", *(t.title for t in DISEASES)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def row(start: str, step: str, name: str, rows: list[list[float]]) -> None:
        each = diseases(rows)
        cells = [start, step, name, f"{each.mean():.3f}", *(f"{d:.2f}" for d in each)]
        lines.append("| " + " | ".join(cells) + " |")

    row("", "", CHAIN, chain_scores(bench, folder))
    for start in STARTS:
        for step in marks:
            path = result_file(folder, start, step, marks[-1], patches)
            if path.exists():
                for name, rows in json.loads(path.read_text()).items():
                    row(start, str(step), name, rows)
    said = (
        f"{bench.counts['train']} training phantoms (seed {SPLITS['train'][1]}), {bench.counts['validation']} "
        f"validation phantoms (seed {SPLITS['validation'][1]}), one seed of training. Taught: voxels with a posterior "
        f"of at least {SURE:g} after fusion; {patches} patches of {' x '.join(map(str, PATCH_VOX))} voxels of 2 mm a "
        "step. Together: the root of the product of both posteriors. 'Taught the truth' is not label-free: what this "
        "network could learn."
    )
    return "\n".join([*lines, "", said])


def main() -> None:
    """Train what is not there yet and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/accuracy"), help="what is kept between runs")
    parser.add_argument(
        "--student",
        type=Path,
        default=Path("demo/accuracy/students/local-0"),
        metavar="MODEL",
        help="whose U-Net the pretrained one starts from (that of accuracy.py)",
    )
    parser.add_argument(
        "--marks", type=int, nargs="+", default=[500, 1000, 2000], help="steps at which to score"
    )
    parser.add_argument("--patches", type=int, default=2, help="a step")
    parser.add_argument("--jobs", type=int, default=1, help="scans at a time")
    parser.add_argument("--starts", default=";".join(STARTS), help="separated by ;")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config: Config = recipe("demo")
    bench, folder = Bench(args.place, config, jobs=args.jobs), args.place / "segmenter"
    folder.mkdir(parents=True, exist_ok=True)
    for start in [] if args.table else args.starts.split(";"):
        if not result_file(folder, start, args.marks[-1], args.marks[-1], args.patches).exists():
            say("==", start)
            measure(bench, start, args.marks, args.patches, args.student, folder)
    record(QUESTION, table(bench, args.marks, args.patches, folder))


if __name__ == "__main__":
    main()
