"""`diffseglung segment SCAN --model M --out DIR`: one scan on this machine, without a cluster."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from diffseglung.model import Model

EXAMPLES = """examples:
  diffseglung segment chest.nii.gz --model demo/model --out chest-out
  diffseglung segment dicom-folder/ --model demo/model --out out --probabilities
  diffseglung segment chest.nrrd --model models/lung --lungs lungs.nii.gz --out out

DIR receives segmentation.nii.gz, anatomy.nii.gz, preview.png, result.json, report.html and, for DICOM input,
segmentation.dcm. Not a medical device.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the scan cannot be segmented, 2 a wrong argument."""
    args = parse(argv)
    from diffseglung.model import Model

    try:
        model = Model.load(args.model)
    except ValueError as error:
        print(f"diffseglung: {error}", file=sys.stderr)
        return 2
    try:
        run(args, model)
    except (ValueError, OSError) as error:
        print(f"diffseglung: {error}", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="diffseglung", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    segment = commands.add_parser(
        "segment",
        help="segment one scan",
        description="Six-tissue segmentation of one chest CT.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    segment.add_argument("scan", type=Path, help="NIfTI, NRRD or MetaImage file, or a folder of DICOM slices")
    segment.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    segment.add_argument("--out", type=Path, required=True, help="folder for the results")
    segment.add_argument(
        "--lungs",
        type=Path,
        help="lung mask on the scan's grid, used as it is; or the word lungmask, for that package's network",
    )
    segment.add_argument("--series", help="SeriesInstanceUID, where a DICOM folder holds several")
    segment.add_argument("--probabilities", action="store_true", help="also write the six posteriors")
    args = parser.parse_args(argv)
    by_network = args.lungs is not None and str(args.lungs) == "lungmask"
    for path in filter(None, (args.scan, None if by_network else args.lungs, args.model)):
        if not path.exists():
            parser.error(f"{path} does not exist")
    if by_network:
        from diffseglung.anatomy.network import NoNetwork, find_weights

        try:
            find_weights()
        except NoNetwork as missing:
            parser.error(str(missing))
    return args


def run(args: argparse.Namespace, model: "Model") -> None:
    """Read, segment, write, and say what came out."""
    from diffseglung import report
    from diffseglung.config import digest
    from diffseglung.labels import TISSUES
    from diffseglung.results import case_result, write_case
    from diffseglung.segment import segment
    from diffseglung.volume import read_labels, read_volume

    def bar(steps: Iterable) -> Iterable:
        return tqdm(steps, desc="features", unit="batch", leave=False, disable=not sys.stderr.isatty())

    volume = read_volume(args.scan, series=args.series, config=model.config.volume)
    lungs = None
    if str(args.lungs) == "lungmask":
        model = replace(
            model, config=replace(model.config, anatomy=replace(model.config.anatomy, lungs="lungmask"))
        )
    elif args.lungs is not None:
        lungs = read_labels(args.lungs, volume) > 0
    segmentation = segment(volume, model, lungs, progress=bar)
    case_id = args.scan.name.removesuffix(".gz").rsplit(".", 1)[0] or "scan"
    result = case_result(
        case_id,
        volume,
        segmentation,
        model_uri=str(args.model),
        model_version=model.sha256[:12],
        config_sha256=digest(model.config),
    )
    write_case(args.out, volume, segmentation, result, probabilities=args.probabilities)
    row = result.row()
    pictures = {case_id: report.CasePictures.load(args.out / "pictures.json")}
    about = {"labelled_scans": model.labelled_scans} if model.labelled_scans else {}
    report.write_report(args.out / "report.html", [row], pictures, title=case_id, about=about)
    print(f"{'lung':<16}{row['lung_ml']:>8.0f} ml")
    for tissue in TISSUES:
        print(f"{tissue.title:<16}{row[f'{tissue.key}_ml']:>8.0f} ml {row[f'{tissue.key}_pct']:>6.1f} %")
    print(f"{args.out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
