"""Search settings without any label; the best model becomes alias `tuned`.

examples:
  python jobs/tune.py --workspace demo/work --trials 8
  python jobs/tune.py --workspace demo/work --stage features --model models:/diffseglung@candidate --trials 200
  python jobs/tune.py --workspace demo/work --stage train --trials 16 --set sweep.criterion=silhouette
  ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
      python jobs/tune.py --workspace s3://study/work --trials 64 --recipe paper --set sweep.gpus_per_trial=0.25

stages:
  train     temperature, weight, projection size, learning rates: short trainings, judged at rungs, the worse stopped
  features  timesteps, clusters, covariance, neighbours: on a student that is there already (--model)
  both      each trial searches a few settings of the features at each rung; the best trial is trained in full, and
            sweep.settings of the features are searched on its student

Leaves W/sweep.parquet (a row a trial), W/sweep.html to look at, and a run with nested runs in MLflow. A sweep that was
killed goes on when the same command is given again. What "better" means without a label: docs/sweeps.md.
"""

from diffseglung_ray.config import JobParser, add_config_arguments, config_from, run_job


def main() -> None:
    """Parse, search, say what came of it."""
    parser = JobParser(__doc__)
    parser.add_argument("--workspace", required=True, help="folder or URI that jobs/prepare.py filled")
    parser.add_argument("--trials", type=int, default=8, help="settings to try (8)")
    parser.add_argument("--stage", default="both", help="what is searched: train, features or both (both)")
    parser.add_argument("--model", help="--stage features: the student (what jobs/train.py left)")
    parser.add_argument("--alias", default="tuned", help="registry alias for the best model (tuned)")
    add_config_arguments(parser)
    args = parser.parse_args()
    config = config_from(args)
    from diffseglung_ray.tuning import tune

    best = tune(config, args.workspace, args.trials, args.alias, args.stage, args.model)
    print(f"{best.model.uri} is now models:/{config.tracking.model}@{args.alias}, with {best.in_words}")


if __name__ == "__main__":
    run_job(main)
