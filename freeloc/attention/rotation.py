"""Rotation of keys by the angles of a plan."""

from collections.abc import Sequence

import einops
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from freeloc.attention.prepared import PreparedPlan

TOGETHER = 32
"""Frames that are rotated in one operation, where that needs memory."""


def rotate(frames: Tensor, rotations: Tensor, span: tuple[int, int], pairing: str) -> Tensor:
    """Rotate the first pairs of a block of channels of (..., frames, tokens, head_dim) by unit complex numbers.

    `rotations` broadcasts with (..., frames, tokens, pairs).
    """
    out = frames.clone()
    pairs = _complex(_pairs(frames, rotations.shape[-1], span, pairing), rotations.dtype)
    _pairs(out, rotations.shape[-1], span, pairing).copy_(torch.view_as_real(pairs * rotations))
    return out


def _pairs(frames: Tensor, count: int, span: tuple[int, int], pairing: str) -> Tensor:
    """The first pairs of channels, a view (..., frames, tokens, pairs, 2) of (..., frames, tokens, head_dim)."""
    pairs: Tensor = einops.rearrange(frames[..., slice(*span)], f"... {pairing} -> ... pair two", two=2)
    return pairs[..., :count, :]


def _complex(pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy as complex numbers. A view must start at an even offset in memory."""
    # At once, without a copy in between.
    copy = torch.empty_like(pairs, dtype=dtype.to_real(), memory_format=torch.contiguous_format)
    return torch.view_as_complex(copy.copy_(pairs))


class RotatedKeys:
    """A copy of the keys of some frames, rotated for one query frame after the other. What stays right is left alone.

    Args:
        plan: the prepared plan.
        copy: (..., frames, tokens, head_dim), written to; at first it holds the keys.
        stale: for each query frame, the ranges of frames to rotate anew: see `freeloc.attention.schedule`.
        first: the first of the frames.
    """

    def __init__(self, plan: PreparedPlan, copy: Tensor, stale: Sequence[Sequence[range]], first: int = 0) -> None:
        self._plan = plan
        self._copy = copy
        self._stale = stale
        self._first = first
        self._source: Tensor | None = None
        if any(stale):
            rotations = plan.rotations(0, slice(0, 1), copy)
            self._into = _pairs(copy, rotations.shape[-1], plan.span, plan.pairing)
            self._source = _complex(self._into, rotations.dtype)  # as they were before any rotation
            self._in_place = _complex_view(self._into, rotations.dtype)

    def turn_to(self, query_frame: int) -> None:
        """Rotate the keys as this query frame needs them. Query frames must come in rising order."""
        if self._source is None:
            return
        for frames in self._stale[query_frame]:
            step = TOGETHER if self._in_place is None else len(frames)
            for start in range(frames.start, frames.stop, step):
                self._rotate(query_frame, start, min(start + step, frames.stop))

    def _rotate(self, query_frame: int, start: int, stop: int) -> None:
        assert self._source is not None
        rotations = self._plan.rotations(query_frame, slice(start, stop), self._copy)
        own = slice(start - self._first, stop - self._first)
        source = self._source[..., own, :, :]
        if self._in_place is not None:
            torch.mul(source, rotations, out=self._in_place[..., own, :, :])
        else:
            self._into[..., own, :, :, :] = torch.view_as_real(source * rotations)


def _complex_view(pairs: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The same memory as complex numbers of this dtype; None if it has another dtype, or other strides."""
    if pairs.dtype != dtype.to_real() or is_batchedtensor(pairs):  # torch.func.vmap cannot write into it
        return None
    *strides, last = pairs.stride()
    has_view = last == 1 and not any(step % 2 for step in (*strides, pairs.storage_offset()))
    return torch.view_as_complex(pairs) if has_view else None
