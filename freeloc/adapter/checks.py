"""Checks of an adapter's fields: a mistake is an error where the adapter is written, not later inside a model."""

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from freeloc.errors import AdapterError


def require(holds: object, field: str, expected: str, found: object, remedy: str = "") -> None:
    """Raise an AdapterError that names a field of an adapter, unless the condition holds."""
    if not holds:
        shown = textwrap.shorten(repr(found), 80, placeholder="...")
        raise AdapterError(f"{field}: expected {expected}, found {shown}{remedy and ': '}{remedy}")


def check_types(described: Any) -> None:
    """Require every field of a dataclass to have its declared type.

    Raises:
        AdapterError: for the first field that has another type.
    """
    for field in fields(described):
        value = getattr(described, field.name)
        comma = get_origin(field.type) is tuple and not isinstance(value, tuple)
        require(
            _fits(value, field.type),
            f"{type(described).__name__}.{field.name}",
            _type_name(field.type),
            value,
            "a tuple with one item needs a comma, (x,)" if comma else "",
        )


def _fits(value: object, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple and isinstance(value, tuple):
        parts = parts[:1] * max(1, len(value)) if parts[1] is ... else parts
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is Mapping and isinstance(value, Mapping):
        return all(_fits(key, parts[0]) and _fits(item, parts[1]) for key, item in value.items())
    if kind is Callable:
        return callable(value)
    return isinstance(value, int | float if hint is float else kind or hint)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else re.sub(r"(\w+\.)+(?=\w)", "", str(hint))
