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
from typing import Any, Protocol

import torch
from torch import Tensor

from freeloc.errors import PatchError


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
    return _untraced(_answer)(*call)


@functools.cache
def _untraced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Exclude a function from torch.compile: some releases would also compile the implementation of an operator."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return]


def _answer(
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
    traced = (numbers, positions_per_frame, thread) if int(thread) >= 0 else None
    if traced is not None and int(thread) != threading.get_ident():
        raise PatchError(
            "expected one thread at a time in a patched and compiled model, found two: where torch.compile breaks the "
            "graph, the parts share what the model read from its input. Run one forward after the other, give each "
            "thread a model of its own (copy.deepcopy), or compile with fullgraph=True"
        )
    call = query, key, value, mask, scale
    return _layers[int(handle)].answer_compiled(call, traced, tables, text_mask, text).contiguous()


def _thread(numbers: Tensor) -> Tensor:
    return torch.tensor(threading.get_ident(), device="cpu")


# Plans are moved to the device at their first use, which must not be inside a CUDA graph.
_TAGS: dict[str, Any] = {"tags": [torch.Tag.cudagraph_unsafe]} if hasattr(torch.Tag, "cudagraph_unsafe") else {}

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scale, Tensor handle, Tensor numbers, "
    "Tensor positions_per_frame, Tensor thread, Tensor[] tables, Tensor? text_mask, SymInt text) -> Tensor"
)

_operator = torch.library.custom_op("freeloc::attention", _attention, mutates_args=(), schema=_SCHEMA, **_TAGS)
_operator.register_fake(lambda query, *rest: torch.empty(query.shape, dtype=query.dtype, device=query.device))

_thread_operator = torch.library.custom_op("freeloc::thread", _thread, mutates_args=())
_thread_operator.register_fake(lambda numbers: torch.empty((), dtype=torch.int64, device="cpu"))
