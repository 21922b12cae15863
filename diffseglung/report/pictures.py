"""Slices of a case, small enough to travel inside an HTML file: CT in a lung window, labels exact."""

import base64
import io
import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffseglung.densities import Densities
from diffseglung.labels import DISEASES, TISSUE_RGB, TISSUES, Tissue

WINDOW_HU = (-1350, 150)
"""The usual lung window: centre -600 HU, width 1500 HU."""
BIN_EDGES_HU = tuple(range(-1040, 241, 20))
MARGIN_MM = 12.0
MAX_SIZE_PX = 256
MAX_SLICES = {"axial": 24, "coronal": 8, "sagittal": 8}
THUMBNAIL_PX = 112
WEBP_QUALITY = 72
FORMAT = 1
CALLBACK = "diffseglungPictures"

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class View:
    """How a plane is hung: which axis it cuts, and what lies at the picture's edges.

    The head is up, the patient's right is at the left of the picture, and a sagittal slice looks to the left.
    """

    axis: int
    left: str
    right: str
    top: str
    bottom: str
    first: str
    last: str


VIEWS = {
    "axial": View(0, left="R", right="L", top="A", bottom="P", first="feet", last="head"),
    "coronal": View(1, left="R", right="L", top="H", bottom="F", first="front", last="back"),
    "sagittal": View(2, left="A", right="P", top="H", bottom="F", first="right", last="left"),
}


@dataclass(frozen=True, slots=True)
class Plane:
    """Slices along one axis, in the order of the canonical index.

    `ct` holds a base64 WebP a slice; `labels` is base64 of zlib of uint8 (slice, row, column), so that a
    browser gets every label back exactly; `slices` are indices into the volume, which has `of` in all;
    `start` is the position of the slice that shows the most disease.
    """

    ct: tuple[str, ...]
    labels: str
    size_px: tuple[int, int]
    slices: tuple[int, ...]
    of: int
    start: int

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> "Plane":
        """Undo `dataclasses.asdict` after a trip through JSON, which has no tuples."""
        rows, columns = held["size_px"]
        return cls(
            ct=tuple(held["ct"]),
            labels=held["labels"],
            size_px=(rows, columns),
            slices=tuple(held["slices"]),
            of=held["of"],
            start=held["start"],
        )


