"""Jobs as their users start them: as programs of their own, or within this process where a program adds nothing."""

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from ray._private.ray_constants import ENABLE_RAY_CLUSTERS_ENV_VAR

JOBS = Path(__file__).parents[1] / "jobs"
SMALL = ("--set", "resources.local_cpus=2", "--set", "resources.object_store_mb=200")

Ended = subprocess.CompletedProcess[str]


def is_of_the_outside(name: str) -> bool:
    """Whether a variable would join a stranger's cluster, write into a stranger's registry, or keep Ray to loopback."""
    others = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", ENABLE_RAY_CLUSTERS_ENV_VAR)
    return name.startswith("MLFLOW_") or name in others


def run_job(name: str, *words: str | Path, cwd: Path, timeout: int = 600) -> Ended:
    """`python jobs/<name>.py <words>` in the folder `cwd`, with a small Ray of its own."""
    command = [sys.executable, str(JOBS / f"{name}.py"), *map(str, words), *SMALL]
    env = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def call_job(name: str, *words: str | Path, cwd: Path, **env: str) -> Ended:
    """The same within this process, on its Ray if it has one: a new program would mostly wait for imports."""
    command = [str(JOBS / f"{name}.py"), *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for key in filter(is_of_the_outside, list(os.environ)):
            patch.delenv(key)
        for key, value in env.items():
            patch.setenv(key, value)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(command[0], run_name="__main__")
    return Ended(command, int(ended.value.code or 0), out.getvalue(), err.getvalue())
