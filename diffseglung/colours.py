"""Names and colours of the label maps, in the tables that 3D Slicer and ITK-SNAP open."""

from diffseglung.labels import STRUCTURE_RGB, TISSUE_RGB

Rows = list[tuple[int, str, tuple[int, int, int]]]


def colour_tables() -> dict[str, str]:
    """Files by name: for `segmentation.nii.gz` and `anatomy.nii.gz`, a table for each of the two programs."""
    maps: dict[str, Rows] = {
        "tissues": [(int(label), label.title, rgb) for label, rgb in TISSUE_RGB.items()],
        "anatomy": [
            (int(label), label.name.lower().replace("_", " "), rgb) for label, rgb in STRUCTURE_RGB.items()
        ],
    }
    tables = {f"{name}.ctbl": for_slicer(rows) for name, rows in maps.items()}
    return tables | {f"{name}-itksnap.txt": for_itksnap(rows) for name, rows in maps.items()}


def for_slicer(rows: Rows) -> str:
    """A discrete colour table: index, name without spaces, red, green, blue, opacity (0 to 255)."""
    lines = [f"{index} {name.replace(' ', '_')} {r} {g} {b} 255" for index, name, (r, g, b) in rows]
    return "\n".join(["# Color table file", f"# {1 + len(lines)} values", "0 background 0 0 0 0", *lines, ""])


def for_itksnap(rows: Rows) -> str:
    """A label description: index, red, green, blue (0 to 255), opacity, visible, visible as a surface, name."""
    lines = [f'{index:5} {r:5} {g:4} {b:4} {1:8} {1:2} {1:2}    "{name}"' for index, name, (r, g, b) in rows]
    head = "# ITK-SnAP Label Description File\n# IDX -R- -G- -B- -A- VIS MSH LABEL"
    clear = f'{0:5} {0:5} {0:4} {0:4} {0:8} {0:2} {0:2}    "Clear Label"'
    return "\n".join([head, clear, *lines, ""])
