"""Which label-free criterion orders a sweep's settings as the truth would?

Students of recipe `demo` (untrained, without teacher, with the teacher at several temperatures) times settings of
timesteps, clusters, covariance and neighbours. Every criterion is computed as a sweep computes it, on eight phantoms
split into cases that teach and cases that judge; true mean Dice on four other phantoms, which no criterion sees. What
was worked out once is kept in `--out`, so that a run may be stopped; `--table` writes the table from what is there.
"""

import argparse
import json
import resource
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from chain import cut_patches, dice, look_at, together, train
from joblib import Memory
from record import commit, record
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from diffseglung.config import Config, recipe
from diffseglung.criteria import CRITERIA, IN_WORDS
from diffseglung.feature_search import (
    SEEING,
    Judge,
    Setting,
    combined,
    in_words,
    look,
    split_cases,
    timestep_sets,
)
from diffseglung.features import extract
from diffseglung.model import Model
from diffseglung.phantom import write_cohort
from diffseglung.segment import decide
from diffseglung.student import Student
from diffseglung.teacher import Standardiser

QUESTION = "Which label-free criterion orders a sweep's settings as the true Dice does?"
SWEPT, SWEPT_SEED = 8, 1  # as the first of `make demo`
UNSEEN, UNSEEN_SEED = 4, 2
STEPS = 100  # half of what a trial of recipe `demo` takes
RESAMPLES = 2000
# A third of the product's cost: tiles that overlap less, and fewer steps of the fusion at the end.
OVERLAP, FLOW_TIME = 0.25, 2.8


