"""A cohort of digital patients on disk: images, truth, and a manifest, as any other cohort has them."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..labels import DISEASES, Tissue
from ..volume import Volume, write_labels, write_volume
from .make import PhantomConfig, make_phantom

HEALTHY_EVERY, HEALTHY_AT = 8, 3
COLUMNS = ("case_id", "image", "truth")
Row = dict[str, str]


def case_seed(seed: int, index: int) -> int:
    """The seed of one case: depends on the cohort's seed and the case's number, not on how many there are."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def case_kinds(seed: int, index: int) -> tuple[Tissue, ...]:
    """The diseases of one case: none in one case of eight, else two to four.

    Any three diseased cases in a row have all five diseases between them: the five are dealt out in turns of
    three, and each case may draw more.
    """
    if index % HEALTHY_EVERY == HEALTHY_AT:
        return ()
    healthy_before = (index + HEALTHY_EVERY - 1 - HEALTHY_AT) // HEALTHY_EVERY
    dealt = np.random.default_rng([seed, 0]).permutation(DISEASES)
    rng = np.random.default_rng([seed, 1, index])
    own = list(dealt[(index - healthy_before) % 3 :: 3])
    rest = [kind for kind in DISEASES if kind not in own]
    count = max(int(rng.integers(2, 5)), len(own))
    own += list(rng.choice(rest, count - len(own), replace=False))
    return tuple(Tissue(kind) for kind in sorted(own))


def write_case(out: Path | str, seed: int, index: int, config: PhantomConfig | None = None) -> Row:
    """One digital patient under `out`: its image and its truth; returns its row of the manifest."""
    out = Path(out)
    kinds = case_kinds(seed, index)
    phantom = make_phantom(case_seed(seed, index), config, healthy=not kinds, kinds=kinds)
    case_id = f"phantom-{index:04d}"
    row = {"case_id": case_id, "image": f"images/{case_id}.nii.gz", "truth": f"truth/{case_id}.nii.gz"}
    volume = Volume.from_array(phantom.hu, phantom.spacing_mm, phantom.affine)
    for folder in ("images", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_volume(out / row["image"], volume)
    write_labels(out / row["truth"], phantom.truth, volume)
    return row


def write_manifest(out: Path | str, rows: list[Row]) -> Path:
    """`manifest.csv` with paths relative to itself; appears whole or not at all."""
    path = Path(out) / "manifest.csv"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
    return path


def write_cohort(
    out: Path | str,
    cases: int,
    seed: int,
    config: PhantomConfig | None = None,
    *,
    first: int = 0,
    on_case: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Cases `first` to `first + cases - 1` of the cohort that this seed means; the manifest comes last."""
    if cases < 1 or first < 0:
        raise ValueError(f"a cohort of {cases} cases from number {first}: ask for 1 or more, from 0 or later")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: any whole number from 0 is a seed")
    rows = []
    for index in range(first, first + cases):
        rows.append(write_case(out, seed, index, config))
        if on_case:
            on_case(rows[-1])
    write_manifest(out, rows)
    return rows
