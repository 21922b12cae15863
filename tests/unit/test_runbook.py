"""docs/runbook.md: its arithmetic is that of the measurements, its commands are commands, its files are there."""

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from made_jobs import call_job

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", RUNBOOK, re.MULTILINE | re.DOTALL)


def test_the_sizing_is_what_the_measurements_give() -> None:
    sizing = runpy.run_path(str(ROOT / "docs" / "make_sizing.py"))
    assert sizing["table"]() in RUNBOOK
    for job, seconds in sizing["cpu_seconds"]().items():
        assert f"{seconds} s" in RUNBOOK, f"the runbook says otherwise what a scan takes to {job}"
    for price in ("ON_DEMAND", "SPOT", "HEAD"):
        assert f"${sizing[price]}" in RUNBOOK


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_shell(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"\b((?:jobs|platform|docs|tests)/[\w./]+\w)", RUNBOOK))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_jobs_take_the_arguments_that_are_shown(tmp_path: Path) -> None:
    shown = re.findall(r"python (?:jobs/)?(\w+)\.py (.*)", "\n".join(BLOCKS).replace("\\\n", " "))
    assert {name for name, _ in shown} >= {"phantom", "prepare"}
    for name, rest in shown:
        said = call_job(name, "--help", cwd=tmp_path).stdout
        assert [
            word for word in shlex.split(rest, comments=True) if word.startswith("--") and word not in said
        ] == []
