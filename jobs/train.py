"""Train a model on a prepared workspace; it becomes a new version of the registered model `diffseglung`.

examples:
  python jobs/train.py --workspace demo/work
  python jobs/train.py --workspace /data/work --recipe paper --set resources.workers=4
  ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
      python jobs/train.py --workspace s3://study/work --init models:/diffseglung@champion --alias tuned

The run and the model go to MLFLOW_TRACKING_URI, or to mlflow.db and mlartifacts here. Only when the new
version has segmented a test scan does the alias point at it.
"""

from diffseglung_ray.config import JobParser, add_config_arguments, config_from, run_job


def main() -> None:
    """Parse, train, say what came of it."""
    parser = JobParser(__doc__)
    parser.add_argument("--workspace", required=True, help="folder or URI that jobs/prepare.py filled")
    parser.add_argument(
        "--init", metavar="MODEL", help="start from this one: folder, models:/..., or runs:/..."
    )
    parser.add_argument("--alias", help="registry alias that shall point at the model (candidate)")
    add_config_arguments(parser)
    args = parser.parse_args()
    config = config_from(args)
    from diffseglung_ray.training import train

    model = train(config, args.workspace, args.init, args.alias)
    print(f"{model.uri} is now models:/{config.tracking.model}@{args.alias or config.tracking.alias}")


if __name__ == "__main__":
    run_job(main)
