"""What does a model do on real scans: with lesions drawn into healthy ones, and where little is known but no truth?

The scans are those of DIFFSEGLUNG_CT, by the names of `diffseglung.real`; without that variable there is nothing to
measure, and the section of the results stays as it is. `--public DIR` draws lesions into the demo's two as well,
fetched into DIR where it lacks them. What the jobs leave in `--place` is not made again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from record import record

from diffseglung.evaluate import scores_table_markdown
from diffseglung.model import Model
from diffseglung.real import find_known, measures_markdown
from diffseglung_ray.public_scans import fetch_public_scans

QUESTION = "What does a model do on real scans, with lesions drawn in and with its own?"
JOBS = Path(__file__).resolve().parents[1] / "jobs"
CASES, SEED = 4, 9


def job(name: str, *words: object) -> None:
    """Run a job as a program."""
    subprocess.run([sys.executable, str(JOBS / f"{name}.py"), *map(str, words)], check=True)


def evaluated(place: Path, name: str, table: str, *words: object) -> list[dict]:
    """The rows of a table that jobs/evaluate.py leaves; the model is called ours."""
    out = place / name
    if not (out / f"{table}.parquet").exists():
        job("evaluate", *words, "--out", out)
    rows = pq.read_table(out / f"{table}.parquet").to_pylist()
    address = next(row["method"] for row in rows)
    return [row | {"method": row["method"].replace(address, "ours", 1)} for row in rows]


def inserted(place: Path, name: str, hosts: Sequence[Path]) -> Path:
    """The manifest of the scans with lesions drawn into them."""
    manifest = place / name / "manifest.csv"
    if not manifest.exists():
        into = [word for host in hosts for word in ("--into", host)]
        job("phantom", "--out", manifest.parent, "--cases", CASES, "--seed", SEED, "--workers", 0, *into)
    return manifest


def main() -> None:
    """Draw, evaluate twice, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=Path("demo/real"), help="what is kept between runs")
    parser.add_argument(
        "--model",
        default="demo/accuracy/students/local-0",
        help="a folder or MLflow address (that of accuracy.py)",
    )
    parser.add_argument(
        "--public", type=Path, metavar="DIR", help="the demo's two scans have lesions drawn in too"
    )
    args = parser.parse_args()
    folder = os.environ.get("DIFFSEGLUNG_CT")
    if not folder:
        print("DIFFSEGLUNG_CT names no folder of real scans: nothing is measured")
        return
    hosts = [one.image for one in find_known(folder) if one.healthy]
    common = ("--model", args.model, "--set", "resources.workers=1")
    measures = evaluated(args.place, "measures", "measures", "--real", folder, *common)

    def scores(name: str, hosts: Sequence[Path]) -> str:
        manifest = inserted(args.place, name, hosts)
        rows = evaluated(
            args.place, f"{name}_scores", "scores", "--cohort", manifest, *common, "--max-failed", 0
        )
        return scores_table_markdown(rows)

    parts = [
        "What is known of real scans, without a truth:",
        measures_markdown(measures),
        f"Lesions drawn into healthy ones ({CASES} cases, seed {SEED}; one of four is left healthy):",
        scores("inserted", hosts),
    ]
    if args.public:
        fetch_public_scans(args.public)
        public = [path for path in sorted(args.public.glob("*.nrrd")) if "_tumour" not in path.name]
        parts += [
            "The same into the demo's two patients, whose own tumours are healthy lung in this truth, so that finding "
            "them counts as an error:",
            scores("public", public),
        ]
    parts.append(about(args.model))
    record(QUESTION, "\n\n".join(parts))


def about(model: str) -> str:
    """What is to be known of the model."""
    if not Path(model, "model.json").is_file():
        return f"Model: {model}."
    found = Model.load(model)
    steps, name = found.config.train.steps, found.config.name
    return f"Model: recipe {name}, {steps} steps, weights and settings {found.sha256[:12]}."


if __name__ == "__main__":
    main()
