"""The processes of this machine, by who started them."""

import os
import signal
import time
from pathlib import Path


def below(pid: int) -> list[int]:
    """All that a process started, and what those started."""
    parents = {int(place.name): _parent(place) for place in Path("/proc").glob("[0-9]*")}
    found, more = [], [pid]
    while more:
        more = [child for child, parent in parents.items() if parent in more]
        found += more
    return found


def _parent(place: Path) -> int:
    try:
        return int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def command_of(pid: int) -> str:
    """What it was started as, or calls itself; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def kill(pid: int) -> None:
    """SIGKILL: no process can do anything about it."""
    os.kill(pid, signal.SIGKILL)


def alive_after(pids: list[int], seconds: float) -> list[int]:
    """Those that still run when so much time is over; earlier where none does."""
    until = time.monotonic() + seconds
    while (alive := [pid for pid in pids if command_of(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    return alive
