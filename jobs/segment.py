"""Segment a cohort of chest CTs with a trained model: tissue maps, a table of litres, and a report.

examples:
  python jobs/segment.py --cohort scans/ --model models:/diffseglung@champion --out results
  python jobs/segment.py --cohort study.csv --model demo/model --out results --probabilities
  python jobs/segment.py --cohort scans/ --model demo/model --out results --dry-run
  ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
      python jobs/segment.py --cohort s3://study/scans --model models:/diffseglung/3 --out s3://study/results

Run it again after an interruption: what the same model did on the same scans is skipped.
A scan that cannot be segmented is a row with the reason; more than --max-failed of them end the job 1.
"""

from functools import partial

from diffseglung_ray.config import JobParser, add_config_arguments, config_of_model, run_job, share


def main() -> None:
    """Parse, then segment."""
    parser = JobParser(__doc__)
    parser.add_argument("--cohort", required=True, help="folder, manifest or URI of the scans")
    parser.add_argument(
        "--model", required=True, help="folder, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID"
    )
    parser.add_argument("--out", required=True, help="folder or URI for the results")
    parser.add_argument(
        "--probabilities", action="store_true", help="also write the six posteriors of each case"
    )
    parser.add_argument("--max-failed", type=share, default=0.1, help="share of cases that may fail (0.1)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say, from headers, what would run, what not and for how long",
    )
    add_config_arguments(parser, of_model=True)
    args = parser.parse_args()
    if args.dry_run:
        from diffseglung_ray.preflight import dry_run

        return dry_run(
            args.cohort, args.model, args.out, partial(config_of_model, args), max_failed=args.max_failed
        )
    from diffseglung_ray.segmentation import segment_cohort

    return segment_cohort(
        args.cohort, args.model, args.out, partial(config_of_model, args),
        probabilities=args.probabilities, max_failed=args.max_failed,
    )  # fmt: skip


if __name__ == "__main__":
    run_job(main)
