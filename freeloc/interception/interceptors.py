"""Three ways to intercept the attention call of a module: a function of PyTorch, a name, two products.

Nothing stays replaced once no module is running. What an interrupted run leaves, since PyTorch calls no hook after a
KeyboardInterrupt, answers nothing and is taken away by the next forward, `Patch.remove` or ``freeloc.unpatch``.
"""

import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode

from freeloc.adapter.kernel import MATMUL, SDPA, Kernel
from freeloc.adapter.paths import read_path
from freeloc.errors import AdapterError, LayoutError
from freeloc.interception.compiled import outside_graphs
from freeloc.interception.context import is_executing, lock

Answer = Callable[[Sequence[Any], Mapping[str, Any]], Any]
"""Computes an intercepted call from its positional and keyword arguments. NotImplemented leaves it to the model."""


class Interceptor(Protocol):
    """A way to intercept a module's attention call."""

    calls: int

    def enter(self) -> None:
        """Start to intercept calls of this thread."""

    def leave(self) -> None:
        """Stop to intercept."""


def interceptor_of(kernel: Kernel, module: nn.Module, answer: Answer, frame: FrameType | None) -> Interceptor:
    """The interceptor for a module's kernel while the call in `frame` is running; with None, until `leave`."""
    if kernel.function == SDPA.function:
        return SdpaInterceptor(answer, frame)
    if kernel.function == MATMUL.function:
        return ProductInterceptor(answer, frame)
    places = [_place_of(kernel.function, module)]
    if kernel.also.partition(":")[0] in sys.modules:
        places.append(_place_of(kernel.also, module))
    return NameInterceptor(answer, frame, places)


Place = tuple[Any, str]
"""A file or an object, and the name under which it has a function."""


def _place_of(function: str, module: nn.Module) -> Place:
    """Where a module finds its kernel, as in `Kernel.function`."""
    if function.startswith("."):
        return _held_by(module, function[1:])
    where, _, name = function.rpartition(":")
    return importlib.import_module(where or _home_of(name, module)), name


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


def _home_of(name: str, module: nn.Module) -> str:
    """The file of a module's class that defines this name. Libraries such as FSDP wrap the class in their own."""
    files = [base.__module__ for base in type(module).__mro__]
    return next((file for file in files if hasattr(sys.modules.get(file), name)), files[0])


class _ModeInterceptor(TorchFunctionMode):
    """Intercepts functions of PyTorch in this thread."""

    def __init__(self, answer: Answer, frame: FrameType | None) -> None:
        super().__init__()
        self.answer = answer
        self.frame = frame
        self.calls = 0

    @property
    def is_active(self) -> bool:
        """Whether its module is running. torch.compile cannot trace this; a trace is never interrupted in between."""
        return self.frame is None or is_executing(self.frame)

    def enter(self) -> None:
        """See `Interceptor`."""
        self.__enter__()  # type: ignore[no-untyped-call]  # reason: torch does not annotate it

    def leave(self) -> None:
        """See `Interceptor`."""
        if torch.compiler.is_dynamo_compiling() or _get_current_function_mode() is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            return
        others = []  # after an interrupted run it may be below other modes, or already removed
        while (mode := _get_current_function_mode()) is not None:
            others.append(mode)
            _pop_mode()
        for mode in reversed(others):
            if mode is not self:
                _push_mode(mode)


class SdpaInterceptor(_ModeInterceptor):
    """Intercepts PyTorch's own attention function."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.is_active:
            self.calls += 1
            out = self.answer(args, kwargs or {})
            return func(*args, **(kwargs or {})) if out is NotImplemented else out
        if func is Tensor.unflatten:  # Dynamo cannot trace this Python method while a mode is active
            return torch.unflatten(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class ProductInterceptor(_ModeInterceptor):
    """Records a module's product q k^T, and intercepts its next product, of the weights and v."""

    _factors: tuple[Tensor, Tensor] | None = None
    _logits: Tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "other"), args, strict=False)) | (kwargs or {})
        left, right = given["input"], given["other"]
        if left.ndim != 4 or right.ndim != 4 or not self.is_active:
            return func(*args, **(kwargs or {}))
        if self._factors is None:
            self._factors, self._logits = (left, right.mT), func(left, right)
            return self._logits
        (query, key), self._factors = self._factors, None
        weights = self._logits.float().softmax(dim=-1)
        if left.shape != weights.shape or not torch.allclose(left.float(), weights, atol=1e-2):
            raise LayoutError(
                "expected the module to compute softmax(q @ k.mT) @ v with q scaled before, found other weights than "
                "that softmax: a mask, dropout, or a scale in between"
            )
        self.calls += 1
        out = self.answer((query, key, right, 1.0), {})
        return func(left, right) if out is NotImplemented else out


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


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
            if interceptor.frame is None or is_executing(interceptor.frame):
                out = interceptor(*args, **kwargs)
                return self.original(*args, **kwargs) if out is NotImplemented else out
        return self.original(*args, **kwargs)

    @property
    def original(self) -> Callable[..., Any]:
        """What the name stands for when it is not replaced."""
        original = self._original  # another thread may have restored it by now
        return getattr(self._owner(), self._name) if original is None else original

    _outside = outside_graphs(_dispatch)