@dataclass(frozen=True, slots=True)
class CasePictures:
    """All that the report shows of a case besides its row of numbers; JSON of some 400 kB.

    `histogram_ml[tissue key]` is the volume in ml within each bin of `edges_hu`; the end bins hold the rest.
    """

    planes: dict[str, Plane]
    mm_per_px: float
    edges_hu: tuple[int, ...]
    histogram_ml: dict[str, tuple[float, ...]]
    thumbnail: str

    def to_json(self) -> str:
        """Plain ASCII JSON: base64, numbers and fixed names only."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "CasePictures":
        """Undo `to_json`; a ValueError in words where the text is something else."""
        try:
            held: dict[str, Any] = json.loads(text)
            if (found := held.pop("format")) != FORMAT:
                raise ValueError(
                    f"pictures of format {found} cannot be read, only {FORMAT}: segment the case again"
                )
            planes = {name: Plane.from_dict(plane) for name, plane in held.pop("planes").items()}
            histogram = {key: tuple(values) for key, values in held.pop("histogram_ml").items()}
            edges = tuple(held.pop("edges_hu"))
            return cls(planes=planes, histogram_ml=histogram, edges_hu=edges, **held)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"these are not a case's pictures ({error!r}): segment the case again"
            ) from error

    def save(self, path: Path | str) -> None:
        """Write `pictures.json`, whole or not at all."""
        write_whole(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "CasePictures":
        return cls.from_json(Path(path).read_text(encoding="ascii"))


def case_pictures(
    hu: np.ndarray,
    labels: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    max_size_px: int = MAX_SIZE_PX,
    max_slices: dict[str, int] | None = None,
) -> CasePictures:
    """What the report shows of one scan: slices in three planes, cropped to the lungs, and HU by tissue.

    hu int16 and labels uint8 (Tissue), both (z, y, x) in the canonical frame; spacing_mm (z, y, x).
    """
    check_volume(hu, labels, spacing_mm)
    box = lung_box(labels, spacing_mm)
    hu_box, labels_box = hu[box], labels[box]
    extent_mm = [size * step for size, step in zip(hu_box.shape, spacing_mm, strict=True)]
    mm_per_px = max(max(extent_mm) / max_size_px, min(spacing_mm))
    planes = {}
    for name, count in (max_slices or MAX_SLICES).items():
        axis = VIEWS[name].axis
        shown = evenly(lung_slices(labels_box, axis), count)
        ct = [window(cut(hu_box, name, i)) for i in shown]
        tissue = [cut(labels_box, name, i) for i in shown]
        size_mm = flat_spacing(name, spacing_mm)
        ct_px = [resize(image, size_mm, mm_per_px) for image in ct]
        tissue_px = np.stack([resize(image, size_mm, mm_per_px, exact=True) for image in tissue])
        planes[name] = Plane(
            ct=tuple(webp(image) for image in ct_px),
            labels=base64.b64encode(zlib.compress(tissue_px.tobytes(), 9)).decode(),
            size_px=(tissue_px.shape[1], tissue_px.shape[2]),
            slices=tuple(box[axis].start + i for i in shown),
            of=hu.shape[axis],
            start=most_telling(tissue_px, 0),
        )
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return CasePictures(
        planes=planes,
        mm_per_px=round(mm_per_px, 4),
        edges_hu=BIN_EDGES_HU,
        histogram_ml=histogram_ml(hu_box, labels_box, voxel_ml),
        thumbnail=thumbnail(hu_box, labels_box, spacing_mm),
    )


def check_volume(hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    """Refuse what cannot be a scan and its labels."""
    if hu.ndim != 3 or hu.shape != labels.shape or 0 in hu.shape:
        raise ValueError(
            f"CT of shape {hu.shape} and labels of shape {labels.shape}: both must be (z, y, x) alike"
        )
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm {spacing_mm} must be three positive numbers (z, y, x)")
    if labels.max() > max(Tissue):
        raise ValueError(f"label {labels.max()} is no tissue: labels go from 0 to {max(Tissue)}")


def lung_box(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> Box:
    """The smallest box around everything labelled, with a margin; the whole volume where nothing is."""
    inside_z = np.flatnonzero(labels.any(axis=(1, 2)))
    if not inside_z.size:
        return (slice(0, labels.shape[0]), slice(0, labels.shape[1]), slice(0, labels.shape[2]))
    flat = np.any(labels[inside_z[0] : inside_z[-1] + 1], axis=0)
    inside = inside_z, np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    z, y, x = (
        slice(max(0, int(i[0]) - margin), min(size, int(i[-1]) + 1 + margin))
        for i, size, margin in zip(
            inside, labels.shape, (round(MARGIN_MM / s) for s in spacing_mm), strict=True
        )
    )
    return z, y, x


def lung_slices(labels: np.ndarray, axis: int) -> np.ndarray:
    """Indices along `axis` between the first and the last slice with lung in it; all where there is none."""
    inside = np.flatnonzero(labels.any(axis=tuple(a for a in range(3) if a != axis)))
    return np.arange(inside[0], inside[-1] + 1) if inside.size else np.arange(labels.shape[axis])


def evenly(indices: np.ndarray, count: int) -> list[int]:
    """At most `count` of the indices, evenly spread and off the very ends."""
    if len(indices) <= count:
        return [int(i) for i in indices]
    return [int(indices[int((i + 0.5) * len(indices) / count)]) for i in range(count)]


def most_telling(labels: np.ndarray, axis: int) -> int:
    """The slice along `axis` with most disease, and among healthy ones the one with most lung."""
    other = tuple(a for a in range(3) if a != axis)
    diseased = np.count_nonzero(labels > Tissue.HEALTHY, axis=other)
    lung = np.count_nonzero(labels, axis=other)
    return int(np.argmax(diseased + lung / 20))


def cut(array: np.ndarray, view: str, index: int) -> np.ndarray:
    """One slice as it is hung: axial as stored (the patient's right at the left), the others head up."""
    flat = np.moveaxis(array, VIEWS[view].axis, 0)[index]
    return flat if view == "axial" else flat[::-1]


def flat_spacing(view: str, spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    """Row and column spacing in mm of a slice that `cut` gives."""
    rows, columns = (step for axis, step in enumerate(spacing_mm) if axis != VIEWS[view].axis)
    return rows, columns


def window(hu: np.ndarray) -> np.ndarray:
    """HU to 8-bit grey in the lung window."""
    low, high = WINDOW_HU
    return ((np.clip(hu, low, high).astype(np.float32) - low) * (255 / (high - low))).astype(np.uint8)


def resize(
    image: np.ndarray, spacing_mm: tuple[float, float], mm_per_px: float, *, exact: bool = False
) -> np.ndarray:
    """A uint8 slice on square pixels of `mm_per_px`; `exact` keeps label values as they are."""
    height, width = (
        max(1, round(size * step / mm_per_px)) for size, step in zip(image.shape, spacing_mm, strict=True)
    )
    how = Image.Resampling.NEAREST if exact else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(image, np.uint8)).resize((width, height), how))


