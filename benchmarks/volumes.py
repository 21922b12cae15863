"""How fast is a DICOM folder read, and in how much memory, beside the loops that one writes by hand?

Prints one Markdown table: processor and wall seconds and peak memory, each way in a process of its own, best of
three rounds that take turns. `python benchmarks/volumes.py [FOLDER]`; without FOLDER it takes
`$DIFFSEGLUNG_CT/dicom/covid-a`.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from diffseglung.volume import read_volume

ROUNDS = 3


def simpleitk(folder: Path) -> np.ndarray:
    """By GDCM's order of names; no check but that the files can be read."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def simpleitk_slices(folder: Path) -> np.ndarray:
    """A loop over the files, in the order of their positions."""
    images = [sitk.ReadImage(str(file), imageIO="GDCMImageIO") for file in folder.iterdir()]
    images.sort(key=lambda image: image.GetOrigin()[2])
    return np.concatenate([sitk.GetArrayFromImage(image) for image in images])


def pydicom_slices(folder: Path) -> np.ndarray:
    """The loop of most tutorials."""
    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    hu = [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    return np.stack(hu).astype(np.int16)


def ours(folder: Path) -> np.ndarray:
    """With the gate, the checks of every slice, and the hash of all bytes."""
    return read_volume(folder).hu


WAYS = {way.__name__: way for way in (simpleitk, simpleitk_slices, pydicom_slices, ours)}


def measure(name: str, folder: Path) -> None:
    """In this process: seconds and MiB above what the imports took, as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    hu = WAYS[name](folder)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        json.dumps(
            {"processor": processor, "wall": wall, "mib": mib, "shape": hu.shape, "sum": int(hu.sum())}
        )
    )


def compare(folder: Path, kind: str) -> None:
    """One row a way, best of the rounds."""
    runs: dict[str, list[dict]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name in WAYS:
            command = [sys.executable, __file__, "--measure", name, str(folder)]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(made.stdout))
    assert len({run["sum"] for one in runs.values() for run in one}) == 1, "the ways read different values"
    best = {
        name: {key: min(run[key] for run in one) for key in ("processor", "wall", "mib")}
        for name, one in runs.items()
    }
    volume_mib = np.prod(runs["ours"][0]["shape"]) * 2 / 2**20
    for name, one in best.items():
        print(
            f"| {kind} | {name} | {one['processor']:.2f} | {one['wall']:.2f} | "
            f"{one['processor'] / best['ours']['processor']:.2f} | {one['mib']:.0f} | "
            f"{one['mib'] / volume_mib:.1f} |"
        )


def main() -> None:
    """The folder as it is, then the same slices without compression."""
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
        return
    folder = Path(sys.argv[1] if sys.argv[1:] else Path(os.environ["DIFFSEGLUNG_CT"]) / "dicom" / "covid-a")
    print("| pixels | way | processor s | wall s | processor s, ours = 1 | MiB | MiB, the volume = 1 |")
    print("|---" * 7 + "|")
    compare(folder, "as they are")
    with tempfile.TemporaryDirectory() as plain:
        for number, file in enumerate(sorted(folder.iterdir())):
            one = pydicom.dcmread(file)
            one.decompress()
            one.save_as(Path(plain) / f"{number}.dcm")
        compare(Path(plain), "uncompressed")


if __name__ == "__main__":
    main()
