"""What the words of an adapter may be: a slip is an error where it is written, not later from inside a model."""

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from freeloc.errors import AdapterError


def require(holds: object, word: str, expected: str, found: object, remedy: str = "") -> None:
    """Raise an AdapterError that names a word, unless something holds of it."""
    if not holds:
        shown = textwrap.shorten(repr(found), 80, placeholder="...")
        raise AdapterError(f"{word}: expected {expected}, found {shown}{remedy and ': '}{remedy}")


def check_types(words: Any) -> None:
    """Require every word of a dataclass to be of the type that it is declared with.

    Raises:
        AdapterError: for the first one that is not.
    """
    for field in fields(words):
        value = getattr(words, field.name)
        comma = get_origin(field.type) is tuple and not isinstance(value, tuple)
        require(
            _fits(value, field.type),
            f"{type(words).__name__}.{field.name}",
            _in_words(field.type),
            value,
            "a tuple of one thing needs a comma, (x,)" if comma else "",
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


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else re.sub(r"(\w+\.)+(?=\w)", "", str(hint))
