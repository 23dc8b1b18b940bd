"""The custom operator ``freeloc::attention``: all that torch.compile sees of freeloc. Eager calls do not use it.

An operator takes tensors and numbers alone, so the layer is found here by a handle. Handle, grid and positions per
latent frame are tensors, because torch.compile guards numbers, and would compile every layer and length anew.
"""

import itertools
import threading
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from freeloc.errors import LayoutError, PatchError


class Layer(Protocol):
    """What answers the operator's calls."""

    def answer_compiled(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float | None,
        grid: tuple[int, int, int],
        positions_per_frame: float,
    ) -> Tensor:
        """(batch, heads, tokens, head_dim) from tensors of that shape."""


_layers: "weakref.WeakValueDictionary[int, Layer]" = weakref.WeakValueDictionary()
# Global, since an operator is; it keeps no layer alive.
_handles = itertools.count()


def handle_of(layer: Layer) -> Tensor:
    """A new handle, by which the operator finds this layer."""
    handle = next(_handles)
    _layers[handle] = layer
    return torch.tensor(handle, device="cpu")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    handle: Tensor,
    grid: Tensor,
    positions_per_frame: Tensor,
    thread: Tensor,
) -> Tensor:
    if int(thread) < 0:
        raise LayoutError(
            "a compiled attention module ran outside a call of its model: freeloc reads the token grid when the model "
            "itself is called. Call model(...), not model.forward(...) or its blocks alone, and in one thread at a time"
        )
    if int(thread) != threading.get_ident():
        raise PatchError(
            "expected one thread at a time in a patched and compiled model, found two: where torch.compile breaks the "
            "graph, the parts share what the model read from its input. Run one forward after the other, give each "
            "thread a model of its own (copy.deepcopy), or compile with fullgraph=True"
        )
    frames, height, width = grid.tolist()
    layer = _layers[int(handle)]
    out = layer.answer_compiled(query, key, value, mask, scale, (frames, height, width), float(positions_per_frame))
    return out.contiguous()


def _thread(grid: Tensor) -> Tensor:
    return torch.tensor(threading.get_ident(), device="cpu")


# Plans are moved to the device when they are first needed: not in the middle of a CUDA graph.
_TAGS: dict[str, Any] = {"tags": [torch.Tag.cudagraph_unsafe]} if hasattr(torch.Tag, "cudagraph_unsafe") else {}

_operator = torch.library.custom_op("freeloc::attention", _attention, mutates_args=(), **_TAGS)
_operator.register_fake(lambda query, *rest: torch.empty(query.shape, dtype=query.dtype, device=query.device))

_thread_operator = torch.library.custom_op("freeloc::thread", _thread, mutates_args=())
_thread_operator.register_fake(lambda grid: torch.empty((), dtype=torch.int64, device="cpu"))
