"""Hooks and replaced functions of others.

On the model, its attention and its projections, and processors or kernels that others have put in their places.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cell import Apply, Case, Cell, Exact, Refused, applied, difference, video, worst
from .compilation import attention_of, blocks_of


def on_attention_and_model(model: Any) -> list[Any]:
    return [model, *(attention_of(block)[1] for block in blocks_of(model))]


def accelerate_hook(model: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    for module in on_attention_and_model(model):
        add_hook_to_module(module, ModelHook())


def partial_forward(model: Any) -> None:
    for module in on_attention_and_model(model):
        module.forward = functools.partial(module.forward)


def lambda_forward(model: Any) -> None:
    for module in on_attention_and_model(model):
        module.forward = lambda *args, forward=module.forward, **kwargs: forward(*args, **kwargs)


def hooks_everywhere(model: Any) -> None:
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: None)
        module.register_forward_hook(lambda *_: None)


def new_arguments(model: Any) -> None:
    """A pre-hook that returns arguments of its own, equal ones."""

    def copied(module: Any, args: Any, kwargs: Any) -> Any:
        new = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        return args, new

    model.register_forward_pre_hook(copied, with_kwargs=True)


@contextlib.contextmanager
def global_hooks() -> Iterator[None]:
    handles = [
        nn.modules.module.register_module_forward_pre_hook(lambda *_: None),
        nn.modules.module.register_module_forward_hook(lambda *_: None),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def projection_hook(scale: float) -> Apply:
    """A hook on to_q that changes its output."""

    def apply(model: Any) -> None:
        for name, module in list(model.named_modules()):
            if name.endswith("to_q"):
                module.register_forward_hook(lambda module, given, output: output * scale)

    return apply


def fresh_processors(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(type(module.processor)())


def class_level_forward(case: Case) -> Exact:
    """As TeaCache does: the class gets another forward, (self, *args, **kwargs)."""
    kind = type(case.model)
    forward = kind.forward

    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    patch = None if case.order == "before" else case.patch()
    with mock.patch.object(kind, "forward", replaced), patch or case.patch():
        return case.exact(case.run())


@contextlib.contextmanager
def replaced_kernel(calls_original: bool) -> Iterator[None]:
    """As SageAttention's readme shows: F.scaled_dot_product_attention = another function."""
    original = F.scaled_dot_product_attention

    def other(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
        if calls_original:
            return original(query, key, value, attn_mask=attn_mask, **options)
        weights = query @ key.mT * query.shape[-1] ** -0.5
        if attn_mask is not None:
            weights = (
                weights.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
            )
        return weights.softmax(-1).nan_to_num(0) @ value

    with mock.patch.object(F, "scaled_dot_product_attention", other):
        yield


def with_kernel(calls_original: bool) -> Any:
    def body(case: Case) -> Exact:
        with contextlib.ExitStack() as stack:
            if case.order == "before":
                stack.enter_context(replaced_kernel(calls_original))
            stack.enter_context(case.patch())
            if case.order == "after":
                stack.enter_context(replaced_kernel(calls_original))
            return case.exact(case.run())

    return body


def dropout_in_the_kernel(case: Case) -> Exact:
    """A processor that passes dropout_p."""
    original = F.scaled_dot_product_attention

    def with_dropout(*args: Any, **options: Any) -> Tensor:
        return original(*args, **options | {"dropout_p": 0.1})

    for block in blocks_of(case.model):
        attention = attention_of(block)[1]
        forward = attention.forward

        def run(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            with Passing(with_dropout):
                return forward(*args, **kwargs)

        attention.forward = run
    with case.patch():
        return case.exact(case.run())


class Passing(torch.overrides.TorchFunctionMode):
    """Calls another function in place of the kernel."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self.function if func is F.scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


def nnsight_traced(case: Case) -> Exact:
    """The output and the hidden states of a block, saved in a trace."""
    from nnsight import NNsight

    found = []
    with case.patch():
        model = NNsight(case.model)
        with torch.no_grad(), model.trace(**case.inputs() | {"return_dict": False}):
            saved = model.output.save()
        found.append(case.exact(saved[0]))
    assert difference(case.run(), case.plain()) == 0
    with case.patch(NNsight(case.model)):
        found.append(case.exact(case.run()))
    return worst(found)


def on_another_device_mode(case: Case) -> Exact:
    """vmap over a batch of videos, each called alone."""
    given = case.inputs(batch=1)

    def one(hidden: Tensor) -> Tensor:
        return video(case.model, given | {"hidden_states": hidden, "return_dict": False})

    with case.patch(), torch.no_grad():
        found = torch.func.vmap(one)(given["hidden_states"][None])[0]
    with torch.no_grad():
        plain = one(given["hidden_states"])
        with case.oracle(case.model):
            expected = one(given["hidden_states"])
    return Exact(difference(found, expected), difference(plain, expected))


NO_CALL = Refused("LayoutError: .* made no call of")

CELLS = [
    applied("accelerate.hooks.add_hook_to_module", accelerate_hook, quick=("wan",)),
    applied("forward = functools.partial(forward)", partial_forward),
    applied("forward = lambda *args, **kwargs: forward(...)", lambda_forward),
    applied("forward hooks on every module", hooks_everywhere),
    applied("a pre-hook that returns arguments of its own", new_arguments),
    applied("global forward hooks of torch", lambda model: None, inside=global_hooks, orders=()),
    applied("a hook on to_q that changes its output", projection_hook(1.5), changes=True, quick=("wan",)),
    applied("fresh attention processors", fresh_processors, quick=("wan",)),
    Cell("a forward on the class, as of TeaCache", class_level_forward, orders=("before", "after")),
    Cell(
        "F.scaled_dot_product_attention is another function",
        with_kernel(False),
        orders=("before", "after"),
        expects=NO_CALL,
    ),
    Cell(
        "F.scaled_dot_product_attention is a wrapper of itself",
        with_kernel(True),
        orders=("before", "after"),
        expects=NO_CALL,
        quick=("wan",),
    ),
    Cell(
        "a processor that passes dropout_p",
        dropout_in_the_kernel,
        families=("wan",),
        expects=Refused("LayoutError: .*expected dropout_p=0.0 in its attention, found 0.1"),
    ),
    Cell(
        "nnsight: a trace of the patched model, a patch of the wrapper",
        nnsight_traced,
        families=("wan",),
        needs=("nnsight",),
    ),
    Cell("torch.func.vmap", on_another_device_mode, families=("wan", "ltx-2")),
]
