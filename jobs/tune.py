"""Search the distillation's settings without any label; the best, trained in full, becomes alias `tuned`.

examples:
  python jobs/tune.py --workspace demo/work --trials 8
  ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
      python jobs/tune.py --workspace s3://study/work --trials 64 --recipe paper

Leaves W/sweep.parquet, a row for each time that a setting was judged, and nested runs in MLflow.
"""

from diffseglung_ray.config import JobParser, add_config_arguments, config_from, run_job


def main() -> None:
    """Parse, search, say what came of it."""
    parser = JobParser(__doc__)
    parser.add_argument("--workspace", required=True, help="folder or URI that jobs/prepare.py filled")
    parser.add_argument("--trials", type=int, default=8, help="settings to try (8)")
    parser.add_argument("--alias", default="tuned", help="registry alias for the best model (tuned)")
    add_config_arguments(parser)
    args = parser.parse_args()
    config = config_from(args)
    from diffseglung_ray.tuning import tune

    best = tune(config, args.workspace, args.trials, args.alias)
    print(f"{best.model.uri} is now models:/{config.tracking.model}@{args.alias}, with {best.in_words}")


if __name__ == "__main__":
    run_job(main)
