"""Helpers of several commands."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from freeloc.errors import FreelocError
from freeloc.registry import registry

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


def problems(more: Sequence[str] = ()) -> int:
    """Print the problems of plugins; return 1 if there are any, else 0."""
    known = registry()
    failures = [str(failure) for failure in known.failures]
    found = [
        *failures,
        *known.adapters.conflicts(),
        *known.profiles.conflicts(),
        *known.methods.conflicts(),
        *known.backends.conflicts(),
        *known.scorers.conflicts(),
        *known.depths.conflicts(),
        *more,
    ]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


@contextmanager
def errors_as(problem: str) -> Iterator[None]:
    """Turn an error of other libraries inside the block into one message.

    >>> with errors_as("cannot count"):
    ...     int("three")
    Traceback (most recent call last):
    freeloc.errors.FreelocError: cannot count: ValueError: invalid literal for int() with base 10: 'three'

    Raises:
        FreelocError: in place of any other exception, which becomes its cause.
    """
    try:
        yield
    except FreelocError:
        raise
    except Exception as error:
        raise FreelocError(f"{problem}: {type(error).__name__}: {error}") from error


@contextmanager
def from_here() -> Iterator[None]:
    """Make modules of the current directory importable, also later by a function that makes a model."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def positive(text: str) -> int:
    """Read an integer of at least 1 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number
