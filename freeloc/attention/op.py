"""The custom operator ``freeloc::attention``, through which compiled code calls freeloc. Eager calls do not use it.

The arguments of an operator are tensors and numbers, so it finds its layer by a handle. Handle, grid and positions per
latent frame are tensors, because torch.compile guards numbers, and would compile every layer and length separately. If
only parts of a model are compiled, its forward has a context, which holds the grid.
"""

import functools
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from freeloc.errors import PatchError

F = TypeVar("F", bound=Callable[..., Any])


class Layer(Protocol):
    """The layer that computes the operator's calls."""

    def answer_compiled(
        self,
        call: tuple[Tensor, Tensor, Tensor, Tensor | None, float | None],
        traced: tuple[Tensor, Tensor, Tensor] | None,
        tables: list[Tensor],
        text_mask: Tensor | None,
        text: int,
    ) -> Tensor:
        """(batch, heads, tokens, head_dim) from query, key, value of that shape, a mask and a scale.

        `traced`: what a forward that was traced as a whole has read. `tables`: rotary tables. `text`: text tokens.
        """


_layers: "weakref.WeakValueDictionary[int, Layer]" = weakref.WeakValueDictionary()
# Global, since operators are global. It keeps no layer alive.
_handles = itertools.count()


def handle_of(layer: Layer) -> Tensor:
    """A new handle, with which the operator finds this layer."""
    handle = next(_handles)
    _layers[handle] = layer
    return torch.tensor(handle, device="cpu")


def _attention(*call: Any) -> Tensor:
    """The implementation of the operator, with the arguments of `_SCHEMA`."""
    out: Tensor = _untraced(_answer)(*call)
    return out


def _gradients(gradient: Tensor, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from that of the output and the arguments of `_SCHEMA`."""
    found: tuple[Tensor, Tensor, Tensor] = _untraced(_differentiate)(gradient, *call)
    return found


@functools.cache
def _untraced(function: F) -> F:
    """Exclude a function from torch.compile: some releases would also compile the implementation of an operator."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return]


def _answer(*call: Any) -> Tensor:
    *_, thread, _, _, _ = call
    if int(thread) >= 0 and int(thread) != threading.get_ident():
        raise PatchError(
            "expected one thread at a time in a patched model that is compiled as a whole, found two: its graphs share "
            "what the model read from its input. Run one forward after the other, compile the blocks alone "
            "(compile_repeated_blocks), or give each thread a model of its own (copy.deepcopy)"
        )
    return _computed(*call).contiguous()


def _differentiate(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention again, in the thread of the backward pass. Autograd itself is switched off inside operators."""
    gradients_of = torch.func.vjp(lambda *given: _computed(*given, *rest), query, key, value)[1]
    of_query, of_key, of_value = gradients_of(gradient)
    return of_query.contiguous(), of_key.contiguous(), of_value.contiguous()


def _computed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    handle: Tensor,
    numbers: Tensor,
    positions_per_frame: Tensor,
    thread: Tensor,
    tables: list[Tensor],
    text_mask: Tensor | None,
    text: int,
) -> Tensor:
    layer = _layers.get(int(handle))
    if layer is None:
        raise PatchError(
            "expected the patch of a compiled model to be there in its backward pass, found it removed and deleted: "
            "call backward() inside the `with freeloc.patch(...)` block"
        )
    traced = (numbers, positions_per_frame, thread) if int(thread) >= 0 else None
    return layer.answer_compiled((query, key, value, mask, scale), traced, tables, text_mask, text)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, mask, scale, *of_layer, tables, text_mask, text = inputs
    ctx.save_for_backward(query, key, value, mask, text_mask, *of_layer, *tables)
    ctx.scale, ctx.text = scale, text


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    query, key, value, mask, text_mask, *rest = ctx.saved_tensors
    if ctx.needs_input_grad[3]:
        raise PatchError(
            "expected a mask without gradients in a compiled patched model, found one that requires them: do not "
            "compile the model, or detach the mask"
        )
    of_layer, tables = rest[:4], rest[4:]
    call = (query, key, value, mask, ctx.scale, *of_layer, tables, text_mask, ctx.text)
    gradients = torch.ops.freeloc.attention_gradients(gradient, *call)
    return *gradients, None, None, *[None] * 4, [None] * len(tables), None, None


def _thread(numbers: Tensor) -> Tensor:
    return torch.tensor(threading.get_ident(), device="cpu")


# Plans are moved to the device at their first use, which must not be inside a CUDA graph.
_TAGS: dict[str, Any] = {"tags": [torch.Tag.cudagraph_unsafe]} if hasattr(torch.Tag, "cudagraph_unsafe") else {}

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? mask, float? scale, Tensor handle, Tensor numbers, "
    "Tensor positions_per_frame, Tensor thread, Tensor[] tables, Tensor? text_mask, SymInt text"
)
_SCHEMA = f"({_ARGUMENTS}) -> Tensor"
_SCHEMA_OF_GRADIENTS = f"(Tensor gradient, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


_operator = torch.library.custom_op("freeloc::attention", _attention, mutates_args=(), schema=_SCHEMA, **_TAGS)
_operator.register_fake(lambda query, *rest: _empty(query))
_operator.register_autograd(_backward, setup_context=_save)

_gradients_operator = torch.library.custom_op(
    "freeloc::attention_gradients", _gradients, mutates_args=(), schema=_SCHEMA_OF_GRADIENTS, **_TAGS
)
_gradients_operator.register_fake(lambda gradient, *call: tuple(_empty(tensor) for tensor in call[:3]))

_thread_operator = torch.library.custom_op("freeloc::thread", _thread, mutates_args=())
_thread_operator.register_fake(lambda numbers: torch.empty((), dtype=torch.int64, device="cpu"))
