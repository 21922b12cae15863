"""Draw new CT patches from a trained model and measure how close they come to real ones.

examples:
  python jobs/generate.py --model models:/diffseglung@candidate --out demo/generated --count 16
  python jobs/generate.py --model models/lung --out generated --count 64 --workspace demo/work --sampler ddpm

Leaves O/samples/*.nii.gz, O/fidelity.json and, the same as a table, O/fidelity.md. The patches that they are
compared with, and whose lung masks they are drawn for, come from --workspace, which should hold scans that the
model was not trained on, or else from digital phantoms.
"""

from functools import partial

from diffseglung_ray.config import JobParser, add_config_arguments, config_of_model, run_job


def main() -> None:
    """Parse, then generate."""
    parser = JobParser(__doc__)
    parser.add_argument(
        "--model", required=True, help="folder, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID"
    )
    parser.add_argument("--out", required=True, help="folder or URI for the samples")
    parser.add_argument("--count", type=int, default=16, help="patches to draw (16)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other patches (0)")
    parser.add_argument("--workspace", help="prepared workspace whose patches they are compared with")
    parser.add_argument(
        "--sampler",
        default="dpm++2",
        help="ddpm, ddim, or DPM-Solver++ of order 2 or 3: dpm++2, dpm++3 (dpm++2)",
    )
    parser.add_argument("--steps", type=int, help="of the sampler (25; ddpm: every timestep)")
    parser.add_argument(
        "--fid-network",
        metavar="FILE.pt",
        help="TorchScript network, one you trust, to take FID of its features",
    )
    add_config_arguments(parser, of_model=True)
    args = parser.parse_args()
    from diffseglung_ray.generation import generate_samples

    configure = partial(config_of_model, args)
    measured = generate_samples(
        args.model,
        args.out,
        configure,
        args.count,
        args.seed,
        args.workspace,
        sampler=args.sampler,
        steps=args.steps,
        network=args.fid_network,
    )
    print(f"{args.count} patches in {args.out}/samples, and in {args.out}/fidelity.json: {measured}")


if __name__ == "__main__":
    run_job(main)
