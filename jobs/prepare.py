"""Turn a cohort of chest CTs into patches to learn from.

examples:
  python jobs/prepare.py --cohort scans/ --workspace work
  python jobs/prepare.py --cohort study.csv --workspace work --recipe paper --set resources.workers=8
  ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
      python jobs/prepare.py --cohort s3://study/manifest.csv --workspace s3://study/work

A cohort is a folder, a CSV or Parquet manifest (case_id, image and optionally lungs), or a URI of either.
Run it again after an interruption: what is done stays done.
"""

from diffseglung_ray.config import JobParser, add_config_arguments, config_from, run_job, share


def main() -> None:
    """Parse, then prepare."""
    parser = JobParser(__doc__)
    parser.add_argument("--cohort", required=True, help="folder, manifest or URI of the scans")
    parser.add_argument("--workspace", required=True, help="folder or URI for the patches")
    parser.add_argument("--max-failed", type=share, default=0.1, help="share of cases that may fail (0.1)")
    add_config_arguments(parser)
    args = parser.parse_args()
    config = config_from(args)
    from diffseglung_ray.preparation import prepare

    prepare(args.cohort, args.workspace, config, args.max_failed)


if __name__ == "__main__":
    run_job(main)
