"""The custom operator ``freeloc::attention``: all that torch.compile sees of freeloc. Eager calls do not use it.

An operator takes tensors and numbers alone, so the layer is found here by a handle. Handle, grid and positions per
latent frame are tensors, because torch.compile guards numbers, and would compile every layer and length anew.
"""

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor


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
) -> Tensor:
    frames, height, width = grid.tolist()
    layer = _layers[int(handle)]
    out = layer.answer_compiled(query, key, value, mask, scale, (frames, height, width), float(positions_per_frame))
    return out.contiguous()


_operator = torch.library.custom_op("freeloc::attention", _attention, mutates_args=())
_operator.register_fake(lambda query, *rest: torch.empty(query.shape, dtype=query.dtype, device=query.device))
