"""Does distillation help: what does the bottleneck hold with and without the teacher, and what does the score gain?

Every way is trained `--seeds` times on ten digital patients, as jobs/train.py would (on a GPU where there is one), and
asked about eight unseen ones. Truth is used for measuring alone. Each (way, training, seed) is a process of its own
that leaves its student and one JSON file in `--out`; what is there is not done again, so that a run may be stopped, and
`--table` writes the table from what there is. A student that is there is asked anew, not trained anew, once the method
that asks it has changed. `--trainings 400x8 800x64`: 400 steps of 8 patches, and 800 of 64.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from chain import DEVICE, Columns, Seen, cut_patches, dice, diseases, look_at, together, train
from joblib import Memory, Parallel, delayed
from looked import DRAWN_BY, LABELLED_BY, LOOKED_BY, source
from record import commit, record
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffseglung.config import Config, recipe
from diffseglung.distill import Distillation, Draw, distillation_loss, prepare_batch
from diffseglung.features import extract, width
from diffseglung.labels import TISSUES
from diffseglung.mixture import CellTable, fit_mixture, physics
from diffseglung.model import Model
from diffseglung.patches import Scan
from diffseglung.phantom import write_case
from diffseglung.schemas import cells_schema
from diffseglung.segment import decide
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import scan_reference
from diffseglung_ray.fitting import PATCHES_A_BATCH, CellSampler, as_schema
from diffseglung_ray.training_process import COLUMNS

QUESTION = "Does distillation help: bottleneck and scores with the teacher and without, over seeds?"
COHORTS = {"train": (10, 1), "test": (8, 2)}  # how many patients, of which seed: as `make demo`
PROBE_CELLS = 1500  # of each tissue that a probe learns from
RETRIEVAL_STEP, RETRIEVAL_ROUNDS = 10, 16
NETWORKLESS, TWO_LEVELS = "no network", "local, two levels"
DEFAULT, FEATURES_IN = "anchored", "anchored_distilled"
# A result of another source is measured anew, with the student that was kept.
ASKED_BY = source(*DRAWN_BY, *LOOKED_BY, *LABELLED_BY)

Numbers = dict[str, float]


def ways(training: str) -> dict[str, tuple[str, Config]]:
    """What is compared: name -> (in words, settings). The teacher is heard from 3/16 of the steps, fully from 3/8."""
    steps, batch = (int(number) for number in training.split("x"))
    told = {"steps": steps, "batch": batch, "warmup": (3 * steps // 16, 3 * steps // 8)}

    def of(name: str, **changes: str) -> Config:
        base = recipe(name)
        return replace(base, train=replace(base.train, **told, **changes))

    return {
        NETWORKLESS: ("descriptors and HU percentiles alone", of("demo")),
        "off": ("weight 0", of("demo", variant="none")),
        "local": ("each position against its own 32 mm window (default)", of("demo")),
        "global": ("whole patches, as published", of("demo", variant="global")),
        TWO_LEVELS: ("as local; the level above the bottleneck is read too, on 8 mm", of("two_levels")),
        "fine": ("a bottleneck of 8 mm against 16 mm windows", of("fine")),
        "fine, off": ("the same, weight 0", of("fine", variant="none")),
        "context": ("each position against the 64 mm around it", of("context")),
    }


def asked(seen: Seen) -> np.ndarray:
    """Cells (a mask on the cell grid) that a probe is asked about."""
    return seen.described & (seen.tissue > 0)


def known_without(seen: Seen, config: Config) -> np.ndarray:
    """Descriptors, percentiles in HU, and percentiles and mesh beside the scan's own lung, of these cells: (n, 45)."""
    evidence, descriptors = (a[asked(seen)] for a in (seen.cells.evidence, seen.cells.descriptors))
    reference = scan_reference(seen.cells.evidence[seen.cells.inside], config.tissue)
    table = CellTable(evidence, descriptors, descriptors[:, :0], reference)
    return np.concatenate([descriptors, evidence[:, :5], physics(table)], axis=1)


class Cohorts:
    """The phantoms to learn from and the unseen ones; what is worked out of them is kept in `place`."""

    def __init__(self, place: Path, config: Config) -> None:
        # Of the settings, those on which patches depend, and looks.
        base = recipe("demo")
        self.plain = replace(base, student=config.student, patches=config.patches)
        same_window = replace(config.patches, local_window_vox=base.patches.local_window_vox)
        self.looked = replace(self.plain, patches=same_window)
        self.place, memory = place, Memory(place / "kept", verbose=0)
        self._look, self._cut = memory.cache(look_at), memory.cache(cut_patches)

    def draw(self, name: str, index: int) -> None:
        """One phantom, where it is not there yet."""
        if not self.file(name, index, "truth").exists():
            write_case(self.place / name, COHORTS[name][1], index)

    def file(self, name: str, index: int, kind: str) -> Path:
        """Of one phantom: its image or its truth."""
        return self.place / name / kind / f"phantom-{index:04d}.nii.gz"

    def look(self, name: str, index: int) -> Seen:
        """What is seen of one phantom without a network."""
        image, truth = (str(self.file(name, index, kind)) for kind in ("images", "truth"))
        return self._look(f"phantom-{index:04d}", image, truth, self.looked)

    def cut(self, name: str, index: int) -> Columns:
        """The patches of one phantom."""
        return self._cut(f"phantom-{index:04d}", str(self.file(name, index, "images")), self.plain)


