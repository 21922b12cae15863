"""The whole road on this machine: what `make demo` runs. A quarter of an hour is its goal, not yet measured.

Phantoms with known truth and two public CTs, patches and teacher, distillation, mixture, registry, segmentation
from models:/diffseglung@candidate, scores beside the label-free baselines, report.

examples:
  python jobs/demo.py --out demo
  python jobs/demo.py --out quick --recipe smoke
"""

from functools import partial
from pathlib import Path

from diffseglung_ray.cluster import refuse_fleeting
from diffseglung_ray.config import JobParser, add_config_arguments, config_from, config_of_model, run_job


def main() -> None:
    """Parse, then run every stage."""
    parser = JobParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything the demo makes")
    add_config_arguments(parser)
    args = parser.parse_args()
    config = config_from(args)
    refuse_fleeting(out=args.out)
    from diffseglung_ray.demo import run_demo

    model = f"models:/{config.tracking.model}@{config.tracking.alias}"
    run_demo(args.out, config, model, partial(config_of_model, args))


if __name__ == "__main__":
    run_job(main)
