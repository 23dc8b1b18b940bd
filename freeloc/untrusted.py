"""Reading untrusted input: strict JSON, and short messages that are safe to print in a terminal."""

import json
import reprlib
from collections import Counter
from typing import Any

from pydantic import BaseModel, ValidationError

from freeloc.errors import FreelocError

MOST_LINES = 10
"""Largest number of problems that one error message lists."""

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlist = _BRIEF.maxtuple = 8


def parsed(text: str | bytes) -> Any:
    """The content of a JSON text, in UTF-8 if it is bytes, in which no object has a field twice.

    Raises:
        ValueError, RecursionError: if it is not JSON.
    """
    return json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, or an error if it has a field twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field '{printable(name)}' is given {count} times")
    return found


def check_version(found: Any, newest: int, where: str, kind: str = "") -> None:
    """Check that this version of freeloc can read a file of this schema version.

    Raises:
        FreelocError: if it is not.
    """
    if type(found) is not int or not 1 <= found <= newest:
        is_newer = type(found) is int and found > newest
        expected = " or ".join(part for part in (", ".join(map(str, range(1, newest))), str(newest)) if part)
        newer = ". A newer file needs a newer freeloc: pip install --upgrade freeloc" if is_newer else ""
        raise FreelocError(f"{where}: expected {kind}schema_version {expected}, found {brief(found)}{newer}")


def problems(error: ValidationError, above: str = "") -> str:
    """The first problems, one per line: the field (below `above`), what is allowed, and what was found."""
    found = error.errors(include_url=False)
    lines = []
    for problem in found[:MOST_LINES]:
        path = [part for part in (above, *problem["loc"]) if part != ""]
        place = printable(".".join(map(str, path)), 80) or "profile"
        hidden = isinstance(problem["input"], dict | BaseModel)
        value = "" if hidden else f", found {brief(problem['input'])}"
        lines.append(f"  {place}: {problem['msg'][:200]}{value}")
    if len(found) > MOST_LINES:
        lines.append(f"  and {len(found) - MOST_LINES} more")
    return "\n".join(lines)


def brief(value: Any) -> str:
    """A value as Python writes it, shortened to at most 100 characters."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # Python refuses to write very large integers
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def readable(message: str) -> str:
    """A message of several lines, with escapes for characters that cannot be printed.

    >>> print(readable("two\\nlines and \\x1b[31mred"))
    two
    lines and \\x1b[31mred
    """
    return "\n".join(printable(line, None) for line in message.split("\n"))


def printable(text: str, length: int | None = 300) -> str:
    """An untrusted text on one line: only its end if it is long, with escapes for characters that cannot be printed."""
    shown = text if length is None or len(text) <= length else f"...{text[-length:]}"
    return shown if shown.isprintable() else repr(shown)[1:-1]
