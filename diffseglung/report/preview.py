"""One picture of a case for people who leaf through a folder: five slices, labels, litres."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffseglung.densities import voxels_of
from diffseglung.labels import DISEASES, STRUCTURE_RGB, TISSUE_RGB, TISSUES, Structure
from diffseglung.report import pictures as pic

WIDTH_PX, GAP_PX, TITLE_PX = 1200, 12, 56
BACK, INK, MUTED, GUIDE = (15, 20, 25), (232, 237, 242), (154, 167, 180), (124, 192, 240)
OPACITY = 0.45
SCALE_MM = 50


def case_preview(
    path: Path | str,
    hu: np.ndarray,
    labels: np.ndarray,
    anatomy: np.ndarray | None,
    spacing_mm: tuple[float, float, float],
    title: str = "",
) -> None:
    """Write a PNG of one scan: an axial slice from each third of the lungs, a coronal and a sagittal one.

    Each is the slice with most disease in its range, in a lung window, with the patient's right at the left
    and the head up. hu int16 and labels uint8 (Tissue), anatomy uint8 (Structure) or None, all (z, y, x) in the
    canonical frame; spacing_mm (z, y, x). The file appears whole or not at all.
    """
    pic.check_volume(hu, labels, spacing_mm)
    box = pic.lung_box(labels, spacing_mm)
    volumes = hu[box], labels[box], None if anatomy is None else anatomy[box]
    thirds = np.array_split(pic.lung_slices(volumes[1], 0), 3)[::-1]
    axial = [int(third[pic.most_telling(volumes[1][third], 0)]) for third in thirds if third.size]
    coronal, sagittal = pic.most_telling(volumes[1], 1), pic.most_telling(volumes[1], 2)

    column = (WIDTH_PX - 4 * GAP_PX) // 3
    extent_mm = [size * step for size, step in zip(volumes[0].shape, spacing_mm, strict=True)]
    mm_per_px = max(extent_mm[1:]) / column
    mm_per_px = max(mm_per_px, extent_mm[0] / (1.4 * column))
    top = [_panel(volumes, "axial", z, spacing_mm, mm_per_px) for z in axial]
    low = [
        _panel(volumes, "coronal", coronal, spacing_mm, mm_per_px, levels=axial),
        _panel(volumes, "sagittal", sagittal, spacing_mm, mm_per_px, levels=axial),
    ]
    heights = [max(panel.height for panel in row) for row in (top, low)]
    heights[1] = max(heights[1], 300)
    page = Image.new("RGB", (WIDTH_PX, TITLE_PX + sum(heights) + 2 * GAP_PX), BACK)
    draw = ImageDraw.Draw(page)
    draw.text((GAP_PX, 16), _fit(title or "Segmentation", 70), INK, _font(22))
    note = f"window {pic.WINDOW_HU[0]} to {pic.WINDOW_HU[1]} HU"
    draw.text((WIDTH_PX - GAP_PX, 22), note, MUTED, _font(14), anchor="ra")
    for row, panels in enumerate((top, low)):
        for i, panel in enumerate(panels):
            x = GAP_PX + i * (column + GAP_PX) + (column - panel.width) // 2
            y = TITLE_PX + row * (heights[0] + GAP_PX) + (heights[row] - panel.height) // 2
            page.paste(panel, (x, y))
    corner = (GAP_PX + 2 * (column + GAP_PX) + 12, TITLE_PX + heights[0] + 2 * GAP_PX)
    _legend(draw, corner, volumes[1], float(np.prod(spacing_mm)) / 1000, anatomy is not None)
    held = io.BytesIO()
    page.save(held, "PNG", compress_level=3)
    pic.write_whole(Path(path), held.getvalue())


def _panel(
    volumes: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    view: str,
    index: int,
    spacing_mm: tuple[float, float, float],
    mm_per_px: float,
    levels: list[int] | None = None,
) -> Image.Image:
    """One slice with its labels, letters and a scale bar; `levels` marks the axial slices shown beside it."""
    hu, labels, anatomy = volumes
    size_mm = pic.flat_spacing(view, spacing_mm)
    tissue = pic.resize(pic.cut(labels, view, index), size_mm, mm_per_px, exact=True)
    rgb = pic.paint(pic.resize(pic.window(pic.cut(hu, view, index)), size_mm, mm_per_px), tissue, OPACITY)
    if anatomy is not None:
        airway = pic.resize(pic.cut(anatomy, view, index), size_mm, mm_per_px, exact=True) == Structure.AIRWAY
        rgb[pic.outline(airway.astype(np.uint8))] = STRUCTURE_RGB[Structure.AIRWAY]
    panel = Image.fromarray(rgb)
    draw = ImageDraw.Draw(panel)
    for z in levels or []:
        y = round((hu.shape[0] - z - 0.5) * spacing_mm[0] / mm_per_px)
        draw.line([(0, y), (14, y)], GUIDE, 2)
        draw.line([(panel.width - 15, y), (panel.width, y)], GUIDE, 2)
    hung = pic.VIEWS[view]
    middle = panel.height // 2
    for x, letter, anchor in ((8, hung.left, "lm"), (panel.width - 8, hung.right, "rm")):
        draw.text((x, middle), letter, INK, _font(18), anchor=anchor, stroke_width=2, stroke_fill=BACK)
    _scale_bar(draw, panel.size, mm_per_px)
    return panel


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], mm_per_px: float) -> None:
    length = round(SCALE_MM / mm_per_px)
    x, y = size[0] - 10, size[1] - 10
    draw.line([(x - length, y), (x, y)], BACK, 5)
    draw.line([(x - length, y), (x, y)], INK, 2)
    draw.text((x - length / 2, y - 5), "5 cm", INK, _font(13), anchor="mb", stroke_width=2, stroke_fill=BACK)


def _legend(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], labels: np.ndarray, voxel_ml: float, airways: bool
) -> None:
    """Colours, millilitres and shares of the whole scan."""
    voxels = voxels_of(labels)
    volume_ml = {tissue: float(voxels[tissue]) * voxel_ml for tissue in TISSUES}
    lung_ml = sum(volume_ml.values())
    left, y = corner
    right = WIDTH_PX - 2 * GAP_PX
    draw.text((left, y), "Lungs", INK, _font(17))
    draw.text((right, y), f"{lung_ml:,.0f} ml", INK, _font(17), anchor="ra")
    for tissue in TISSUES:
        y += 34
        share = 100 * volume_ml[tissue] / lung_ml if lung_ml else 0
        ink = INK if volume_ml[tissue] else MUTED
        # As in the pictures: disease is filled, healthy lung is only outlined.
        fill = TISSUE_RGB[tissue] if tissue in DISEASES else None
        draw.rounded_rectangle((left, y + 2, left + 18, y + 18), 4, fill, TISSUE_RGB[tissue], 2)
        draw.text((left + 30, y), tissue.title, ink, _font(16))
        draw.text((right - 80, y), f"{volume_ml[tissue]:,.0f} ml", ink, _font(16), anchor="ra")
        draw.text((right, y), f"{share:.1f}%", ink, _font(16), anchor="ra")
    if airways:
        y += 34
        draw.rounded_rectangle((left, y + 2, left + 18, y + 18), 4, None, STRUCTURE_RGB[Structure.AIRWAY], 2)
        draw.text((left + 30, y), "airway", MUTED, _font(16))


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _fit(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
