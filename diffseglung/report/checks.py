"""What in a case's numbers should make a person look before believing them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffseglung.gate import NOTED_SHIFT_HU, Peaks
from diffseglung.labels import DISEASES

Row = Mapping[str, Any]

LUNG_ML = (1500, 9000)
"""Both lungs of an adult, from a small chest in expiration to a tall one with emphysema."""
MEAN_LUNG_HU = (-920, -500)
"""Air trapping at one end, half of the lung consolidated or a mask that leaks at the other."""
SMALLER_SIDE_PCT = 25
"""The left lung is about 45% of both in health."""
DISEASED_PCT = 70
UNCERTAINTY = 0.5
"""Mean entropy of the posteriors as a share of the highest possible one."""
UNCERTAIN_PCT = 20
"""Share of the lung whose posterior is spread over two or three tissues."""
TEACHER_DISTANCE = 0.9
"""In spreads of the training's cells; none of ten phantoms is farther than .81 from the cohort they make up."""
EMPHYSEMA_PCT, LAA950_PCT = 15, 1
"""So much labelled emphysema, with so little lung under -950 HU, is a contradiction."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at: `find` gives the remark in words, or None where all is well."""

    name: str
    meaning: str
    find: Callable[[Row], str | None]


def flags(row: Row) -> list[str]:
    """The remarks on a case that was segmented, in words; empty where its numbers are within bounds.

    `row` is a row of the results table. Numbers that are missing or NaN are not remarked on.
    """
    if row.get("status") != "ok":
        return []
    return [words for check in CHECKS if (words := check.find(row))]


def flagged_by(row: Row) -> list[str]:
    """The names of the checks that remark on a case."""
    if row.get("status") != "ok":
        return []
    return [check.name for check in CHECKS if check.find(row)]


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing, NaN, infinite or no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def signed(value: float, digits: int = 0) -> str:
    """A number as it is printed: thousands apart, and a real minus sign."""
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def diseased_pct(row: Row) -> float | None:
    """Share of the lung that carries any disease label, in percent."""
    shares = [finite(row.get(f"{tissue.key}_pct")) for tissue in DISEASES]
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


def _lung_volume(row: Row) -> str | None:
    lung_ml = finite(row.get("lung_ml"))
    low, high = LUNG_ML
    if lung_ml is not None and lung_ml < low:
        return (
            f"lung volume {signed(lung_ml)} ml is under {signed(low)}: one lung, a cropped scan or a child?"
        )
    if lung_ml is not None and lung_ml > high:
        return (
            f"lung volume {signed(lung_ml)} ml is over {signed(high)}: is air outside the lungs in the mask?"
        )
    return None


def _sides(row: Row) -> str | None:
    right_ml, left_ml = finite(row.get("right_lung_ml")), finite(row.get("left_lung_ml"))
    if right_ml is None or left_ml is None or right_ml + left_ml <= 0:
        return None
    share = 100 * min(right_ml, left_ml) / (right_ml + left_ml)
    if share >= SMALLER_SIDE_PCT:
        return None
    side = "right" if right_ml < left_ml else "left"
    return (
        f"the {side} lung is only {signed(share)}% of both: collapsed, removed, missed or outside the scan?"
    )


def _density(row: Row) -> str | None:
    mean_hu = finite(row.get("mean_lung_hu"))
    low, high = MEAN_LUNG_HU
    if mean_hu is not None and mean_hu < low:
        return f"mean density {signed(mean_hu)} HU is under {signed(low)}: calibration, or outside air?"
    if mean_hu is not None and mean_hu > high:
        return (
            f"mean density {signed(mean_hu)} HU is over {signed(high)}: heavy disease, or a mask that leaks?"
        )
    return None


def _diseased(row: Row) -> str | None:
    share = diseased_pct(row)
    if share is None or share <= DISEASED_PCT:
        return None
    return f"{signed(share)}% of the lung is called diseased: severe, or the labels are wrong"


def _uncertain(row: Row) -> str | None:
    uncertainty, share = finite(row.get("uncertainty")), finite(row.get("uncertain_pct"))
    if uncertainty is not None and uncertainty > UNCERTAINTY:
        return f"uncertainty {uncertainty:.2f} is over {UNCERTAINTY}: much of this lung was close to a guess"
    if share is not None and share > UNCERTAIN_PCT:
        return f"{signed(share)}% of the lung was close to a guess"
    return None


def _calibration(row: Row) -> str | None:
    air, tissue = finite(row.get("air_peak_hu")), finite(row.get("tissue_peak_hu"))
    if air is None or tissue is None:
        return None
    peaks = Peaks(round(air), round(tissue))
    if peaks.least_shift is not None and abs(peaks.least_shift) <= NOTED_SHIFT_HU:
        return None
    return f"calibration: {peaks.describe()}".replace("-", "\N{MINUS SIGN}")


def _unlike(row: Row) -> str | None:
    distance = finite(row.get("teacher_distance"))
    if distance is None or distance <= TEACHER_DISTANCE:
        return None
    return f"{distance:.1f} spreads from the training cohort: another scanner, kernel, dose or disease than it had?"


def _emphysema(row: Row) -> str | None:
    labelled, below = finite(row.get("emphysema_pct")), finite(row.get("laa950_pct"))
    if labelled is None or below is None or labelled < EMPHYSEMA_PCT or below >= LAA950_PCT:
        return None
    return f"{signed(labelled)}% is called emphysema but only {below:.1f}% lies under \N{MINUS SIGN}950 HU"


CHECKS = (
    Check(
        "Lung volume",
        f"Outside {signed(LUNG_ML[0])} to {signed(LUNG_ML[1])} ml. Small: one lung, a cropped field of view, "
        "a child, or a mask that missed dense lung. Large: bowel gas or air around the patient got in.",
        _lung_volume,
    ),
    Check(
        "Right and left",
        f"One lung is under {SMALLER_SIDE_PCT}% of both: it is collapsed or was removed, the mask missed it, "
        "or the two were not told apart.",
        _sides,
    ),
    Check(
        "Lung density",
        f"Mean outside {signed(MEAN_LUNG_HU[0])} to {signed(MEAN_LUNG_HU[1])} HU: a scan whose values are not "
        "in HU, contrast or scanner effects, a leaking mask, or very severe disease.",
        _density,
    ),
    Check(
        "Extent of disease",
        f"More than {DISEASED_PCT}% of the lung carries a disease label. It happens in patients, and more "
        "often in scans that the model has not learned.",
        _diseased,
    ),
    Check(
        "Calibration",
        "The peaks of air and lung or of fat and muscle do not lie where physics puts them, by more than "
        f"{NOTED_SHIFT_HU} HU: the scale is off, or there is much contrast agent. Every HU below is off with it.",
        _calibration,
    ),
    Check(
        "Unlike the training",
        f"A usual cell of this scan is more than {TEACHER_DISTANCE:g} spread from the middle of the training cohort in "
        "the teacher's descriptors of density and texture: the model judges what it has not seen.",
        _unlike,
    ),
    Check(
        "Uncertainty",
        f"The posteriors' mean entropy is over {UNCERTAINTY} of the highest possible one, or over {UNCERTAIN_PCT}% of "
        "the lung has a posterior spread that wide: tissue names in this case are close to a guess.",
        _uncertain,
    ),
    Check(
        "Emphysema against LAA-950",
        f"At least {EMPHYSEMA_PCT}% labelled emphysema while under {LAA950_PCT}% of the lung lies below "
        "\N{MINUS SIGN}950 HU: the two usual measures of emphysema contradict each other.",
        _emphysema,
    ),
)
