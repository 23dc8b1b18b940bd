"""Intercepts a function by its name: in the globals of a file, or in an attribute of an object that holds it."""

import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import nn

from freeloc.adapter.paths import read_path
from freeloc.errors import AdapterError
from freeloc.interception.compiled import outside_graphs
from freeloc.interception.context import is_inside, lock

Answer = Callable[[Sequence[Any], Mapping[str, Any]], Any]
"""Computes an intercepted call from its positional and keyword arguments. NotImplemented leaves it to the model."""


Place = tuple[Any, str]
"""A file or an object, and the name under which it has a function."""


def places_of(function: str, module: nn.Module) -> list[Place]:
    """Where a module finds its kernel, as in `Kernel.function`."""
    if function.startswith("."):
        return [_held_by(module, function[1:])]
    where, _, name = function.rpartition(":")
    if not where:
        return [(file, name) for file in _homes_of(name, module)]
    try:
        return [(importlib.import_module(where), name)]
    except ImportError as error:
        raise AdapterError(f"its adapter expects {function}, which cannot be imported: {error}") from error


def _held_by(module: nn.Module, path: str) -> Place:
    """Where a module holds its kernel: in an attribute, by path. A module that is a kernel is called by its forward."""
    parent, _, name = path.rpartition(".")
    owner = read_path(module, parent) if parent else module
    held = getattr(owner, name, None)
    if not callable(held):
        found = "no such attribute" if not hasattr(owner, name) else f"a {type(held).__name__}"
        raise AdapterError(
            f"expected a function, a module or another callable as {type(owner).__name__}.{name}, the kernel of its "
            f"adapter ('.{path}'), found {found}"
        )
    return (held, "forward") if isinstance(held, nn.Module) else (owner, name)


def _homes_of(name: str, module: nn.Module) -> list[ModuleType]:
    """The files of a module's class and its bases that have the function with this name.

    The class that defines ``forward`` comes first: libraries such as FSDP wrap a class in their own. Another file
    counts if its name is the same function.
    """
    bases = type(module).__mro__
    first = next((index for index, base in enumerate(bases) if "forward" in vars(base)), 0)
    files = [
        sys.modules[base.__module__] for base in (*bases[first:], *bases[:first]) if base.__module__ in sys.modules
    ]
    found = {id(file): file for file in files if callable(getattr(file, name, None))}
    if not found:
        raise AdapterError(f"{bases[first].__module__} has no function '{name}', which its adapter expects")
    functions = {key: _Name.of(file, name).original for key, file in found.items()}
    kernel = next(iter(functions.values()))
    return [file for key, file in found.items() if functions[key] is kernel]


class NameInterceptor:
    """Intercepts a function by the names under which files or objects have it, while a module of this thread runs."""

    def __init__(self, answer: Answer, frame: FrameType | None, places: Sequence[Place]) -> None:
        self.answer = answer
        self.frame = frame
        self.calls = 0
        self._names = [_Name.of(owner, name) for owner, name in places]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute an intercepted call of the function."""
        self.calls += 1
        return self.answer(args, kwargs)

    def enter(self) -> None:
        """See `Interceptor`."""
        for name in self._names:
            name.push(self)

    def leave(self) -> None:
        """See `Interceptor`."""
        for name in self._names:
            name.remove(self)


class _Route(functools.partial):  # type: ignore[type-arg]
    """What a name stands for while it is replaced. A copy or pickle of its owner has the original."""

    def __reduce__(self) -> Any:
        return _same, (self.func.__self__.original,)  # type: ignore[attr-defined]  # reason: it is a method of `_Name`


def _same(value: Any) -> Any:
    return value


class _Name:
    """A name in a file's globals or an object's attributes, replaced while any thread needs it.

    Other threads still call the original. The replacement is always the same one, since torch.compile guards it.
    """

    _all: "dict[tuple[int, str], _Name]" = {}  # noqa: RUF012  # reason: one object per name, since two would undo each other

    def __init__(self, owner: Any, name: str) -> None:
        key = id(owner), name
        try:
            vars(owner)
            self._owner = weakref.ref(owner, lambda _: self._all.pop(key, None))
        except TypeError as error:
            raise AdapterError(f"expected an attribute that can be set, found {type(owner).__name__}.{name}") from error
        self._name = name
        self._original: Callable[..., Any] | None = None  # only while it is replaced: it may hold its owner
        self._is_own = True
        self._route = _Route(self._dispatch)
        self._users: list[NameInterceptor] = []
        self._local = threading.local()

    @classmethod
    def of(cls, owner: Any, name: str) -> "_Name":
        if not callable(getattr(owner, name, None)):
            raise AdapterError(f"{owner.__name__} has no function '{name}', which its adapter expects")
        with lock:
            known = cls._all.get((id(owner), name))
            if known is None or known._owner() is not owner:
                known = cls._all[id(owner), name] = cls(owner, name)
            return known

    # An interrupt may come after any line, so the original is stored before it is replaced, and forgotten after it was
    # restored. Attributes are set in `__dict__`: modules would refuse to set a name that they register.

    def push(self, interceptor: NameInterceptor) -> None:
        self._local.stack = [*getattr(self._local, "stack", ()), interceptor]
        with lock:
            self._users.append(interceptor)
            owner = self._owner()
            if vars(owner).get(self._name) is not self._route:
                self._original, self._is_own = getattr(owner, self._name), self._name in vars(owner)
                vars(owner)[self._name] = self._route

    def remove(self, interceptor: NameInterceptor) -> None:
        self._local.stack = [other for other in getattr(self._local, "stack", ()) if other is not interceptor]
        with lock:
            self._users = [other for other in self._users if other is not interceptor]
            owner = self._owner()
            if self._users or owner is None:
                return
            if vars(owner).get(self._name) is self._route:
                if self._is_own:
                    vars(owner)[self._name] = self._original
                else:
                    del vars(owner)[self._name]
            self._original = None

    def _dispatch(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self._outside(*args, **kwargs)
        for interceptor in reversed(getattr(self._local, "stack", ())):
            if interceptor.frame is None or is_inside(interceptor.frame):
                out = interceptor(*args, **kwargs)
                return self.original(*args, **kwargs) if out is NotImplemented else out
        return self.original(*args, **kwargs)

    @property
    def original(self) -> Callable[..., Any]:
        """What the name stands for when it is not replaced."""
        original = self._original  # another thread may have restored it by now
        return getattr(self._owner(), self._name) if original is None else original

    _outside = outside_graphs(_dispatch)
