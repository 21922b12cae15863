"""The arrows between the layers go one way: jobs -> diffseglung_ray -> diffseglung."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLATFORM = {"ray", "mlflow", "diffseglung_ray", "jobs"}


def imported(source: str) -> set[str]:
    """The top-level packages that a file imports, anywhere in it, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
        ):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name.split(".")[0] for name in names}


def forbidden(path: Path) -> set[str]:
    """What a file of ours may not import, from where it lies."""
    place = path.relative_to(ROOT).parts
    if place[0] == "diffseglung":
        return PLATFORM | (set() if path.name == "__main__.py" else {"argparse", "click", "typer"})
    if place[0] == "platform":
        return {"jobs"} | (set() if path.name == "tracking.py" else {"mlflow"})
    return {"torch", "numpy", "ray", "mlflow"}


FILES = sorted(p for root in ("diffseglung", "platform", "jobs") for p in (ROOT / root).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_from_a_layer_above_it(path: Path) -> None:
    wrong = imported(path.read_text(encoding="utf-8")) & forbidden(path)
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}, which its layer may not"


def test_every_layer_has_files_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"diffseglung", "platform", "jobs"}


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("diffseglung/student.py", "def f():\n    import ray.data"),
        ("diffseglung/report/page.py", "from mlflow import log_metric"),
        ("diffseglung/segment.py", "from diffseglung_ray.config import RunConfig"),
        ("diffseglung/segment.py", "import argparse"),
        ("diffseglung/segment.py", "import importlib\nimportlib.import_module('ray')"),
        ("platform/diffseglung_ray/training.py", "import mlflow"),
        ("platform/diffseglung_ray/training.py", "from jobs.train import main"),
        ("jobs/train.py", "import numpy as np"),
    ],
)
def test_a_wrong_arrow_is_seen(place: str, source: str) -> None:
    assert imported(source) & forbidden(ROOT / place)


@pytest.mark.parametrize("path", sorted((ROOT / "diffseglung").rglob("*.py")), ids=lambda p: p.name)
def test_the_method_does_not_read_environment_variables(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    reads = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
    ]
    assert not reads, f"{path.name} reads the environment in line {reads[0]}: pass the value in"


def test_platform_is_a_source_root_and_no_package() -> None:
    # With an __init__.py there, `import platform` would no longer find the standard library's module.
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "tests" / "platform").exists()


def test_a_worker_does_not_wait_for_what_it_does_not_use() -> None:
    modules = "diffseglung_ray.preparation, diffseglung_ray.segmentation, diffseglung_ray.training"
    code = f"import sys, {modules}; print({{'monai', 'sklearn', 'mlflow'}} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
