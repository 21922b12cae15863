"""The colour tables say of every label what the program says of it, in the form of their readers."""

import re

from diffseglung.colours import colour_tables
from diffseglung.labels import STRUCTURE_RGB, TISSUE_RGB, Tissue

SLICER = re.compile(r"(\d+) (\S+) (\d+) (\d+) (\d+) (\d+)")
ITKSNAP = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d(?:\.\d+)?)\s+([01])\s+([01])\s+"(.*)"')


def test_slicer_finds_every_label_with_its_name_and_colour() -> None:
    for name, colours in (("tissues", TISSUE_RGB), ("anatomy", STRUCTURE_RGB)):
        head, count, *lines = colour_tables()[f"{name}.ctbl"].splitlines()
        assert head == "# Color table file"
        assert count == f"# {len(lines)} values"
        found = {}
        for index, label, *rgba in (SLICER.fullmatch(line).groups() for line in lines):
            found[int(index)] = (label, tuple(map(int, rgba)))
        assert found.pop(0) == ("background", (0, 0, 0, 0))
        assert found == {int(k): (k.name.lower(), (*rgb, 255)) for k, rgb in colours.items()}


def test_itksnap_finds_every_label_with_its_name_and_colour() -> None:
    for name, colours in (("tissues", TISSUE_RGB), ("anatomy", STRUCTURE_RGB)):
        lines = [line for line in colour_tables()[f"{name}-itksnap.txt"].splitlines() if line[0] != "#"]
        rows = [ITKSNAP.fullmatch(line).groups() for line in lines]
        assert rows[0] == ("0", "0", "0", "0", "0", "0", "0", "Clear Label")
        assert {int(row[0]): tuple(map(int, row[1:4])) for row in rows[1:]} == {
            int(label): rgb for label, rgb in colours.items()
        }
        assert all(row[4:7] == ("1", "1", "1") for row in rows[1:])
    assert rows[0][-1] == "Clear Label"
    tissues = colour_tables()["tissues-itksnap.txt"]
    assert f'"{Tissue.GROUND_GLASS.title}"' in tissues
