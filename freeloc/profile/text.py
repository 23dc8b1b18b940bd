"""The JSON format of profile files, which is easy to read in a pull request."""

import json
import re
from typing import Any


def as_json(content: Any) -> bytes:
    """Indented JSON in UTF-8, with each list of numbers on one line, and invisible characters escaped.

    >>> print(as_json({"layers": {"vrpr": [0, 1]}}).decode(), end="")
    {
      "layers": {
        "vrpr": [0, 1]
      }
    }
    """
    text = _one_line_per_list(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"
    return re.sub(r"[^ -~\n]", _escaped, text).encode()


def _escaped(letter: re.Match[str]) -> str:
    """A character as it is, or escaped if it is invisible."""
    return letter[0] if letter[0].isprintable() else json.dumps(letter[0])[1:-1]


def _one_line_per_list(text: str) -> str:
    """Put each list of numbers on one line: 30 layers are one line of a diff, not 30."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        lines[-1:] = [lines[-1] + line.strip() + (" " if line.endswith(",") else "")] if inside else [*lines[-1:], line]
        inside = (inside or line.endswith("[")) and "]" not in line
    return "\n".join(line.rstrip() for line in lines)
