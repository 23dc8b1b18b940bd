"""Observation of attention calls: in a patched model, layer by layer, and in a model without an adapter."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from freeloc.adapter.reader import Signature
from freeloc.adapter.rope import TemporalRope
from freeloc.attention.layout import TokenLayout
from freeloc.interception.interceptors import PRODUCTS


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
        kernel: ``"torch.nn.functional.scaled_dot_product_attention"``, or ``"torch.matmul"`` for two products.
        query, key, value: (batch, heads, tokens, head_dim).
        mask: the attention mask of the call.
        given: the arguments of that module, by name, in the order of its forward.
    """

    path: str
    kernel: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


class _Running(NamedTuple):
    """A running module, and what it was called with."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def given(self) -> dict[str, Any]:
        signature = Signature(self.module)
        given = signature.given(self.args, self.kwargs)
        return {name: given[name] for name in signature.names if name in given} | given


class _Watching(TorchFunctionMode):
    """Records every attention call with the path of its module."""

    def __init__(self, call: _Running, until: Callable[[AttentionCall], bool] | None) -> None:
        super().__init__()
        self.until = until
        self.running = [call]
        self.calls: list[AttentionCall] = []
        self._factors: tuple[str, Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | dict(kwargs)
            tensors = given["query"], given["key"], given["value"]
            self._note("torch.nn.functional.scaled_dot_product_attention", *tensors, given.get("attn_mask"))
        elif func in PRODUCTS:
            factors = dict(zip(("input", "other"), args, strict=False)) | dict(kwargs)
            if factors["input"].ndim == factors["other"].ndim == 4:
                self._note_product(factors["input"], factors["other"])
        return func(*args, **kwargs)

    def _note(self, kernel: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> None:
        here = self.running[-1]
        call = AttentionCall(here.path, kernel, query, key, value, mask, here.given())
        self.calls.append(call)
        if self.until is not None and self.until(call):
            raise _SeenError

    def _note_product(self, left: Tensor, right: Tensor) -> None:
        """Record attention when a module makes two products, and the second has as many keys as the first returned."""
        here, before = self.running[-1].path, self._factors
        if before is not None and before[0] == here and left.shape[-1] == right.shape[-2] == before[2].shape[-2]:
            self._factors = None
            self._note("torch.matmul", before[1], before[2], right)
        else:
            self._factors = here, left, right.mT


class _SeenError(Exception):
    """Ends a run early."""


def observe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    until: Callable[[AttentionCall], bool] | None = None,
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
        run: (model, inputs) -> anything, which runs the model; by default a call of it.
    """
    watch = _Watching(_Running("", model, (), inputs), until)

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: watch.running.append(_Running(path, module, args, kwargs))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        watch.running.pop()

    removers = []
    try:
        for path, module in model.named_modules():
            removers.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            removers.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        with torch.no_grad(), watch, contextlib.suppress(_SeenError):
            model(**inputs) if run is None else run(model, inputs)
    finally:
        for remover in removers:
            remover.remove()
    return watch.calls
