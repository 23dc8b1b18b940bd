"""What a forward of a patched model says while it is running, thread by thread."""

import threading
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Call(NamedTuple):
    """What a forward of a model says about those of its attention modules.

    Tensors, since torch.compile guards numbers, which would make it compile every layer and every length anew, but not
    what is in a tensor.
    """

    grids: Tensor
    """(1 or samples, 3): latent frames, rows, columns."""
    step: Tensor
    """Positions per latent frame."""


class _Own(threading.local):
    """Of each thread its own; a copy begins with nothing."""

    def __init__(self) -> None:
        self.value: Any = None

    def __reduce__(self) -> Any:
        return _Own, ()


class Noted(Generic[T]):
    """A note for the modules that run later in the same forward, and so in the same thread.

    Two see the last note of any thread instead: threads in which autograd runs a checkpointed forward again, since they
    never noted anything, and all under torch.compile, which in one trace does not read what it wrote for one thread.

    >>> noted = Noted[str]()
    >>> noted.value is None, noted.note("9 frames"), noted.value
    (True, None, '9 frames')
    """

    def __init__(self) -> None:
        self._own = _Own()
        self._last: T | None = None
        self._compiled = False

    @property
    def value(self) -> T | None:
        """The last note, or None."""
        if torch.compiler.is_compiling() or self._compiled:
            return self._last
        found: T | None = self._own.value
        return self._last if found is None else found

    def note(self, value: T | None) -> None:
        """In place of the last note."""
        self._last, self._compiled = value, torch.compiler.is_compiling()
        if not self._compiled:
            self._own.value = value


class Open(threading.local):
    """What this thread has taken over and not given back yet, in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __reduce__(self) -> Any:
        return Open, ()