def students() -> dict[str, Config]:
    """What is trained; the teacher is heard as early, in proportion, as in the recipe."""
    base = recipe("demo")
    warmup = tuple(step * STEPS // base.train.steps for step in base.train.warmup)
    base = replace(base, train=replace(base.train, steps=STEPS, warmup=warmup, lr_warmup=6))

    def told(**changes: object) -> Config:
        return replace(base, train=replace(base.train, **changes))

    return {
        "untrained": told(steps=1, warmup=(0, 0), lr=1e-12),
        "no teacher": told(variant="none"),
        "temperature .07": base,
        "temperature .02, weight 1": told(temperature=0.02, weight=1.0),
        "temperature .5": told(temperature=0.5),
    }


def settings(config: Config) -> list[Setting]:
    """The recipe's own and three others, the same for each student; the fusion is the recipe's in all."""
    own, sets, rng = Setting.of(config), timestep_sets(config), np.random.default_rng(0)

    def drawn(combine: str, clusters: int, covariance: str, potts: float) -> Setting:
        timesteps = sets[rng.integers(len(sets))]
        return Setting(timesteps, combine, clusters, covariance, potts, own.flow_time, own.edge_hu)

    return [
        own,
        drawn("concatenate", 5, "diag", 2.0),
        drawn("average", 8, "full", 0.0),
        drawn("concatenate", 10, "tied", 4.0),
    ]


def trained(config: Config, patches: dict[str, np.ndarray], path: Path) -> tuple[Student, Standardiser]:
    """The moving average that the loop of jobs/train.py leaves."""
    if path.exists():
        student = Student(config.student)
        student.load_state_dict(load_file(path))
        return student.eval().requires_grad_(False), Standardiser.fit(patches["teacher_local"])
    print(path.stem, flush=True)
    run, standardiser = train(config, patches, say_every=50)
    save_file(run.ema.state_dict(), path)
    return run.ema.eval(), standardiser


def diseases(rows: list[list[float]]) -> float:
    """The mean over the four diseases that a mixture names of each one's mean over the scans that have it.

    Cavities are found by enclosure, whatever the mixture says.
    """
    return float(np.nanmean(np.array(rows)[:, 1:-1], axis=0).mean())


def measure(place: Path) -> None:
    """Everything that is not there yet, one configuration after another."""
    memory = Memory(place / "kept", verbose=0)
    folders = {"swept": (SWEPT, SWEPT_SEED), "unseen": (UNSEEN, UNSEEN_SEED)}
    for name, (cases, seed) in folders.items():
        if not (place / name / "manifest.csv").exists():
            write_cohort(place / name, cases, seed)
    names = [f"phantom-{index:04d}" for index in range(SWEPT)]
    once, base = memory.cache(cut_patches), recipe("demo")
    patches = together([once(name, str(place / "swept/images" / f"{name}.nii.gz"), base) for name in names])
    teach, judge = split_cases(patches, fewest=8)
    scans = []
    for index in range(UNSEEN):
        paths = [str(place / "unseen" / kind / f"phantom-{index:04d}.nii.gz") for kind in ("images", "truth")]
        scans.append(memory.cache(look_at)(names[index], *paths, base))
    for name, config in students().items():
        wanted = [(setting, place / f"{name}-{i}.json") for i, setting in enumerate(settings(config))]
        if all(path.exists() for _, path in wanted):
            continue
        student, standardiser = trained(config, teach, place / f"{name}.safetensors")
        asked_for = sorted({t for setting, _ in wanted for t in setting.timesteps})
        pool = replace(config.features, timesteps=tuple(asked_for))
        coarse = replace(config.patches, overlap=OVERLAP)
        fields = []
        for seen in scans:
            field = extract(student, seen.scan, coarse, pool)
            fields.append(field.reshape(len(pool.timesteps), -1, *field.shape[1:]))
        asked = Judge(look(student, teach, judge, config, standardiser), config, standardiser)
        for setting, path in wanted:
            if path.exists():
                continue
            began = cpu_s()
            found = asked.scores(setting, list(CRITERIA))
            judged_s = cpu_s() - began
            chosen = setting.put_into(config)
            table = asked.seen.fit._replace(features=asked.seen.columns(setting)[0])
            quick = replace(chosen, refine=replace(chosen.refine, flow_time=FLOW_TIME))
            model = Model(quick, student, standardiser, asked.fit(table, chosen, SEEING))
            which = [pool.timesteps.index(t) for t in setting.timesteps]
            scores: dict[str, list[list[float]]] = {mode: [] for mode in SEEING}
            for seen, field in zip(scans, fields, strict=True):
                flat = field[which].reshape(len(which), field.shape[1], -1)
                features = combined(np.moveaxis(flat, 1, 2), setting.combine).T.reshape(-1, *field.shape[2:])
                known = seen.with_features(features)
                for mode in SEEING:
                    scores[mode].append(dice(seen.truth, decide(known, model, mode).labels))
            row = {
                "student": name,
                "setting": asdict(setting),
                "criteria": found,
                "dice": {mode: diseases(rows) for mode, rows in scores.items()},
                "judged_s": judged_s,
                "cpu_s": cpu_s(),
                "commit": commit(),
            }
            part = path.with_suffix(".part")
            part.write_text(json.dumps(row, indent=1) + "\n")
            part.replace(path)
            print(name, in_words(setting.timesteps), row["dice"], flush=True)


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def correlation(criterion: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of two tables (student, setting), and the 95% interval of its bootstrap.

    Students and settings are drawn anew, not their combinations: those of one student, or of one setting, are no
    independent witnesses (the pigeonhole bootstrap of Owen 2007).
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        rows, columns = (rng.integers(0, n, n) for n in truth.shape)
        one, other = (table[np.ix_(rows, columns)].ravel() for table in (criterion, truth))
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            found.append(spearmanr(one, other).statistic)
    return rank(criterion, truth), *map(
        float, np.percentile(found, [2.5, 97.5]) if found else (np.nan, np.nan)
    )


def rank(criterion: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is all the same."""
    if min(np.ptp(criterion), np.ptp(truth)) <= 0:
        return float("nan")
    return float(spearmanr(criterion.ravel(), truth.ravel()).statistic)


def table(rows: list[dict]) -> str:
    """One row a criterion: its rank correlation with the true Dice, by mode, over all and within a student."""
    names = list(dict.fromkeys(row["student"] for row in rows))
    whole = [name for name in names if sum(row["student"] == name for row in rows) == len(rows) // len(names)]
    rows = [row for row in rows if row["student"] in whole]
    shape = (len(whole), -1)
    truth = {mode: np.reshape([row["dice"][mode] for row in rows], shape) for mode in SEEING}
    head = ["criterion", "mean of the modes"]
    head += [title for mode in SEEING for title in (mode, f"{mode}, within a student")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    found = {}
    for name in CRITERIA:
        cells = []
        for mode in SEEING:
            values = np.reshape([row["criteria"][mode][name] for row in rows], shape)
            found[name, mode] = correlation(values, truth[mode])
            within = np.nanmean([rank(*pair) for pair in zip(values, truth[mode], strict=True)] + [np.nan])
            cells += ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*found[name, mode]), f"{within:+.2f}"]
        mean = np.mean([found[name, mode][0] for mode in SEEING])
        lines.append("| " + " | ".join([f"`{name}`", f"{mean:+.2f}", *cells]) + " |")
    lines += ["", *(f"- `{name}`: {words}." for name, words in IN_WORDS.items()), ""]
    head = ["student", "timesteps", "combined", "K", "covariance", "Potts"]
    head += [f"Dice, {mode}" for mode in SEEING]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        s = row["setting"]
        cells = [row["student"], in_words(s["timesteps"]), s["combine"], s["clusters"], s["covariance"]]
        cells += [f"{s['potts']:g}", *(f"{row['dice'][mode]:.3f}" for mode in SEEING)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    judged = np.median([row["judged_s"] for row in rows])
    lines += [
        "",
        f"{len(rows)} configurations: {len(whole)} students of {STEPS} steps times {len(rows) // len(whole)} settings; "
        f"criteria on {SWEPT} phantoms (seed {SWEPT_SEED}) "
        f"split as a sweep splits them, Dice on {UNSEEN} others (seed {UNSEEN_SEED}): mean of the four diseases that "
        f"a mixture names, tiles overlapping by {OVERLAP:g}, fusion for {FLOW_TIME:g}. Spearman's rank "
        "correlation with the 95% interval of a bootstrap over students and settings, both drawn anew. All criteria "
        "of a configuration together: "
        f"{judged:.1f} CPU seconds (median). All of it: {max(row['cpu_s'] for row in rows) / 60:.0f} CPU minutes.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Do what is not done yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo/criteria"), help="results and what is shared")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        measure(args.out)
    order = [f"{name}-{i}.json" for name, config in students().items() for i in range(len(settings(config)))]
    rows = [json.loads((args.out / name).read_text()) for name in order if (args.out / name).exists()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over students that all came to the same
        record(QUESTION, table(rows))


if __name__ == "__main__":
    main()
