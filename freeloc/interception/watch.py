"""Observation of attention calls: in a patched model, layer by layer, and in a model without an adapter."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from freeloc.adapter.kernel import Kernel
from freeloc.adapter.reader import Signature
from freeloc.adapter.rope import TemporalRope
from freeloc.attention.layout import TokenLayout
from freeloc.errors import LayoutError
from freeloc.interception.interceptors import PRODUCTS
from freeloc.interception.kernel_call import read_call


@dataclass(frozen=True)
class LayerCall:
    """One attention call of a patched model, before any correction.

    Args:
        layer: number of the layer.
        query, key, value: (batch, heads, tokens, head_dim), rotated by the model.
        layout: the order of the tokens.
        mask, scale: mask and scale of the model.
        rope: the temporal RoPE with this model's numbers; None if it has none.
        frequencies: frequencies of the temporal pairs, in radians per latent frame, (pairs,) or (heads, pairs).
        path: path of the attention module.
        given: the arguments of the kernel, by name; empty in a compiled model.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    layout: TokenLayout
    mask: Tensor | None
    scale: float | None
    rope: TemporalRope | None
    frequencies: Tensor
    path: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)


Observer = Callable[[LayerCall], Tensor | None]
"""Gets every attention call of a patched model. It may return the output, (batch, heads, tokens, head_dim)."""


@dataclass(frozen=True)
class AttentionCall:
    """One computation of attention.

    Args:
        path: path of the innermost running module.
        kernel: ``"torch.nn.functional.scaled_dot_product_attention"``, ``"torch.matmul"`` for two products, or
            ``"module:name"``.
        query, key, value: (batch, heads, tokens, head_dim).
        mask: the attention mask of the call.
        given: the arguments of that module, by name, in the order of its forward.
        around: the modules around it, the outermost first.
        valid: valid leading keys of each sample, (batch,), if the function gets them.
    """

    path: str
    kernel: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    around: tuple["Running", ...] = ()
    valid: Tensor | None = None


class Running(NamedTuple):
    """A running module, and what it was called with."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def given(self) -> dict[str, Any]:
        """The arguments by name, in the order of its forward."""
        signature = Signature(self.module)
        given = signature.given(self.args, self.kwargs)
        return {name: given[name] for name in signature.names if name in given} | given


class RunningModules:
    """Follows which module of a model is running. A context manager.

    Args:
        model: any module.
        inputs: arguments of its forward.
        entered: function that gets each module that begins to run.
        left: function that gets each module that has run, and what it returned.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        entered: Callable[[Running], None] | None = None,
        left: Callable[[Running, Any], None] | None = None,
    ) -> None:
        self._model = model
        self._entered, self._left = entered, left
        self._running = [Running("", model, (), inputs)]
        self._hooks = contextlib.ExitStack()

    @property
    def around(self) -> tuple[Running, ...]:
        """The modules around the innermost one, the outermost first."""
        return tuple(self._running[:-1])

    @property
    def innermost(self) -> Running:
        """The innermost running module."""
        return self._running[-1]

    def __enter__(self) -> "RunningModules":
        with contextlib.ExitStack() as hooks:
            for path, module in self._model.named_modules():
                enter, leave = self._enter(path), self._leave
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(Running(path, module, args, kwargs))
            if self._entered is not None:
                self._entered(self._running[-1])

        return enter

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        running = self._running.pop()
        if self._left is not None:
            self._left(running, output)


class _Watching(TorchFunctionMode):
    """Records every attention call with the path of its module."""

    def __init__(self, modules: RunningModules, until: Callable[[AttentionCall], bool] | None) -> None:
        super().__init__()
        self.until = until
        self.modules = modules
        self.calls: list[AttentionCall] = []
        self._factors: tuple[str, Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | dict(kwargs)
            tensors = given["query"], given["key"], given["value"]
            self.note("torch.nn.functional.scaled_dot_product_attention", *tensors, given.get("attn_mask"))
        elif func in PRODUCTS:
            factors = dict(zip(("input", "other"), args, strict=False)) | dict(kwargs)
            if factors["input"].ndim == factors["other"].ndim == 4:
                self._note_product(factors["input"], factors["other"])
        return func(*args, **kwargs)

    def note(self, kernel: str, *tensors: Any) -> None:
        """Record a call with its query, key, value, mask and valid keys."""
        here = self.modules.innermost
        query, key, value, mask, valid = (*tensors, None, None)[:5]
        call = AttentionCall(here.path, kernel, query, key, value, mask, here.given(), self.modules.around, valid)
        self.calls.append(call)
        if self.until is not None and self.until(call):
            raise _SeenError

    @contextlib.contextmanager
    def named(self, function: str, kernels: Sequence[Kernel]) -> Iterator[None]:
        """Record the calls of a function by ``"module:name"``, as these kernels describe it, and leave them to it."""
        file, _, name = function.partition(":")
        module = importlib.import_module(file)
        original = getattr(module, name)

        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(LayoutError):  # a call of another form, such as of a text encoder
                self.note(function, *read_call(kernels, args, kwargs)[:5])
            return original(*args, **kwargs)

        setattr(module, name, noted)
        try:
            yield
        finally:
            setattr(module, name, original)

    def _note_product(self, left: Tensor, right: Tensor) -> None:
        """Record attention when a module makes two products, and the second has as many keys as the first returned."""
        here, before = self.modules.innermost.path, self._factors
        if before is not None and before[0] == here and left.shape[-1] == right.shape[-2] == before[2].shape[-2]:
            self._factors = None
            self.note("torch.matmul", before[1], before[2], right)
        else:
            self._factors = here, left, right.mT


class _SeenError(Exception):
    """Ends a run early."""


def observe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    until: Callable[[AttentionCall], bool] | None = None,
    kernels: Sequence[Kernel] = (),
    run: Callable[[nn.Module, Mapping[str, Any]], Any] | None = None,
) -> list[AttentionCall]:
    """Run a model once, and list the attention that it computes, in order.

    >>> from freeloc.tiny.model import load_transformer
    >>> from freeloc.tiny.synthetic import prompt_embeds
    >>> inputs = {"hidden_states": torch.zeros(1, 3, 10, 20, 28), "timestep": torch.zeros(1)}
    >>> calls = observe(load_transformer(), inputs | {"encoder_hidden_states": prompt_embeds(["red ring fast"])})
    >>> calls[0].path, tuple(calls[0].query.shape)
    ('blocks.0.attn1', (1, 4, 350, 48))

    Args:
        model: any module.
        inputs: arguments of its forward.
        until: function of a call that says whether it is the last one to record. The run ends there.
        kernels: further functions that compute attention, by ``"module:name"``.
        run: (model, inputs) -> anything, which runs the model; by default a call of it.
    """
    with RunningModules(model, inputs) as modules, contextlib.ExitStack() as stack:
        watch = _Watching(modules, until)
        for function in dict.fromkeys(kernel.function for kernel in kernels):
            forms = [kernel for kernel in kernels if kernel.function == function]
            stack.enter_context(watch.named(function, forms))
        with torch.no_grad(), watch, contextlib.suppress(_SeenError):
            model(**inputs) if run is None else run(model, inputs)
    return watch.calls
