"""Queries and keys by latent frame, of which blocks of attention are made."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from freeloc.attention.layout import TokenLayout
from freeloc.attention.parts import additive
from freeloc.attention.placed import PlacedBlock
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.rotation import rotate
from freeloc.attention.sums import Sums

MOST_QUERIES = 1536
"""Largest number of query tokens of a call. More need memory and save no time."""

CACHED_KEYS = 4096
"""Key tokens of one call on a CPU. More of them are read from memory anew for every 64 queries."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Queries and keys by latent frame: all tokens of a frame, or some, and not the same ones of queries and keys.

    Args:
        query: (heads, frames, queries, head_dim).
        key, value: (heads, frames, keys, head_dim).
        sums: where attention is added to, for these queries.
        plan: the plan; of it, only how channels are rotated is read here.
        bare: rotations that take the temporal RoPE of keys away, ([heads,] frames, 1, pairs).
        scale: scale of the logits; by default head_dim ** -0.5.
        most_queries, most_keys: largest number of query tokens and of key tokens of a call.
        mask: additive, (heads or 1, frames or 1, queries or 1, frames, keys), or None.
        of_tokens: (queries, keys), added to the logits in every pair of frames, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    sums: Sums
    plan: PreparedPlan
    bare: Tensor
    scale: float | None
    most_queries: int
    most_keys: int
    mask: Tensor | None = None
    of_tokens: Tensor | None = None

    def keys_of(self, block: PlacedBlock) -> Tensor:
        """The key frames of a block, rotated, (heads, frames, keys, head_dim)."""
        if block.is_bare and self._bare_key is not None:
            return self._bare_key[:, block.keys]
        return self.rotated(self.key[:, block.keys], block.key_rotations)

    @functools.cached_property
    def _bare_key(self) -> Tensor | None:
        """All keys without their temporal RoPE, None in half precision, where a copy of them would be too large."""
        return self.rotated(self.key, self.bare) if self.key.dtype.itemsize >= 4 else None

    def rotated(self, frames: Tensor, rotations: Tensor | None) -> Tensor:
        """Frames (..., frames, tokens, head_dim), rotated if there are rotations."""
        return frames if rotations is None else rotate(frames, rotations, self.plan.span, self.plan.pairing)


def by_frame(tensor: Tensor, layout: TokenLayout) -> Tensor:
    """The video tokens of (heads, tokens, ...), a view (heads, frames, tokens per frame, ...)."""
    frames: Tensor = tensor[:, layout.video].unflatten(1, (layout.frames, layout.tokens_per_frame))
    return frames


def video_and_text(
    tensors: Sequence[Tensor],
    plan: PreparedPlan,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
    sums: Sums,
) -> tuple[Frames, list[Frames]]:
    """The video's queries with its own keys, and with each range of text as the keys of one frame.

    Args:
        tensors: query, key and value, each (heads, tokens, head_dim).
        plan, layout, scale: see `freeloc.attention.attend`.
        mask: bool or additive, (heads or 1, tokens or 1, tokens or 1).
        sums: for the queries of the video.
    """
    query, key, value = tensors
    rows = None
    if mask is not None:
        mask = additive(mask, query.dtype).expand(-1, -1, layout.tokens)
        rows = mask[:, None] if mask.shape[1] == 1 else by_frame(mask, layout)
    video = Frames(
        by_frame(query, layout),
        by_frame(key, layout),
        by_frame(value, layout),
        sums,
        plan,
        plan.blocks(layout.tokens_per_frame, query).bare,
        scale,
        most_queries=MOST_QUERIES,
        most_keys=CACHED_KEYS if query.device.type == "cpu" else layout.tokens,
        mask=None if rows is None else rows[..., layout.video].unflatten(-1, (layout.frames, layout.tokens_per_frame)),
    )
    text = [
        replace(
            video,
            key=key[:, None, at],
            value=value[:, None, at],
            mask=None if rows is None else rows[..., None, at],
        )
        for at in layout.texts
    ]
    return video, text
