"""The images' Dockerfile: linted, nobody's but its user's, with the versions that the tests ran with."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_image import DOCKERFILE, ROOT, commands, copied, environment, moved, steps

TARGETS = ("cpu", "gpu")


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    broken = DOCKERFILE.read_text() + "RUN cd /tmp && apt-get install curl\n"
    worse = subprocess.run([hadolint, "-"], input=broken, capture_output=True, text=True, check=False)
    assert worse.returncode != 0


@pytest.mark.parametrize("target", TARGETS)
def test_everything_is_installed_with_the_constraints_by_one_who_is_not_root(target: str) -> None:
    words = [step.word for step in steps(target)]
    assert [step.rest for step in steps(target) if step.word == "USER"] == ["1000:1000"]
    before = words.index("USER")
    assert [step.rest for step in steps(target)[:before] if "pip install" in step.rest] == []
    installs = re.findall(r"pip install (.*?)(?: && |$)", " && ".join(commands(target)))
    assert installs[-1] == '--use-pep517 --constraint constraints.txt ".[aws]"'
    for install in installs[:-1]:
        assert "--no-deps" in install
        assert "constraints.txt" in install


def test_the_cpu_image_has_the_torch_of_the_constraints(tmp_path: Path) -> None:
    first = commands("cpu")[1].split(" && ")[0]
    shown = re.sub(r"^pip install", "echo", first)
    said = subprocess.run(["bash", "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pinned = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert said.split()[-1] == f"{pinned[0]}+cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_copied_is_there_and_reaches_the_builder_and_nothing_else_does(target: str) -> None:
    sources = {source for source, _ in copied(target)}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignore = (DOCKERFILE.parent / f"{DOCKERFILE.name}.dockerignore").read_text().split("\n")
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == sources


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_holds_no_secret_and_asks_for_a_token(target: str) -> None:
    env = environment(target)
    assert env["RAY_AUTH_MODE"] == "token"
    assert not [name for name in env if re.search("KEY|SECRET|PASSWORD|AUTH_TOKEN", name)]
    assert "ARG" not in {step.word for step in steps(target)}
    assert steps(target)[-1].rest == env["XDG_CACHE_HOME"] == "/cache"


def test_make_installs_in_the_same_way() -> None:
    (install,) = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text())
    for word in ("--use-pep517", "--constraint constraints.txt"):
        assert word in install
        assert word in " ".join(commands("gpu"))
    assert "-m diffseglung.compiled" in (ROOT / "Makefile").read_text()
    assert all("-m diffseglung.compiled" in commands(target)[-1] for target in TARGETS)


def test_places_of_the_image_are_found_again_on_this_machine() -> None:
    here = {"/venv": "/tmp/x/venv", "/cache": "/tmp/x/cache"}
    assert moved("python -m venv /venv && ls /cache/a /home/venv", here) == (
        "python -m venv /tmp/x/venv && ls /tmp/x/cache/a /home/venv"
    )
