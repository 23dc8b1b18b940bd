"""Faults: an error at any line of freeloc that an action runs, and what a patch could leave behind."""

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import freeloc

FOLDER = Path(freeloc.__file__).parent


class InjectedError(Exception):
    """An ordinary error that nobody expects."""


ERRORS: dict[str, type[BaseException]] = {
    "interrupt": KeyboardInterrupt,
    "error": InjectedError,
    "no memory": MemoryError,
    "no memory on the device": torch.OutOfMemoryError,
}


class Point(NamedTuple):
    """A line, and how often it has run before, in the same action."""

    file: str
    line: int
    before: int = 0
    function: str = ""
    """In which it is."""


class _Tracing:
    """Follows the lines of freeloc that run in this thread inside the block.

    Args:
        places: files and folders, below freeloc; by default all.
    """

    def __init__(self, places: Iterable[str] = ("",)) -> None:
        self._places = tuple(str(FOLDER / place) for place in places)
        self.ran: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Any:
        self._outer = sys.gettrace()  # that of a debugger, or of a measurement of coverage
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._outer)

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._places) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            self.ran[place] += 1
            self.reached(place, frame.f_code.co_name)
        return self._line

    def reached(self, place: tuple[str, int], function: str) -> None:
        """Called before a line of a function runs."""


class Injection(_Tracing):
    """Raises an error before a line runs, once. `was_raised` says whether it did."""

    def __init__(self, point: Point, error: BaseException) -> None:
        super().__init__([point.file])
        self._point, self._error = point, error
        self.was_raised = False

    def reached(self, place: tuple[str, int], function: str) -> None:
        if place == self._point[:2] and self.ran[place] == self._point.before + 1:
            sys.settrace(self._outer)
            self.was_raised = True
            raise self._error


def inject(point: Point, error: BaseException, action: Callable[[], object]) -> None:
    """Run an action with an error at a line of it: that very error must come out.

    Raises:
        AssertionError: for a point that the action does not reach, or if another error comes out.
    """
    injection, caught = Injection(point, error), None
    try:
        with injection:
            action()
    except type(error) as raised:
        caught = raised
    assert injection.was_raised, f"not reached: {point}"
    assert caught is error


class _Recording(_Tracing):
    def __init__(self, places: Iterable[str]) -> None:
        super().__init__(places)
        self.points: list[Point] = []

    def reached(self, place: tuple[str, int], function: str) -> None:
        self.points.append(Point(*place, self.ran[place] - 1, function))


def points_of(action: Callable[[], object], *places: str, distinct: bool = False) -> list[Point]:
    """The lines that an action runs in these files and folders of freeloc, in order; with `distinct`, each once."""
    gc.disable()  # what is freed by chance inside the action runs lines of freeloc that the next one will not run
    try:
        with _Recording(places or ("",)) as found:
            action()
    finally:
        gc.enable()
    return [point for point in found.points if not (distinct and point.before)]


def every(few: int, some: int, each: int = 1) -> pytest.MarkDecorator:
    """Each of so many points: in the fast tests, in the slow ones, and in those that take hours."""
    slow, hours = pytest.param(some, marks=pytest.mark.slow), pytest.param(each, marks=pytest.mark.hours)
    return pytest.mark.parametrize("every", [few, slow, hours])


def state_of(model: torch.nn.Module) -> list[Any]:
    """All that a patch could leave behind, copied."""
    found = []
    for module in model.modules():
        hooks = module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called
        kinds = module._forward_pre_hooks_with_kwargs, module._forward_hooks_with_kwargs
        processor = getattr(module, "processor", None)
        found.append([*map(dict, (*hooks, *kinds)), sorted(vars(module)), dict(vars(processor)) if processor else None])
    return found
