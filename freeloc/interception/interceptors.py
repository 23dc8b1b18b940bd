"""Three ways to see the attention that a module computes, and to answer it: a function, a name, two products.

Together with hooks.py the only place that intercepts anything. Nothing stays replaced once no module is running; what
an interrupted run leaves, as PyTorch calls no hook after a KeyboardInterrupt, answers nothing until it is taken away.
"""

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from types import FrameType, ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode

from freeloc.adapter.spec import MATMUL, SDPA, Kernel
from freeloc.errors import AdapterError, LayoutError

Attention = Callable[[Sequence[Any], Mapping[str, Any]], Tensor]
"""Answers a call, given its positional and keyword arguments."""


class Takeover(Protocol):
    """A way to see a module's attention call."""

    calls: int

    def enter(self) -> None:
        """From here on, calls of this thread are taken over."""

    def leave(self) -> None:
        """No longer."""


def takeover_of(kernel: Kernel, module: nn.Module, attention: Attention) -> Takeover:
    """A way to see this kernel of a module, for as long as the caller's caller is running: its ``__call__``."""
    caller = None if torch.compiler.is_compiling() else sys._getframe(2)
    if kernel.function == SDPA.function:
        return FunctionTakeover(attention, caller)
    if kernel.function == MATMUL.function:
        return ProductTakeover(attention, caller)
    where, _, name = kernel.function.rpartition(":")
    return NameTakeover(attention, caller, where or type(module).__module__, name)


def _is_running(caller: FrameType | None) -> bool:
    """Whether this thread is inside that call still. torch.compile cannot trace this, and leaves nothing behind."""
    if torch.compiler.is_compiling() or caller is None:
        return True
    here: FrameType | None = sys._getframe()
    while here is not None and here is not caller:
        here = here.f_back
    return here is caller


class _ModeTakeover(TorchFunctionMode):
    """Sees functions of PyTorch. Of this thread only."""

    def __init__(self, attention: Attention, caller: FrameType | None) -> None:
        super().__init__()
        self.attention = attention
        self.caller = caller
        self.calls = 0

    def enter(self) -> None:
        """See `Takeover`."""
        self.__enter__()  # type: ignore[no-untyped-call]  # reason: torch does not annotate it

    def leave(self) -> None:
        """See `Takeover`."""
        if torch.compiler.is_compiling() or _get_current_function_mode() is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            return
        others = []  # an interrupted run has left it below modes of others, or the exit of one has taken it already
        while (mode := _get_current_function_mode()) is not None:
            others.append(mode)
            _pop_mode()
        for mode in reversed(others):
            if mode is not self:
                _push_mode(mode)


class FunctionTakeover(_ModeTakeover):
    """Sees PyTorch's own attention function."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and _is_running(self.caller):
            self.calls += 1
            return self.attention(args, kwargs or {})
        if func is Tensor.unflatten:  # Dynamo cannot trace this Python method while a mode is active
            return torch.unflatten(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class ProductTakeover(_ModeTakeover):
    """Sees a module multiply q k^T, and answers its next product, that of the weights and v."""

    _factors: tuple[Tensor, Tensor] | None = None
    _logits: Tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "other"), args, strict=False)) | (kwargs or {})
        factors = given["input"], given["other"]
        if factors[0].ndim != 4 or factors[1].ndim != 4 or not _is_running(self.caller):
            return func(*args, **(kwargs or {}))
        left, right = factors
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
        return self.attention((query, key, right, 1.0), {})


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class NameTakeover:
    """Sees a function by the name under which a file has it, while a module of this thread runs."""

    def __init__(self, attention: Attention, caller: FrameType | None, module: str, function: str) -> None:
        self.attention = attention
        self.caller = caller
        self.calls = 0
        self._swap = _Swap.of(importlib.import_module(module), function)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Answer a call of the function."""
        self.calls += 1
        return self.attention(args, kwargs)

    def enter(self) -> None:
        """See `Takeover`."""
        self._swap.push(self)

    def leave(self) -> None:
        """See `Takeover`."""
        self._swap.remove(self)


class _Swap:
    """Replaces a name in a file's globals for as long as any thread needs it; other threads still get the original."""

    _all: "dict[tuple[str, str], _Swap]" = {}  # noqa: RUF012  # reason: one per name, or two would undo each other
    _lock = threading.Lock()

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module, self._name = module, name
        self._users = 0
        self._local = threading.local()

    @classmethod
    def of(cls, module: ModuleType, name: str) -> "_Swap":
        if not callable(getattr(module, name, None)):
            raise AdapterError(f"{module.__name__} has no function '{name}', which its adapter expects")
        with cls._lock:
            known = cls._all.get((module.__name__, name))
            if known is None or known._module is not module:
                known = cls._all[module.__name__, name] = cls(module, name)
            return known

    def push(self, takeover: NameTakeover) -> None:
        with self._lock:
            if self._users == 0:
                self._original = getattr(self._module, self._name)
                setattr(self._module, self._name, self._route)
            self._users += 1
        self._local.stack = [*getattr(self._local, "stack", ()), takeover]

    def remove(self, takeover: NameTakeover) -> None:
        self._local.stack = [other for other in self._local.stack if other is not takeover]
        with self._lock:
            self._users -= 1
            if self._users == 0:
                setattr(self._module, self._name, self._original)

    def _route(self, *args: Any, **kwargs: Any) -> Any:
        running = [takeover for takeover in getattr(self._local, "stack", ()) if _is_running(takeover.caller)]
        return (running[-1] if running else self._original)(*args, **kwargs)


class HeldAttributes:
    """Attributes of a module that have another value while it runs, in however many threads.

    Args:
        values: import path of the value (``"module:name"``) by attribute path, as in `AttentionSite.while_running`.
    """

    _lock = threading.Lock()

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {path: _imported(value) for path, value in values.items()}
        self._before: list[tuple[Any, str, bool, Any]] = []
        self.users = 0
        """Calls that are running."""

    def hold(self, module: nn.Module) -> None:
        """From here on the module has these values."""
        with self._locked():
            self.users += 1
            if self.users > 1:
                return
            for path, value in self._values.items():
                parent, _, name = path.rpartition(".")
                owner = attrgetter(parent)(module) if parent else module
                self._before.append((owner, name, name in owner.__dict__, getattr(owner, name, None)))
                setattr(owner, name, value)

    def release(self) -> None:
        """If no other call needs them, the module has its own again."""
        with self._locked():
            self.users -= 1
            while self._before and not self.users:
                owner, name, own, value = self._before.pop()
                if own:
                    setattr(owner, name, value)
                else:
                    delattr(owner, name)

    def _locked(self) -> contextlib.AbstractContextManager[object]:
        """torch.compile traces one thread and no locks."""
        return contextlib.nullcontext() if torch.compiler.is_compiling() else self._lock


def _imported(path: str) -> Any:
    module, _, names = path.partition(":")
    return attrgetter(names)(importlib.import_module(module))
