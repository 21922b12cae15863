"""How a stage's settings are declared: a frozen dataclass that refuses keys it does not know."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def frozen(cls: type[T]) -> type[T]:
    """A config class: immutable, keyword-only, and parsed strictly by pydantic at the edge."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)
