"""Rotation of queries and keys by the angles of a plan."""

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor


def rotate(frames: Tensor, rotations: Tensor, span: tuple[int, int], pairing: str) -> Tensor:
    """Rotate the first pairs of a block of channels of (..., frames, tokens, head_dim) by unit complex numbers.

    `rotations` broadcasts with (..., frames, tokens, pairs).
    """
    out = frames.clone(memory_format=torch.contiguous_format)
    pairs = _pairs(out, rotations.shape[-1], span, pairing)
    in_place = _complex_view(pairs, rotations.dtype)
    if in_place is None:
        pairs.copy_(torch.view_as_real(_complex(pairs, rotations.dtype) * rotations))
    else:
        in_place.mul_(rotations)
    return out


def _pairs(frames: Tensor, count: int, span: tuple[int, int], pairing: str) -> Tensor:
    """The first pairs of channels, a view (..., frames, tokens, pairs, 2) of (..., frames, tokens, head_dim)."""
    channels = frames[..., slice(*span)]
    # Not by einops, which takes as long as the rotation of a short frame.
    pairs: Tensor = channels.unflatten(-1, (2, -1)).mT if pairing == "(two pair)" else channels.unflatten(-1, (-1, 2))
    return pairs if pairs.shape[-2] == count else pairs[..., :count, :]


def _complex(pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy as complex numbers. A view must start at an even offset in memory."""
    # At once, without a copy in between.
    copy = torch.empty_like(pairs, dtype=dtype.to_real(), memory_format=torch.contiguous_format)
    return torch.view_as_complex(copy.copy_(pairs))


def _complex_view(pairs: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The same memory as complex numbers of this dtype; None if it has another dtype, or other strides."""
    if pairs.dtype != dtype.to_real() or is_batchedtensor(pairs):  # torch.func.vmap cannot write into it
        return None
    *strides, last = pairs.stride()
    has_view = last == 1 and not any(step % 2 for step in (*strides, pairs.storage_offset()))
    return torch.view_as_complex(pairs) if has_view else None
