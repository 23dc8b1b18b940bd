"""Three ways to intercept the attention call of a module: a function of PyTorch, a name, two products.

Nothing stays replaced once no module is running. What an interrupted run leaves, since PyTorch calls no hook after a
KeyboardInterrupt, answers nothing and is taken away by the next forward, `Patch.remove` or ``freeloc.unpatch``.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from freeloc.adapter.kernel import MATMUL, SDPA, Kernel
from freeloc.errors import AdapterError, LayoutError
from freeloc.interception.compiled import outside_graphs
from freeloc.interception.context import is_inside
from freeloc.interception.names import Answer, NameInterceptor, places_of


class Interceptor(Protocol):
    """A way to intercept a module's attention call."""

    @property
    def calls(self) -> int:
        """Calls so far."""

    def enter(self) -> None:
        """Start to intercept calls of this thread."""

    def leave(self) -> None:
        """Stop to intercept."""


def interceptor_of(
    kernels: Sequence[Kernel],
    module: nn.Module,
    answer: Callable[[Sequence[Kernel], Sequence[Any], Mapping[str, Any]], Any],
    frame: FrameType,
) -> Interceptor:
    """The interceptor for a module's kernels while the call in `frame` is running.

    `answer` also gets the descriptions of the function that was called. Of several functions, a module may lack some.

    Raises:
        AdapterError: if it has none of them.
    """
    functions = dict.fromkeys(kernel.function for kernel in kernels)
    found: list[Interceptor] = []
    problem = None
    for function in functions:
        own = [kernel for kernel in kernels if kernel.function == function]
        try:
            found.append(_interceptor_of(own[0], module, functools.partial(answer, own), frame))
        except AdapterError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found[0] if len(found) == 1 else SeveralInterceptors(found)


def _interceptor_of(kernel: Kernel, module: nn.Module, answer: Answer, frame: FrameType) -> Interceptor:
    if kernel.function == SDPA.function:
        return SdpaInterceptor(answer, functools.partial(is_inside, frame))
    if kernel.function == MATMUL.function:
        return ProductInterceptor(answer, functools.partial(is_inside, frame))
    places = places_of(kernel.function, module)
    if kernel.also.partition(":")[0] in sys.modules:
        places += places_of(kernel.also, module)
    return NameInterceptor(answer, frame, places)


class SeveralInterceptors:
    """Intercepts several functions, of which a module calls one or another."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self.interceptors = interceptors

    @property
    def calls(self) -> int:
        """Calls of all functions."""
        return sum(interceptor.calls for interceptor in self.interceptors)

    def enter(self) -> None:
        """See `Interceptor`."""
        for interceptor in self.interceptors:
            interceptor.enter()

    def leave(self) -> None:
        """See `Interceptor`."""
        for interceptor in reversed(self.interceptors):
            interceptor.leave()


class _ModeInterceptor(TorchFunctionMode):
    """Intercepts functions of PyTorch in this thread.

    Dynamo cannot look up properties of an active mode once its graph has broken, so it has none.

    Args:
        answer: see `interceptor_of`.
        is_running: whether its module is running. After an interrupt, no hook ends the interception.
        is_traced: whether torch.compile traces the answer.
    """

    def __init__(self, answer: Answer, is_running: Callable[[], bool], is_traced: bool = False) -> None:
        super().__init__()
        self.answer = answer
        self.is_running = is_running
        self.is_traced = is_traced
        self.calls = 0

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


def leave_dead() -> None:
    """Remove what interrupted calls left in this thread."""
    for mode in _get_current_function_mode_stack():
        if isinstance(mode, _ModeInterceptor) and not mode.is_running():
            mode.leave()


class SdpaInterceptor(_ModeInterceptor):
    """Intercepts PyTorch's own attention function."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            if self.is_traced or not torch.compiler.is_dynamo_compiling():
                return self._call(func, args, kwargs or {})
            return self._call_outside(func, args, kwargs or {})  # the forward alone is compiled, without its hooks
        if func is Tensor.unflatten:  # Dynamo cannot trace this Python method while a mode is active
            return torch.unflatten(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_running():
            return func(*args, **kwargs)
        self.calls += 1
        out = self.answer(args, kwargs)
        return func(*args, **kwargs) if out is NotImplemented else out

    _call_outside = outside_graphs(_call)


class ProductInterceptor(_ModeInterceptor):
    """Records a module's product q k^T, and intercepts its next product, of the weights and v."""

    _factors: tuple[Tensor, Tensor] | None = None
    _logits: Tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(("input", "other"), args)), **(kwargs or {})}  # noqa: B905  # reason: docs/architecture.md
        left, right = given["input"], given["other"]
        if left.ndim != 4 or right.ndim != 4 or not self.is_running():
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
