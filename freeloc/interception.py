"""Three ways to see the attention that a module computes, and to answer it: a function, a name, two products.

Together with hooks.py the only place that intercepts anything. Nothing stays replaced once no module is running.
"""

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


class FunctionTakeover(TorchFunctionMode):
    """Sees PyTorch's own attention function. Of this thread only."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            return self.attention(args, kwargs or {})
        if func is Tensor.unflatten:  # Dynamo cannot trace this Python method while a mode is active
            return torch.unflatten(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def enter(self) -> None:
        """See `Takeover`."""
        self.__enter__()  # type: ignore[no-untyped-call]  # reason: torch does not annotate it

    def leave(self) -> None:
        """See `Takeover`."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class ProductTakeover(TorchFunctionMode):
    """Sees a module multiply q k^T, and answers its next product, that of the weights and v. Of this thread only."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.calls = 0
        self._factors: tuple[Tensor, Tensor] | None = None
        self._logits: Tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS or args[0].ndim != 4 or args[1].ndim != 4:
            return func(*args, **(kwargs or {}))
        left, right = args
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

    def enter(self) -> None:
        """See `Takeover`."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """See `Takeover`."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class NameTakeover:
    """Sees a function by the name under which a file has it, while a module of this thread runs."""

    def __init__(self, attention: Attention, module: str, function: str) -> None:
        self.attention = attention
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
        self._swap.pop()


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

    def pop(self) -> None:
        self._local.stack.pop()
        with self._lock:
            self._users -= 1
            if self._users == 0:
                setattr(self._module, self._name, self._original)

    def _route(self, *args: Any, **kwargs: Any) -> Any:
        stack = getattr(self._local, "stack", None)
        return (stack[-1] if stack else self._original)(*args, **kwargs)
