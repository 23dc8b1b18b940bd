"""Attention over a part of the keys, with its log-sum-exp, from which the attention over all keys follows.

PyTorch's kernels return the log-sum-exp only under internal names. So each is tried once, on a small example, before it
is used: if a release of PyTorch renames or changes it, `has_parts` is False, and callers do without.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from freeloc.attention.devices import OnCpu


class Part(NamedTuple):
    """Attention over some of the keys.

    Args:
        out: (batch, heads, queries, head_dim).
        lse: (batch, heads, queries) in at least float32; log of the sum of the exponentials of all logits.
    """

    out: Tensor
    lse: Tensor


def attend_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    hides_all: bool = True,
) -> Part:
    """Attention of queries over some of their keys.

    >>> q, k, v = torch.randn(3, 1, 2, 6, 16)
    >>> attend_part(q, k, v).lse.shape
    torch.Size([1, 2, 6])

    Args:
        query, key, value: (batch, heads, tokens, head_dim); the queries may have another number of tokens.
        bias: added to the logits, in the dtype of the queries, broadcastable to (batch, heads, queries, keys).
        scale: scale of the logits; by default head_dim ** -0.5.
        hides_all: whether the bias may hide every key from a query.
    """
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        # The kernels ignore this stride: without an error, they would read other numbers (PyTorch 2.13).
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    if bias is not None:
        bias = bias.expand(*bias.shape[:-2], query.shape[2], key.shape[2])
        bias = bias.contiguous() if bias.stride(-1) > 1 else bias  # which PyTorch 2.6 ignores too
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        part = Part(*kernel(query, key, value, attn_mask=bias, scale=scale)[:2])
    elif bias is None and query.dtype != torch.float32:
        part = Part(*torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[:2])
    else:
        part = _efficient(query, key, value, bias, scale)
    if bias is None or not hides_all:
        return part
    # On the CPU, the log-sum-exp of a query without visible keys is 0 (PyTorch 2.13).
    blind = (bias == float("-inf")).all(dim=-1)
    return Part(part.out, part.lse.masked_fill(blind, float("-inf")))


def _efficient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None) -> Part:
    """PyTorch's memory-efficient kernel, which takes a bias whose rows begin at multiples of 16 bytes."""
    if bias is not None:
        columns = bias.shape[-1]
        bias = F.pad(bias, (0, -columns % 16))[..., :columns].expand(*query.shape[:-1], columns)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = kernel(query, key, value, bias, True, scale=scale)[:2]
    return Part(out, lse[..., : query.shape[2]])


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a bias: 0 and -inf for the true and false of a bool mask."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else mask


@functools.cache
def has_parts(device: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_part` is right for this type of device, dtype and number of channels."""
    if device not in ("cpu", "cuda"):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    with OnCpu(), torch.inference_mode(), _disable_current_modes():  # what is found is kept for all calls
        query = torch.randn(1, 2, 24, head_dim, generator=generator)
        key, value = torch.randn(2, 1, 2, 40, head_dim, generator=generator)
        bias = torch.randn(24, 40, generator=generator)
        try:
            return all(_is_right(query, key, value, chosen, torch.device(device), dtype) for chosen in (None, bias))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False


def _is_right(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype
) -> bool:
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in (query, key, value, bias)]
    q, k, v, b = (None if tensor is None else tensor.double() for tensor in tensors)
    logits = q @ k.mT * q.shape[-1] ** -0.5 + (0 if b is None else b)  # type: ignore[union-attr,operator]
    found = attend_part(*(None if tensor is None else tensor.to(device) for tensor in tensors))  # type: ignore[arg-type]
    wanted = Part(logits.softmax(-1) @ v, logits.logsumexp(-1))
    close = 5e-2 if dtype.itemsize < 4 else 1e-4
    return all(torch.allclose(f.cpu().double(), w, atol=close, rtol=close) for f, w in zip(found, wanted, strict=True))
