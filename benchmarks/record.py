"""A benchmark's answer, printed and kept: `from record import record` in any script of this folder.

`record("How fast is ...?", table)` prints the Markdown and puts it into `benchmarks/results.md`, in the section
that has the script's name, with the commit, the machine and the command that made it.
"""

import os
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.md"
HEAD = "# Benchmarks\n\nMade by `make bench`; one script a question, one section a script.\n"


def record(question: str, text: str, section: str = "") -> None:
    """Print Markdown `text`, the answer to `question`, and make it a section of the results: this script's, or that."""
    print(f"\n{question}\n\n{text.strip()}\n")
    script = Path(sys.argv[0])
    name = section or script.stem
    command = " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]])
    made = f"{date.today()}, commit {commit()}, {machine()}, `{command}`"
    found = RESULTS.read_text() if RESULTS.exists() else HEAD
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", found, re.MULTILINE | re.DOTALL))
    sections[name] = f"\n{question}\n\n{text.strip()}\n\n{made}\n\n"
    body = "".join(f"## {key}\n{sections[key]}" for key in sorted(sections))
    RESULTS.write_text(f"{HEAD}\n{body.rstrip()}\n")


def commit() -> str:
    """The commit that ran, with `+` where files were changed since; `unknown` outside a checkout."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"`{said.stdout.strip()}`" if said.returncode == 0 else "unknown"


def machine() -> str:
    """How many cores of which processor."""
    said = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", said.read_text() if said.exists() else "", re.MULTILINE)
    name = names[0].strip() if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}"
