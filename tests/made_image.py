"""What the images' Dockerfile runs, and the same commands in a fresh virtual environment, with no container engine.

`python tests/made_image.py cpu FOLDER [--index-here]`: FOLDER becomes /home/ray/diffseglung and holds /venv and
/cache; apt-get is left to the machine. With `--index-here`, wheels come from where pip is set to look, and not from
the address in the Dockerfile.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "platform" / "docker" / "Dockerfile"


@dataclass(frozen=True)
class Step:
    """One instruction: RUN, COPY, ENV and so on, with what follows it on one line."""

    word: str
    rest: str


def steps(target: str) -> list[Step]:
    """The instructions that make an image, those of the stages below it first."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).strip().splitlines()
    stages: dict[str, list[Step]] = {}
    for line in filter(None, lines):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            below, _, name = rest.split()
            stages[name] = list(stages.get(below, []))
        stages[name].append(Step(word, rest))
    return stages[target]


def commands(target: str) -> list[str]:
    """What is run to install, one shell line each."""
    return [step.rest for step in steps(target) if step.word == "RUN" and "apt-get" not in step.rest]


def environment(target: str) -> dict[str, str]:
    """What the image sets."""
    pairs = " ".join(step.rest for step in steps(target) if step.word == "ENV")
    return dict(pair.split("=", 1) for pair in pairs.split())


def copied(target: str) -> Iterator[tuple[str, str]]:
    """What goes into the image from the project's root, and where below its working folder."""
    for step in steps(target):
        if step.word == "COPY":
            *sources, to = (word for word in step.rest.split() if not word.startswith("--"))
            for source in sources:
                yield source, Path(source).name if to == "./" else to


def rehearse(target: str, folder: Path, index_here: bool) -> Path:
    """Do it all below `folder`; where the environment is."""
    home, venv, cache = folder / "home", folder / "venv", folder / "cache"
    for source, to in copied(target):
        place = home / to
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    here = {"/venv": str(venv), "/cache": str(cache), "$PATH": os.environ["PATH"]}
    cache.mkdir()
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {key: moved(value, here) for key, value in environment(target).items()}
    for command in commands(target):
        if index_here:
            command = re.sub(r"--index-url \S+ ", "", command)
        began = time.monotonic()
        subprocess.run(["bash", "-o", "pipefail", "-c", moved(command, here)], cwd=home, env=env, check=True)
        print(f"{time.monotonic() - began:.0f} s: {command}", flush=True)
    subprocess.run([venv / "bin" / "pip", "check"], cwd=home, env=env, check=True)
    # From elsewhere, as a job is: the installed package, its jobs, and no compiling any more.
    began = time.monotonic()
    subprocess.run(
        [venv / "bin" / "python", home / "jobs" / "segment.py", "--help"], cwd=folder, env=env, check=True
    )
    subprocess.run(
        [venv / "bin" / "python", "-P", "-m", "diffseglung.compiled"], cwd=folder, env=env, check=True
    )
    print(f"{time.monotonic() - began:.0f} s: help of a job, and every kernel again", flush=True)
    return venv


def moved(text: str, here: dict[str, str]) -> str:
    """Absolute places of the image, where they are on this machine."""
    for place, ours in here.items():
        text = re.sub(rf"(?<![\w/.]){re.escape(place)}\b", ours, text)
    return text


if __name__ == "__main__":
    rehearse(sys.argv[1], Path(sys.argv[2]).absolute(), "--index-here" in sys.argv)
