"""An MLflow server as a lab runs one: HTTP in front, a database behind it, artifacts handed on by the server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made_cluster import free_ports, wait_for


@contextmanager
def started_mlflow(folder: Path, artifacts: str, env: dict[str, str]) -> Iterator[str]:
    """The server's address; its database lies in `folder`, its artifacts at `artifacts`, a folder or URI."""
    (port,) = free_ports(1)
    options = {
        "host": "127.0.0.1",
        "port": port,
        "workers": 1,
        "backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "artifacts-destination": artifacts,
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # eight processes less
    log = folder / "mlflow.log"
    with log.open("w") as said:
        server = subprocess.Popen(
            command, env=os.environ | env | quiet, stdout=said, stderr=said, start_new_session=True
        )
    try:
        wait_for(port, server, "MLflow", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
