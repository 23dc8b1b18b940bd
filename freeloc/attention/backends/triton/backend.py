"""Backend ``triton``: whether it supports a call, and the call. Triton is imported in the first call on a GPU."""

import functools
import os

import torch
from torch import Tensor

from freeloc.attention.backends.base import Backend, on_cuda
from freeloc.attention.layer_plan import LayerPlan
from freeloc.attention.layout import TokenLayout

DTYPES = (torch.float16, torch.bfloat16)
SMALLEST_HEAD, LARGEST_HEAD = 16, 128
OLDEST_CARD = (8, 0)
"""Compute capability: older cards have no bfloat16 and no asynchronous copies."""
OLDEST_TRITON = (3, 6)
"""The oldest release that it is tested with."""


def can(query: Tensor, key: Tensor, value: Tensor, plan: LayerPlan, layout: TokenLayout, mask: Tensor | None) -> str:
    """What is in the way of a call on a GPU, or an empty text."""
    found = _machine(query.device.index) or obstacle(query, key, value, mask, DTYPES)
    return found or _trial(query.device, query.dtype, query.shape[-1])


def _trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    from freeloc.attention.backends.triton.trial import what_is_wrong  # it imports triton

    return what_is_wrong(device, dtype, head_dim)


def obstacle(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> str:
    """What about the tensors is in the way, on any device."""
    tensors = [query, key, value] if mask is None else [query, key, value, mask]
    if query.dtype not in dtypes or query.dtype != key.dtype or query.dtype != value.dtype:
        expected = " or ".join(_word(dtype) for dtype in dtypes)
        return f"requires {expected}, found {', '.join(dict.fromkeys(_word(tensor.dtype) for tensor in tensors[:3]))}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "has no backward, found tensors that require gradients"
    if not SMALLEST_HEAD <= query.shape[-1] <= LARGEST_HEAD:
        return f"supports heads of {SMALLEST_HEAD} to {LARGEST_HEAD} channels, found {query.shape[-1]}"
    if not query.shape == key.shape == value.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3])
        return f"requires queries, keys and values of the same shape, found {shapes}"
    if any(type(tensor) is not Tensor or tensor.device != query.device for tensor in tensors):
        kinds = ", ".join(f"{type(tensor).__name__} on {tensor.device}" for tensor in tensors)
        return f"requires plain tensors on one device, found {kinds}"
    if mask is not None and mask.ndim > 1 and mask.shape[-2] != 1:
        return f"supports masks of keys, found one of pairs of shape {tuple(mask.shape)}"
    if mask is not None and mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        return f"requires a bool or floating-point mask, found {mask.dtype}"
    return ""


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _machine(device: int) -> str:
    """What about the machine is in the way."""
    if torch.version.hip is not None:
        return "requires an NVIDIA GPU, found ROCm"
    if torch.cuda.get_device_capability(device) < OLDEST_CARD:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"requires compute capability 8.0 or newer, found {found}"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "runs compiled, found TRITON_INTERPRET set"
    try:
        import triton

        import freeloc.attention.backends.triton.kernel  # noqa: F401  # reason: whether it can be imported
    except ImportError as error:
        return f"requires the package triton: {error}"
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    return "" if version >= OLDEST_TRITON else f"requires triton 3.6 or newer, found {triton.__version__}"


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `freeloc.attention.attend`."""
    from freeloc.attention.backends.triton.launch import run

    return run(query, key, value, plan, layout, mask, scale)


BACKEND = Backend(
    "triton", attend, on_cuda(can), priority=10, source="one fused kernel: online softmax over segments of frames"
)