def all_cases() -> list[tuple[str, int]]:
    """Every phantom of both cohorts."""
    return [(name, index) for name, (count, _) in COHORTS.items() for index in range(count)]


def work_out(place: Path, configs: list[Config], jobs: int) -> None:
    """Draw the phantoms, look at them and cut their patches, so many at a time, before anyone asks for them."""

    def done(what: Callable, *case: object) -> None:
        what(*case)  # it is kept on disk: nothing has to come back

    cohorts = [Cohorts(place, config) for config in configs]
    workers = Parallel(n_jobs=jobs)
    workers(delayed(done)(cohorts[0].draw, *case) for case in all_cases())
    workers(
        delayed(done)(what, *case) for one in cohorts for what in (one.look, one.cut) for case in all_cases()
    )


@torch.no_grad()
def retrieval(run: Distillation, unseen: list[Columns]) -> Numbers:
    """How often a position finds its own descriptor first among those of one patch from each unseen scan."""
    found: list[Numbers] = []
    for turn in range(min(RETRIEVAL_ROUNDS, *(len(one["hu"]) for one in unseen))):
        rows = {name: torch.from_numpy(np.stack([one[name][turn] for one in unseen])) for name in COLUMNS}
        batch = prepare_batch(rows, run)
        generator = torch.Generator().manual_seed(turn)
        drawn = (
            torch.randn(batch["clean"].shape, generator=generator),
            torch.full((len(unseen),), RETRIEVAL_STEP),
            torch.rand(len(unseen), int(batch["known"][0].numel()), generator=generator),
        )
        draw = Draw(*(each.to(run.device) for each in drawn))
        found.append(distillation_loss(run.network, batch, draw, run, 1.0)[1])
    keys = ("retrieval", "distill_loss", "effective_rank", "noise_loss")
    return {f"unseen_{key}": float(np.mean([one[key] for one in found])) for key in keys}


def features_of(student: Student, scan: Scan, config: Config, *, blind: bool) -> np.ndarray:
    """What the student sees of a scan; nothing, and at no cost, where nobody will look at it."""
    if blind:
        return np.zeros(
            (width(student, config.features), *(n // student.config.stride_vox for n in scan.hu.shape))
        )
    return extract(student, scan, config.patches, config.features)


def gather(student: Student, config: Config, patches: list[Columns]) -> pa.Table:
    """What the mixture is fitted on, as jobs/train.py gathers it."""
    sampler, schema = (
        CellSampler(student, config.features, 1.0),
        cells_schema(width(student, config.features)),
    )
    parts = [
        as_schema(sampler({name: column[start : start + PATCHES_A_BATCH] for name, column in one.items()}), schema)
        for one in patches
        for start in range(0, len(one["hu"]), PATCHES_A_BATCH)
    ]  # fmt: skip
    return pa.concat_tables(parts).combine_chunks()


def probes(seed: int) -> dict[str, Callable]:
    """The two questioners: what can be read off linearly, and what is there at all."""
    hidden = MLPClassifier(64, alpha=1e-3, early_stopping=True, max_iter=100, random_state=seed)
    return {
        "linear": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3)),
        "mlp": lambda: make_pipeline(StandardScaler(), clone(hidden)),
    }


def probe(views: dict[str, Columns], tissue: Columns, seed: int) -> Numbers:
    """Mean recall over the tissues of unseen scans, for each view of the cells and each probe.

    Taught on equally many cells of each tissue, the same ones for every view and every way.
    """
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([draw(np.flatnonzero(tissue["train"] == t), rng) for t in TISSUES])
    found = {}
    for (view, rows), (name, make) in product(views.items(), probes(seed).items()):
        fitted = make().fit(rows["train"][drawn], tissue["train"][drawn])
        found[f"{view}/{name}"] = balanced_accuracy_score(tissue["test"], fitted.predict(rows["test"]))
        print(view, name, round(found[f"{view}/{name}"], 3), flush=True)
    return found


