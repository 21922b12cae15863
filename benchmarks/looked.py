"""Phantoms that were looked at once, students that were trained once: what `accuracy.py` scores, kept in a folder."""

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
from chain import DEVICE, Seen, cut_patches, look_at, together, train
from joblib import Parallel, delayed

import diffseglung
from diffseglung.cells import Cells
from diffseglung.config import Config
from diffseglung.features import extract
from diffseglung.mixture import CellTable, Mixture, fit_mixture
from diffseglung.model import Model
from diffseglung.patches import seed_of
from diffseglung.phantom import PhantomConfig, case_kinds, write_case, write_manifest
from diffseglung.schemas import cells_schema
from diffseglung.student import Student
from diffseglung.teacher import Standardiser
from diffseglung.tissue import scan_reference

# How many, of which seed. The 12 of seed 6103 and the 24 each of 6104 to 6113 were test scans until scored.
SPLITS = {"train": (24, 6101), "validation": (24, 6102), "test": (24, 6114)}
CELLS_A_SCAN = 2304  # as many as jobs/train.py samples of 48 patches
# What a look depends on. A change of the mixture, or of what follows it, costs no new look.
DRAWN_BY = tuple(
    f"phantom/{name}.py"
    for name in ("chest", "cohort", "effusion", "fields", "lesions", "make", "scanner", "trees")
)
LOOKED_BY = (
    "anatomy",
    "teacher",
    "cavity.py",
    "cells.py",
    "grid.py",
    "look.py",
    "patches.py",
    "volume.py",
)
# What a score depends on beyond a look, so that a change of anything else costs nothing.
LABELLED_BY = (
    "baselines.py",
    "features.py",
    "mixture.py",
    "refine.py",
    "segment.py",
    "student.py",
    "tissue.py",
    "unet.py",
)
VARIANTS = {"local": "local", "global": "global", "undistilled": "none"}


def table(cells: Cells, features: np.ndarray, config: Config, which: np.ndarray) -> CellTable:
    """Some cells (a mask on their grid) with a student's features (z, y, x, c), as the mixture takes them."""
    reference = scan_reference(cells.evidence[cells.inside], config.tissue)
    return CellTable(cells.evidence[which], cells.descriptors[which], features[which], reference)


def drawn(seen: Seen, seed: int) -> np.ndarray:
    """The cells that a way may learn from: a mask on the cell grid, the same for every way."""
    rng = np.random.default_rng(seed_of(seed, seen.case_id))
    mask = np.zeros(seen.described.shape, bool)
    mask.flat[rng.permutation(np.flatnonzero(seen.described))[:CELLS_A_SCAN]] = True
    return mask


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A student and the statistics of its teacher; `name` is its contrast and seed."""

    name: str
    network: Student
    standardiser: Standardiser
    steps: int

    @property
    def sha256(self) -> str:
        """Of its weights."""
        state = hashlib.sha256()
        for name, weight in sorted(self.network.state_dict().items()):
            state.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Cells of all training scans in rows, with the scan and, for what is not label-free, the tissue of each."""

    cells: CellTable
    scan: np.ndarray
    tissue: np.ndarray

    def fit(self, config: Config, standardiser: Standardiser) -> Mixture:
        """The mixture of all modes."""
        return fit_mixture(as_arrow(self.cells, self.scan), config.mixture, config.tissue, standardiser)


