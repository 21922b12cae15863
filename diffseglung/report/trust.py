"""What the report says about itself: what it is for, where it may be wrong, what made it."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffseglung.report.checks import CHECKS, Row, signed
from diffseglung.report.markup import Html, tag
from diffseglung.report.pictures import WINDOW_HU
from diffseglung.report.scores import best_first, disease_mean, group

_WINDOW = " to ".join(f"{signed(edge)} HU" for edge in WINDOW_HU)
NAMED = (
    "A region gets the name of the tissue that it resembles in density, texture and enclosure, so what looks alike on "
    "CT is named alike: collapse like consolidation, oedema or breathing out like ground glass, crowded vessels at the "
    "hila at times like fibrosis."
)
LIMITS = (
    (
        "For research, not for patients.",
        "This is not a medical device. Nothing here is a diagnosis, and no decision about a patient may rest "
        "on it.",
    ),
    (
        "The lung outline decides first.",
        "Dense disease at the pleura can be left out, and air outside the lungs taken in. Vessels inside the "
        "lungs count as healthy lung, the windpipe and the main bronchi do not count at all.",
    ),
    (
        "The pictures are a sample.",
        "Slices are spread evenly, cropped to the lungs and made smaller; a picture opens on the slice with "
        f"most disease, in a window from {_WINDOW}. Judge a case on segmentation.nii.gz, over the scan itself.",
    ),
    (
        "Uncertainty is the model's own.",
        "It says how evenly the probability was spread over the tissues, from 0 to 1. A model can be sure and "
        "wrong, above all on scanners, doses and diseases that it has not met.",
    ),
)
NAMES = {
    "model_uri": "Model",
    "model_version": "Version",
    "config_sha256": "Configuration",
    "recipe": "Recipe",
    "date": "Made on",
    "hardware": "Hardware",
    "labelled_scans": "Annotated scans",
}


def trust_section(about: Mapping[str, Any], scores: Sequence[Row] | None) -> Html:
    """How far to trust the numbers above, and what each flag means."""
    first, *others = LIMITS
    said = (first, _origin_of_names(about.get("labelled_scans")), *others, _accuracy(scores))
    limits = [tag("li", tag("strong", head), " ", text) for head, text in said]
    checks = [tag("div", tag("dt", check.name), tag("dd", check.meaning)) for check in CHECKS]
    note = about.get("note")
    return tag(
        "section",
        tag("h2", "How far to trust this", id="trust-title"),
        tag("p", note, class_="lead") if note else None,
        tag("ul", limits, class_="limits"),
        tag("h3", "What a flag means"),
        tag(
            "p",
            "A flag says: look before you use the number. A scan without a flag can still be wrong.",
            class_="note",
        ),
        tag("dl", checks, class_="checks"),
        aria_labelledby="trust-title",
        class_="card",
    )


def _origin_of_names(labelled_scans: Any) -> tuple[str, str]:
    if not labelled_scans:
        return "Nobody drew these labels.", f"The model learned without annotation. {NAMED}"
    return (
        "This is not label-free.",
        f"Annotations of {labelled_scans} scan{'s' * (labelled_scans != 1)} corrected what a model that had learned "
        f"without them calls a region. {NAMED}",
    )


def _accuracy(scores: Sequence[Row] | None) -> tuple[str, str]:
    if not scores:
        return (
            "Accuracy is unknown here.",
            "No truth was given for these scans, so nothing on this page measures it.",
        )
    dice = best_first(group(scores, "dice"))
    method = next(iter(dice))
    mean = disease_mean(dice[method])
    found = (
        f"the best method, {method}, reaches a mean Dice of {mean:.2f} over the diseases"
        if mean
        else "no method found disease"
    )
    return (
        "Accuracy was measured on this cohort only.",
        f"Where there was truth, {found}. On other scans expect less.",
    )


def about_list(about: Mapping[str, Any]) -> Html:
    """Model, configuration and hardware, a line each."""
    known = {
        key: about[key] for key in (*NAMES, *about) if about.get(key) not in (None, "") and key != "note"
    }
    lines = [
        tag("div", tag("dt", NAMES.get(key, key.replace("_", " ").capitalize())), tag("dd", value))
        for key, value in known.items()
    ]
    return tag("dl", lines, class_="about") if lines else Html("")