def draw(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """PROBE_CELLS of them; some more than once where there are fewer."""
    return rng.choice(cells, PROBE_CELLS, replace=len(cells) < PROBE_CELLS)


def measure(way: str, training: str, seed: int, place: Path) -> dict:
    """Train one way with one seed and ask it everything."""
    torch.set_num_threads(1)
    _, config = ways(training)[way]
    config = replace(config, train=replace(config.train, seed=seed))
    cohorts = Cohorts(place, config)
    looks = {name: [cohorts.look(name, i) for i in range(count)] for name, (count, _) in COHORTS.items()}
    patches = {name: [cohorts.cut(name, i) for i in range(count)] for name, (count, _) in COHORTS.items()}
    found: Numbers = {}
    modes = [DEFAULT, FEATURES_IN, "published"]
    students = place / "students"
    # The way with two levels reads what the local one was taught.
    taught = students / f"{'local' if way == TWO_LEVELS else way}-{training}-{seed}"
    if way == NETWORKLESS:
        student = Student(config.student).eval()
        standardiser = Standardiser.fit(together(patches["train"])["teacher_local"])
        modes = [DEFAULT, "rule"]  # which do not look at the features
    elif kept := kept_model(taught):
        student, standardiser = kept.to(DEVICE).student, kept.standardiser
        found = of_training(result_file(place, way, training, seed))
    else:
        run, standardiser = train(config, together(patches["train"]))
        found |= retrieval(run, patches["test"])
        student = run.ema.eval()
    student.requires_grad_(False)
    seen = {
        name: [features_of(student, one.scan, config, blind=way == NETWORKLESS) for one in scans]
        for name, scans in looks.items()
    }

    def both(of: Callable[[Seen, np.ndarray], np.ndarray]) -> Columns:
        return {
            name: np.concatenate([of(one, f) for one, f in zip(scans, seen[name], strict=True)])
            for name, scans in looks.items()
        }

    tissue = both(lambda one, _: one.tissue[asked(one)])
    views = {"beside": both(lambda one, _: known_without(one, config))}
    if way != NETWORKLESS:
        features = both(lambda one, f: one.per_cell(f)[asked(one)])
        views = {
            "alone": features,
            "beside": {k: np.concatenate([views["beside"][k], features[k]], axis=1) for k in features},
        }
        target = both(lambda one, _: standardiser.apply(one.cells.descriptors[asked(one)]))
        ridge = make_pipeline(StandardScaler(), Ridge(10.0)).fit(features["train"], target["train"])
        left = target["test"] - ridge.predict(features["test"])
        found["teacher_r2"] = float(1 - left.var(axis=0).sum() / target["test"].var(axis=0).sum())
    found |= probe(views, tissue, seed)
    mixture = fit_mixture(
        gather(student, config, patches["train"]), config.mixture, config.tissue, standardiser
    )
    model = Model(config, student, standardiser, mixture, {"made": "benchmarks/distillation.py"})
    if way != NETWORKLESS:
        model.save(students / f"{way}-{training}-{seed}")
    scores: dict[str, list[list[float]]] = {mode: [] for mode in modes}
    for one, f in zip(looks["test"], seen["test"], strict=True):
        for mode in modes:
            scores[mode].append(dice(one.truth, decide(one.with_features(f), model, mode).labels))
    found |= {f"dice/{mode}": float(diseases(rows).mean()) for mode, rows in scores.items()}
    counts = {t.key: int((tissue["test"] == t).sum()) for t in TISSUES}
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    made = {
        "commit": commit(),
        "source": ASKED_BY,
        "training": training,
        "cpu_s": cpu.ru_utime + cpu.ru_stime,
    }
    made |= {"unseen_cells": counts}
    return {"way": way, "seed": seed, **made, "numbers": found, "dice": scores}


def kept_model(folder: Path) -> Model | None:
    """What an earlier run left."""
    return Model.load(folder) if (folder / "model.json").exists() else None


def of_training(path: Path) -> Numbers:
    """What an earlier result says of the training, which is not done again."""
    before = json.loads(path.read_text())["numbers"] if path.exists() else {}
    return {name: value for name, value in before.items() if name.startswith("unseen_")}


def result_file(place: Path, way: str, training: str, seed: int) -> Path:
    """Where one process leaves its result."""
    return place / f"{way}-{training}-{seed}.json"


def results(place: Path, trainings: list[str], seeds: int) -> Iterator[dict]:
    """What has been measured with the method as it is."""
    for way, training, seed in product(ways(trainings[0]), trainings, range(seeds)):
        path = result_file(place, way, training, seed)
        if path.exists():
            found = json.loads(path.read_text())
            if found.get("source") == ASKED_BY:
                yield found


def table(done: list[dict], trainings: list[str]) -> str:
    """One row a way and its training: mean and standard deviation over seeds; what it adds is paired by seed."""
    numbers = {(one["way"], one["training"], one["seed"]): one["numbers"] for one in done}
    without = {seed: found for (way, _, seed), found in numbers.items() if way == NETWORKLESS}
    titles = {
        "teacher_r2": "teacher R²",
        "unseen_retrieval": "retrieval",
        "alone/linear": "linear probe, alone",
        "alone/mlp": "MLP, alone",
        "beside/linear": "linear, beside physics",
        "beside/mlp": "MLP, beside physics",
    }
    head = [
        "way",
        "steps x patches",
        "seeds",
        *titles.values(),
        "MLP: added to physics",
        "Dice, features in",
        "added to the default",
        "Dice, published",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for way, training in product(ways(trainings[0]), trainings):
        mine = {seed: found for (*key, seed), found in numbers.items() if key == [way, training]}
        if not mine:
            continue
        keys = [*titles, f"dice/{FEATURES_IN}", "dice/published"]
        cells = [spread([one[key] for one in mine.values() if key in one]) for key in keys]
        with_network = way != NETWORKLESS
        read = [
            mine[s]["beside/mlp"] - without[s]["beside/mlp"] for s in mine if with_network and s in without
        ]
        gained = [
            one[f"dice/{FEATURES_IN}"] - one[f"dice/{DEFAULT}"] for one in mine.values() if with_network
        ]
        cells.insert(len(titles), spread(read, signed=True))
        cells.insert(len(titles) + 2, spread(gained, signed=True))
        lines.append(
            "| "
            + " | ".join([way, training.replace("x", " x ") if with_network else "-", str(len(mine)), *cells])
            + " |"
        )
    default = list(without.values())
    said = "; ".join(f"{way}: {words}" for way, (words, _) in ways(trainings[0]).items())
    (cases, seed), (unseen, other) = COHORTS["train"], COHORTS["test"]
    lines += [
        "",
        f"Recipe demo, {cases} training phantoms (seed {seed}), {unseen} unseen ones (seed {other}), mean ± standard "
        f"deviation over seeds. {said}.",
        "",
        "Probes: mean recall over the six tissues of 8 mm cells of unseen scans, taught on the truth of training "
        f"phantoms (for measuring alone), {PROBE_CELLS} cells a tissue; physics: descriptors + HU percentiles. "
        "Teacher R²: of the cells' standardised descriptors by ridge regression on the features. Retrieval: a position "
        "finds its own descriptor first among those of eight unseen patches (local: of 128, global: of 8). Dice: mean "
        "of the five diseases on unseen scans, label-free.",
    ]
    if default:
        means = {m: spread([one[f"dice/{m}"] for one in default]) for m in (DEFAULT, "rule")}
        lines.append(
            f"Dice without features: {means[DEFAULT]} (default), {means['rule']} (prototypes alone)."
        )
    lines += ["", f"CPU-seconds a process: {spread([one['cpu_s'] for one in done], digits=0)}."]
    return "\n".join(lines)


def spread(values: list[float], *, signed: bool = False, digits: int = 3) -> str:
    """Mean and standard deviation; the mean alone of one."""
    if not values:
        return "-"
    mean = f"{np.mean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    """Do what is not done yet, in processes of their own, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo/distillation"), help="results and what is shared"
    )
    parser.add_argument(
        "--trainings", nargs="+", default=["400x8"], metavar="STEPSxPATCHES", help="how long, by how many"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", help="separated by ; - all of them where not given")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SEED"), help="one process's work")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        way, training, seed = args.one[0], args.trainings[0], int(args.one[1])
        path = result_file(args.out, way, training, seed)
        path.with_suffix(".part").write_text(
            json.dumps(measure(way, training, seed, args.out), indent=1) + "\n"
        )
        path.with_suffix(".part").replace(path)
        return
    done = {
        (one["way"], one["training"], one["seed"]) for one in results(args.out, args.trainings, args.seeds)
    }
    todo = [] if args.table else [one for one in order(args) if one not in done]
    if todo:
        settings = ways(args.trainings[0])
        asked_of = {str(settings[way][1].patches): settings[way][1] for way, _, _ in todo}
        work_out(args.out, list(asked_of.values()), args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda one: in_a_process(args.out, *one), todo))
    record(QUESTION, table(list(results(args.out, args.trainings, args.seeds)), args.trainings))


def in_a_process(place: Path, way: str, training: str, seed: int) -> None:
    """`measure` by a process of its own."""
    print(f"== {way}, {training}, seed {seed}", flush=True)
    command = [sys.executable, __file__, "--out", str(place), "--trainings", training]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--one", way, str(seed)], check=True, env=one_thread)


def order(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Seed by seed, so that a run that is stopped has comparable ways; no network has no training."""
    return [
        (way, training, seed)
        for training, seed, way in product(args.trainings, range(args.seeds), ways(args.trainings[0]))
        if (not args.ways or way in args.ways.split(";"))
        and (way != NETWORKLESS or training == args.trainings[0])
    ]


if __name__ == "__main__":
    main()
