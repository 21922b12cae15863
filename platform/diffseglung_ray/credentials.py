"""Passwords and tokens come from the environment or from files; none of them is said again."""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType

USER_INFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
SIGNED = re.compile(
    r"([?&][\w-]*(?:signature|token|credential|secret|password|sig|key)[\w-]*=)[^&\s'\"]+", re.I
)


def without_credentials(text: str) -> str:
    """The same text, where addresses in it carry no user, password or signature."""
    return SIGNED.sub(r"\1***", USER_INFO.sub("***@", text))


def has_credentials(place: str) -> bool:
    """Whether an address brings a user, a password or a signature with it."""
    return without_credentials(place) != place


def keep_from_trials() -> None:
    """Ray Tune hands the driver's AWS keys to every trial, in an environment that Ray's agents log: it no longer does.

    Nodes have credentials of their own, as for all other jobs.
    """
    from ray.tune.execution import class_cache

    handed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in handed_on if not n.startswith("AWS_")}


def hide_in_tracebacks() -> None:
    """An error that nobody expected is shown whole, but for the credentials in its message."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(
            without_credentials("".join(traceback.format_exception(kind, error, trace))),
            file=sys.stderr,
            end="",
        )

    sys.excepthook = show
