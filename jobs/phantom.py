"""Draw a cohort of digital patients: chest CTs whose diseases are known by construction.

examples:
  python jobs/phantom.py --out demo/phantoms --cases 10 --seed 1
  python jobs/phantom.py --out /data/phantoms --cases 200 --seed 7 --workers 16
  python jobs/phantom.py --out inserted --cases 6 --into healthy-1.nii.gz --into healthy-2.nii.gz

Leaves DIR/images/<case>.nii.gz, DIR/truth/<case>.nii.gz and, last, DIR/manifest.csv. One patient in eight is
healthy; any four in a row show all five diseases. The same seed gives the same patients, however many. With --into
the diseases are drawn into real scans, which have to be healthy; the fourth of eight is left as it was.
"""

from diffseglung_ray.config import JobParser, run_job


def main() -> None:
    """Parse, draw, say what came of it."""
    parser = JobParser(__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the cohort")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="patients to draw (8)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another seed draws other patients (0)"
    )
    parser.add_argument(
        "--into",
        action="append",
        metavar="SCAN",
        help="a healthy scan to draw lesions into; may be given again",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help="patients at a time (one a CPU); 0 draws in this process, without Ray",
    )
    args = parser.parse_args()
    from diffseglung_ray.phantoms import make_cohort

    rows = make_cohort(args.out, args.cases, args.seed, args.workers, args.into)
    drawn = "scans with lesions drawn into them" if args.into else "digital patients"
    print(f"{len(rows)} {drawn}: {args.out}/manifest.csv")


if __name__ == "__main__":
    run_job(main)
