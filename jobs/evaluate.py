"""Measure models and baselines against the truth of a cohort: Dice, HD95, and how far to believe posteriors.

examples:
  python jobs/evaluate.py --cohort phantoms/manifest.csv --out scores --model demo/model
  python jobs/evaluate.py --cohort study.csv --out scores --model models:/diffseglung/3 --model other/model
  python jobs/evaluate.py --real scans --out measures --model models:/diffseglung@candidate

The cohort is a manifest with a column `truth`: label maps as in segmentation.nii.gz. Real scans without a truth
are a folder in which names say what is known: <scan>_slices.json (infected slices), <scan>_tumour.nii.gz, normal-*,
emphysema-*. Without --model only the baselines are measured. Each model is measured in every mode of its mixture,
the published one among them.
"""

from functools import partial

from diffseglung_ray.config import (
    JobParser,
    add_config_arguments,
    config_of_model,
    resources_from,
    run_job,
    share,
)


def main() -> None:
    """Parse, then evaluate."""
    parser = JobParser(__doc__)
    scans = parser.add_mutually_exclusive_group(required=True)
    scans.add_argument("--cohort", help="manifest with columns case_id, image, truth")
    scans.add_argument("--real", metavar="FOLDER", help="folder of real scans of which something is known")
    parser.add_argument("--out", required=True, help="folder or URI for the scores")
    parser.add_argument(
        "--model", action="append", default=[], dest="models", help="a model; may be given again"
    )
    parser.add_argument("--max-failed", type=share, default=0.1, help="share of cases that may fail (0.1)")
    add_config_arguments(parser, of_model=True)
    args = parser.parse_args()
    resources = resources_from(args)
    from diffseglung_ray.evaluation import evaluate_cohort, evaluate_real

    evaluate = evaluate_real if args.real else evaluate_cohort
    configure = partial(config_of_model, args)
    evaluate(args.real or args.cohort, args.out, args.models, configure, resources, args.max_failed)


if __name__ == "__main__":
    run_job(main)
