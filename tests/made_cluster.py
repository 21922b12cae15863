"""A cluster of one node that asks for a token, started as its owner would start it for others to submit to."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from made_jobs import Ended, is_of_the_outside

ROOT = Path(__file__).parents[1]
RAY = (sys.executable, "-m", "ray.scripts.scripts")
START_S = 120


@dataclass(frozen=True)
class Cluster:
    """Where jobs are handed in, and the environment that holds its token."""

    address: str
    env: dict[str, str]

    def submit(self, *entrypoint: str | Path, timeout: int = 600) -> Ended:
        """`ray job submit` from the project's root, as in the README; waits for its end."""
        words = ("--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--", *map(str, entrypoint))
        command = [*RAY, "job", "submit", "--address", self.address, *words]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )


@contextmanager
def started_cluster(cpus: int = 2, **env: str) -> Iterator[Cluster]:
    """`ray start --head` on free ports, in a folder of its own; `env` is what its owner sets for every job."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: the paths of Ray's sockets may have 107 characters
    gcs, dashboard, agent, client = free_ports(4)
    own = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **env}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports["ray-client-server-port"] = client
    size = {"num-cpus": cpus, "object-store-memory": 200 * 2**20}
    options = [f"--{name}={value}" for name, value in (ports | size).items()]
    command = [*RAY, "start", "--head", "--block", "--temp-dir", folder, *options]
    log = Path(folder) / "head.log"
    with log.open("w") as said:
        head = subprocess.Popen(command, env=own, stdout=said, stderr=said, start_new_session=True)
    try:
        wait_for(dashboard, head, "the cluster", log)
        yield Cluster(f"http://127.0.0.1:{dashboard}", own)
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # nothing is worth saving, and Ray's reaper ends what is left
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(port: int, server: subprocess.Popen[bytes], what: str, log: Path | None = None) -> None:
    """Until something listens there. Errors: RuntimeError with what the server said."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{what} did not start:\n{log.read_text() if log else ''}")
