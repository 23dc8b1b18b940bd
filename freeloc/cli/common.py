"""What several commands need."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from freeloc.registry import registry

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


def problems(more: Sequence[str] = ()) -> int:
    """Tell what is wrong with plugins; 1 if anything is."""
    known = registry()
    failures = [str(failure) for failure in known.failures]
    found = [
        *failures,
        *known.adapters.conflicts(),
        *known.profiles.conflicts(),
        *known.methods.conflicts(),
        *known.scorers.conflicts(),
        *more,
    ]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def positive(text: str) -> int:
    """A number of the command line, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number
