"""Queries and keys by latent frame, of which blocks of attention are made."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.layout import TokenLayout
from freeloc.attention.parts import additive
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.rotation import rotate
from freeloc.attention.sums import Sums

MOST_QUERIES = 1536
"""Largest number of query tokens of a call. More need memory and save no time."""

CACHED_KEYS = 4096
"""Key tokens of one call on a CPU. More of them are read from memory anew for every 64 queries."""


class Frames(NamedTuple):
    """Queries and keys by latent frame: all tokens of a frame, or some, and not the same ones of queries and keys.

    Args:
        query: (batch, heads, frames, queries, head_dim).
        key, value: (batch, heads, frames, keys, head_dim).
        sums: where attention is added to, for these queries.
        plan: the plan; of it, only how channels are rotated is read here.
        scale: scale of the logits; by default head_dim ** -0.5.
        mask: additive, (batch or 1, heads or 1, frames or 1, queries or 1, frames, keys), or None.
        of_frames: (frames, frames), added to the logits of pairs of frames, or None.
        of_tokens: (queries, keys), added to the logits in every pair of frames, or None.
        most_queries, most_keys: largest number of query tokens and of key tokens of a call.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    sums: Sums
    plan: PreparedPlan
    scale: float | None
    mask: Tensor | None = None
    of_frames: Tensor | None = None
    of_tokens: Tensor | None = None
    most_queries: int = 1
    most_keys: int = 1

    def rotated(self, frames: Tensor, rotations: Tensor | None) -> Tensor:
        """Frames (batch, heads, frames, tokens, head_dim), rotated if there are rotations."""
        return frames if rotations is None else rotate(frames, rotations, self.plan.span, self.plan.pairing)


def by_frame(tensor: Tensor, layout: TokenLayout) -> Tensor:
    """The video tokens of (batch, heads, tokens, ...), a view (batch, heads, frames, tokens per frame, ...)."""
    frames: Tensor = tensor[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    return frames


def video_and_text(
    tensors: tuple[Tensor, Tensor, Tensor],
    plan: PreparedPlan,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
    sums: Sums,
) -> tuple[Frames, list[Frames]]:
    """The video's queries with its own keys, and with each range of text as the keys of one frame.

    Args:
        tensors: query, key and value, (batch, heads, tokens, head_dim).
        plan, layout, scale: see `freeloc.attention.attend`.
        mask: bool or additive, (batch or 1, heads or 1, tokens or 1, tokens or 1).
        sums: for the queries of the video.
    """
    query, key, value = tensors
    rows = None
    if mask is not None:
        mask = additive(mask, query.dtype).expand(-1, -1, -1, layout.tokens)
        rows = mask[:, :, None] if mask.shape[2] == 1 else by_frame(mask, layout)
    most = CACHED_KEYS if query.device.type == "cpu" else layout.tokens
    video = Frames(
        by_frame(query, layout),
        by_frame(key, layout),
        by_frame(value, layout),
        sums,
        plan,
        scale,
        None if rows is None else rows[..., layout.video].unflatten(-1, (layout.frames, layout.tokens_per_frame)),
        None if plan.bias is None else plan.bias_on(query),
        most_queries=MOST_QUERIES,
        most_keys=most,
    )
    text = [
        video._replace(
            key=key[:, :, None, at],
            value=value[:, :, None, at],
            mask=None if rows is None else rows[..., None, at],
            of_frames=None,
        )
        for at in layout.texts
    ]
    return video, text


def slices_of(tensor: Tensor, at: tuple[slice, ...]) -> Tensor:
    """Some frames of (batch, heads, frames, ...); a copy if it is more than one slice."""
    each = [tensor[:, :, own] for own in at]
    return each[0] if len(each) == 1 else torch.cat(each, dim=2)


def with_counts(slices: tuple[slice, ...]) -> Iterator[tuple[slice, slice]]:
    """Each slice, and where its elements are among those of all slices together.

    >>> list(with_counts((slice(1, 18, 8), slice(20, 22))))
    [(slice(1, 18, 8), slice(0, 3, None)), (slice(20, 22, None), slice(3, 5, None))]
    """
    start = 0
    for at in slices:
        stop = start + len(range(at.start, at.stop, at.step or 1))
        yield at, slice(start, stop)
        start = stop
