"""HTML that is escaped unless it was built here: what a scan is called can never become markup."""

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = {"img", "input", "meta"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """`<name ...>children</name>`; text is escaped, None is left out, lists are flattened.

    `class_` gives `class`, `data_case` gives `data-case`; True is a bare attribute, None and False are none.
    """
    held = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{held}>")
    return Html(f"<{name}{held}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """Children one after another, each escaped unless it is `Html`."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        else:
            parts.append(escape(str(child), quote=False))
    return Html("".join(parts))