class Costs:
    """Seconds of processor time by part, added up over all runs: a file in `folder` for each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        own = self.folder / f"{os.getpid()}.json"
        spent = read_json(own)
        spent[part] = spent.get(part, 0.0) + time.process_time() - began
        self.folder.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(spent, indent=1) + "\n")

    def __str__(self) -> str:
        total: dict[str, float] = {}
        for file in self.folder.glob("*.json"):
            for part, seconds in read_json(file).items():
                total[part] = total.get(part, 0.0) + seconds
        return "; ".join(f"{part} {seconds / 60:.1f}" for part, seconds in sorted(total.items()))


class Bench:
    """The phantoms of each split, what was seen of them, the students: made when asked for, and kept."""

    def __init__(
        self,
        place: Path,
        config: Config,
        counts: dict[str, int] | None = None,
        phantoms: PhantomConfig | None = None,
        jobs: int = 1,
    ) -> None:
        self.place, self.config, self.costs = place, config, Costs(place / "costs")
        self.jobs = jobs
        self.counts = {split: count for split, (count, _) in SPLITS.items()} | (counts or {})
        self.drawn_as = phantoms or PhantomConfig()
        sections = (config.volume, config.anatomy, config.patches, config.teacher, config.cavity)
        self.drawn = source(*DRAWN_BY)
        looked = source(*LOOKED_BY), inspect.getsource(look_at), *map(str, sections)
        self.version = key_of(self.drawn, *looked, str(config.student.stride_vox))

    @property
    def workers(self) -> Parallel:
        """For what can be done to several scans at a time."""
        return Parallel(n_jobs=self.jobs)

    def phantoms(self, split: str) -> Path:
        """Their folder: other phantoms lie elsewhere."""
        return self.place / "phantoms" / f"{named(split)}-{self.drawn}"

    def healthy(self, split: str) -> int:
        """How many of them have no disease."""
        return sum(not case_kinds(SPLITS[split][1], index) for index in range(self.counts[split]))

    def cases(self, split: str) -> list[str]:
        """Their names; the phantoms are drawn where they are not there yet."""
        folder, count = self.phantoms(split), self.counts[split]
        drawn = folder / "manifest.csv", folder / f"images/phantom-{count - 1:04d}.nii.gz"
        if not all(
            file.exists() for file in drawn
        ):  # the manifest comes last; more may be asked for than there were
            write_manifest(folder, self.workers(delayed(self._drawn)(split, index) for index in range(count)))
        return [f"phantom-{index:04d}" for index in range(count)]

    def _drawn(self, split: str, index: int) -> dict[str, str]:
        with self.costs(f"phantoms, {split}"):
            row = write_case(self.phantoms(split), SPLITS[split][1], index, self.drawn_as)
        say(split, row["case_id"])
        return row

    def look_at(self, split: str) -> None:
        """What `seen` gives of all phantoms of a split, before anyone asks for it: several at a time."""

        def kept(case_id: str) -> None:
            self.seen(split, case_id)

        self.workers(delayed(kept)(case_id) for case_id in self.cases(split))

    def seen(self, split: str, case_id: str) -> Seen:
        """Anatomy, cavities and cells of one phantom."""
        self.cases(split)
        image, truth = (self.phantoms(split) / kind / f"{case_id}.nii.gz" for kind in ("images", "truth"))
        return self._kept(
            f"seen/{named(split)}/{case_id}-{self.version}",
            f"looking, {split}",
            lambda: look_at(case_id, image, truth, self.config),
        )

    def features(self, student: Trained, split: str, case_id: str) -> np.ndarray:
        """What a student sees in one phantom."""
        c = self.config
        return self._kept(
            f"features/{student.sha256}/{named(split)}/{case_id}-{self.version}",
            f"features of {student.name}, {split}",
            lambda: extract(student.network, self.seen(split, case_id).scan, c.patches, c.features),
        )

    def lesson(self, config: Config, seed: int, student: Trained | None = None) -> Lesson:
        """What a mixture is fitted on."""
        tables, scans, tissues = [], [], []
        for number, case_id in enumerate(self.cases("train")):
            seen = self.seen("train", case_id)
            which = drawn(seen, seed)
            features = self.features(student, "train", case_id) if student else seen.blank
            tables.append(table(seen.cells, seen.per_cell(features), config, which))
            scans.append(np.full(which.sum(), number))
            tissues.append(seen.tissue[which])
        return Lesson(CellTable.together(tables), np.concatenate(scans), np.concatenate(tissues))

    def student(self, contrast: str, seed: int, given: Path | None, *, train: bool) -> Trained | None:
        """The given student of that contrast and seed, or the kept one, or a new one; None if it may not be trained."""
        name, folder = f"{contrast}-{seed}", given or self.place / "students" / f"{contrast}-{seed}"
        if not (folder / "model.json").exists():
            if given:
                raise SystemExit(f"--student {name}={given}: no model is there")
            if not train:
                return None
            self._train(contrast, seed, folder)
        model = Model.load(folder)
        for ours, theirs in (
            (self.config.patches, model.config.patches),
            (self.config.features, model.config.features),
        ):
            if ours != theirs:
                raise SystemExit(f"{folder} was made with {theirs}, the benchmark looks with {ours}")
        return Trained(name, model.to(DEVICE).student, model.standardiser, model.config.train.steps)

    def _train(self, contrast: str, seed: int, folder: Path) -> None:
        """As jobs/train.py would on the training phantoms, in this process."""
        config = self.config
        config = replace(config, train=replace(config.train, variant=VARIANTS[contrast], seed=seed))
        cut = [
            self._kept(
                f"patches/{case_id}-{self.version}",
                "patches",
                lambda i=case_id: cut_patches(i, self.phantoms("train") / "images" / f"{i}.nii.gz", config),
            )
            for case_id in self.cases("train")
        ]
        with self.costs(f"training {contrast}"):
            run, standardiser = train(config, together(cut))
        network = run.ema.eval().requires_grad_(False)
        made = Trained(folder.name, network, standardiser, config.train.steps)
        mixture = self.lesson(config, seed, made).fit(config, standardiser)
        Model(config, network, standardiser, mixture, {"made": "benchmarks/accuracy.py"}).save(folder)

    def _kept(self, name: str, part: str, make: Callable[[], Any]) -> Any:
        path = self.place / f"{name}.joblib"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.costs(part):
                made = make()
            own = path.with_suffix(f".{os.getpid()}.part")  # another process may make the same
            joblib.dump(made, own, compress=("zlib", 1))
            own.replace(path)
            say(part, name)
        return joblib.load(path)


def as_arrow(cells: CellTable, scan: np.ndarray) -> pa.Table:
    """Cells in the form in which `fit_mixture` takes them."""
    schema = cells_schema(cells.features.shape[1])
    nowhere = np.zeros(len(scan), np.int32)
    columns = {
        "case_id": pa.array(scan.astype(str)),
        **{name: pa.array(nowhere) for name in ("z0", "y0", "x0")},
        "cell": pa.array(np.arange(len(scan), dtype=np.int32)),
        "mode_hu": pa.array(np.asarray(cells.reference.mode_hu, np.float32)),
        "mesh": pa.array(np.asarray(cells.reference.log_mesh, np.float32)),
    }
    for name in ("evidence", "descriptors", "features"):
        rows = np.ascontiguousarray(getattr(cells, name), np.float32)
        columns[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
    return pa.Table.from_arrays([columns[field.name] for field in schema], schema=schema)


def named(split: str) -> str:
    """What the files of a split lie under: another seed's are others."""
    return f"{split}-{SPLITS[split][1]}"


def read_json(path: Path) -> dict:
    """What a file says; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def source(*names: str) -> str:
    """A digest of the method's source: of some of its files and folders, or all of it."""
    root = Path(diffseglung.__file__).parent
    places = [root / name for name in names] or [root]
    files = sorted(path for place in places for path in ([place] if place.is_file() else place.rglob("*.py")))
    return key_of(*(path.read_text(encoding="utf-8") for path in files))


def key_of(*parts: str) -> str:
    """A short name for what these words say."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def say(*words: object) -> None:
    """A line of progress."""
    print(*words, flush=True)