def paint(grey: np.ndarray, labels: np.ndarray, opacity: float) -> np.ndarray:
    """Labels over CT as RGB uint8: diseases filled with `opacity`, healthy lung only outlined."""
    colours = np.zeros((max(Tissue) + 1, 3), np.float32)
    alpha = np.zeros(max(Tissue) + 1, np.float32)
    for tissue, rgb in TISSUE_RGB.items():
        colours[tissue] = rgb
        alpha[tissue] = opacity if tissue in DISEASES else 0
    blend = np.where(outline(labels), np.where(labels > Tissue.HEALTHY, 0.95, 0.6), alpha[labels])[..., None]
    return (grey[..., None] * (1 - blend) + colours[labels] * blend).astype(np.uint8)


def outline(labels: np.ndarray) -> np.ndarray:
    """Pixels of a label that touch another one, bool (row, column)."""
    padded = np.pad(labels, 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    differs = (inner != padded[:-2, 1:-1]) | (inner != padded[2:, 1:-1])
    differs |= (inner != padded[1:-1, :-2]) | (inner != padded[1:-1, 2:])
    return differs & (labels > 0)


def thumbnail(hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> str:
    """The coronal slice with most disease, a base64 WebP of about 3 kB."""
    index = most_telling(labels, VIEWS["coronal"].axis)
    size_mm = flat_spacing("coronal", spacing_mm)
    grey, tissue = cut(hu, "coronal", index), cut(labels, "coronal", index)
    mm_per_px = max(size * step for size, step in zip(grey.shape, size_mm, strict=True)) / THUMBNAIL_PX
    return webp(
        paint(resize(window(grey), size_mm, mm_per_px), resize(tissue, size_mm, mm_per_px, exact=True), 0.6)
    )


def histogram_ml(hu: np.ndarray, labels: np.ndarray, voxel_ml: float) -> dict[str, tuple[float, ...]]:
    """Millilitres in each HU bin for every tissue that is there."""
    counts = Densities.of(hu, labels).in_bins(BIN_EDGES_HU)
    return {
        tissue.key: tuple(round(float(n * voxel_ml), 3) for n in counts[tissue])
        for tissue in TISSUES
        if counts[tissue].any()
    }


def webp(image: np.ndarray) -> str:
    """A uint8 picture, grey or RGB, as base64 WebP."""
    held = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(held, "WEBP", quality=WEBP_QUALITY, method=4)
    return base64.b64encode(held.getvalue()).decode()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    # Names of files on old disks may hold bytes that are no UTF-8; they are shown as escapes.
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
