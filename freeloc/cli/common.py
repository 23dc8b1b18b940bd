"""Helpers of several commands."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from freeloc.errors import FreelocError
from freeloc.registry import registry
from freeloc.untrusted import printable, readable

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
        print(readable(problem), file=sys.stderr)
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
        message = printable(" ".join(str(error).split())[:1000], None)
        raise FreelocError(f"{problem}: {type(error).__name__}: {message}") from error


def running(code: str) -> None:
    """Say that a file or module runs as a program, before it does: people are sent adapter files as if they were data.

    >>> running("mine.py")  # on the standard error stream
    """
    print(f"freeloc: running the code of {printable(code, None)}", file=sys.stderr)


class _SaidLoader(SourceFileLoader):
    """Loads a module of the current folder, and says so before it runs."""

    def exec_module(self, module: ModuleType) -> None:
        running(f"{self.path}, in the current folder")
        super().exec_module(module)


class _SaidFolder(Loader):
    """Loads a folder of modules that has no file of its own, and says that its modules may run."""

    def exec_module(self, module: ModuleType) -> None:
        running(f"{next(iter(module.__path__))}, in the current folder")


class _HereFinder:
    """Finds top-level modules of the current folder."""

    def __init__(self) -> None:
        self._files = FileFinder(str(Path.cwd()), (_SaidLoader, SOURCE_SUFFIXES))

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module of this name, if it is not one inside a package."""
        spec = self._files.find_spec(name) if path is None else None
        if spec and spec.loader is None:
            spec.loader = _SaidFolder()
        return spec


@contextmanager
def from_here() -> Iterator[None]:
    """Make modules of the current folder importable, also later by a function that makes a model.

    They come last: a file here never takes the place of an installed package.
    """
    finder = _HereFinder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def positive(text: str) -> int:
    """Read an integer of at least 1 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number
