"""A cluster that asks for a token, started as its owner would start it for others to submit to; nodes come and go."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from made_jobs import Ended, is_of_the_outside

ROOT = Path(__file__).parents[1]
RAY = (sys.executable, "-m", "ray.scripts.scripts")
START_S = 120

Program = subprocess.Popen[str]


@dataclass(frozen=True)
class Node:
    """`ray start --block` and all that it started."""

    program: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL for all of it at once, as when the power goes."""
        if self.program.poll() is not None:
            return
        whole = psutil.Process(self.program.pid)
        for process in (whole, *whole.children(recursive=True)):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.program.wait()


@dataclass(frozen=True)
class Cluster:
    """Where jobs are handed in, and the environment that holds its token."""

    address: str
    env: dict[str, str]
    gcs: str
    folder: Path
    nodes: list[Node] = field(default_factory=list)

    def start(self, job: str, *words: str | Path) -> Program:
        """`ray job submit` of one of our jobs to machines that have the package and what it compiled ahead."""
        return self._submit("--working-dir", "jobs", "--", "python", f"{job}.py", *map(str, words))

    def submit(self, *entrypoint: str | Path, timeout: int = 600) -> Ended:
        """`ray job submit` from the project's root with its code, as in the README; waits for its end."""
        words = ("--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--", *map(str, entrypoint))
        return ended(self._submit(*words), timeout)

    def _submit(self, *words: str) -> Program:
        command = [*RAY, "job", "submit", "--address", self.address, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def add_node(self, cpus: int = 1) -> Node:
        """A machine more, as `ray start --address` on it would add it; it is there when this returns."""
        (agent,) = free_ports(1)
        options = {"address": self.gcs, "dashboard-agent-listen-port": agent, **size(cpus)}
        node = start_ray(self.folder / f"node-{len(self.nodes)}.log", self.env, options)
        self.nodes.append(node)
        wait_until(lambda: "Ray runtime started" in node.log.read_text(), node.program, "a node", node.log)
        return node


def ended(program: Program, timeout: int = 600) -> Ended:
    """What a program said, once it has come to its end."""
    try:
        out, err = program.communicate(timeout=timeout)
    finally:
        program.kill()
    return Ended(program.args, program.returncode, out, err)


@contextmanager
def started_cluster(cpus: int = 2, **env: str) -> Iterator[Cluster]:
    """`ray start --head` on free ports, in a folder of its own; `env` is what its owner sets for every job."""
    folder = Path(
        tempfile.mkdtemp(prefix="ray-")
    )  # short: the paths of Ray's sockets may have 107 characters
    gcs, dashboard, agent, client = free_ports(4)
    own = {key: value for key, value in os.environ.items() if not is_of_the_outside(key)}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **env}
    own.setdefault(
        "RAY_raylet_start_wait_time_s", str(START_S)
    )  # half a minute is too short on a busy machine
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports["ray-client-server-port"] = client
    head = start_ray(folder / "head.log", own, {"head": True, "temp-dir": folder, **ports, **size(cpus)})
    cluster = Cluster(f"http://127.0.0.1:{dashboard}", own, f"127.0.0.1:{gcs}", folder, [head])
    try:
        wait_for(dashboard, head.program, "the cluster", head.log)
        yield cluster
    finally:
        for node in cluster.nodes:  # nothing is worth saving
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def start_ray(log: Path, env: dict[str, str], options: dict[str, object]) -> Node:
    """`ray start --block` with these options."""
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    with log.open("w") as said:
        program = subprocess.Popen(
            [*RAY, "start", "--block", *words], env=env, stdout=said, stderr=said, start_new_session=True
        )
    return Node(program, log)


def size(cpus: int) -> dict[str, object]:
    """A small machine."""
    return {"num-cpus": cpus, "object-store-memory": 200 * 2**20}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(port: int, server: subprocess.Popen[bytes], what: str, log: Path | None = None) -> None:
    """Until something listens there. Errors: RuntimeError with what the server said."""

    def listens() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, server, what, log)


def wait_until(
    there: Callable[[], bool], server: subprocess.Popen[bytes], what: str, log: Path | None = None
) -> None:
    """Until it is there. Errors: RuntimeError with what the server said."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        if there():
            return
        time.sleep(0.2)
    raise RuntimeError(f"{what} did not start:\n{log.read_text() if log else ''}")
