"""Attention by blocks: for each query frame, one call over each range of its dense keys.

Attention over several ranges of keys follows from that over each, with its log-sum-exp (`freeloc.attention.parts`). So
keys are read where they are, not gathered. Striped pairs are added by `freeloc.attention.backends.stripes`.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.attention.layout import TokenLayout
from freeloc.attention.parts import Part, attend_part, merge
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.rotation import RotatedKeys
from freeloc.attention.schedule import Block

MOST_QUERIES = 2048
"""Largest number of query tokens of a block. A larger one needs memory and saves no time."""

CACHED_KEYS = 4096
"""Key tokens of one call on a CPU. More of them are read from memory anew for every 64 queries."""


class Call(NamedTuple):
    """A call of attention over the whole sequence, and where the result goes.

    Args:
        query, key, value: (batch, heads, tokens, head_dim).
        plan, layout, scale: see `freeloc.attention.attend`.
        mask: bool or additive, (batch or 1, heads or 1, tokens or 1, tokens or 1).
        out: (batch, heads, tokens, head_dim), written for the video tokens.
        lse: (batch, heads, tokens), the log-sum-exp of what is written; None if nothing has to be merged.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    plan: PreparedPlan
    layout: TokenLayout
    mask: Tensor | None
    scale: float | None
    out: Tensor
    lse: Tensor | None

    def add(self, rows: slice, parts: list[Part], is_first: bool) -> None:
        """Write parts of the attention of some query tokens, merged with what is there."""
        if not is_first:
            parts = [self._written(rows), *parts]
        out, lse = merge(parts) if len(parts) > 1 else parts[0]
        self.out[:, :, rows] = out
        if self.lse is not None:
            self.lse[:, :, rows] = lse

    def _written(self, rows: slice) -> Part:
        if self.lse is None:
            raise RuntimeError("nothing has to be merged in this call")
        return Part(self.out[:, :, rows], self.lse[:, :, rows])


def attend_dense(call: Call) -> set[int]:
    """Write the attention of the video tokens to their dense keys. Return the query frames that have any."""
    schedule, done = call.plan.schedule(call.layout), set[int]()
    for block in schedule.blocks:
        _attend_rows(call, [block], call.key, done)
    keys, rotated = _rotated_keys(call)
    for frame, row in enumerate(schedule.rows):
        if row:
            if rotated is not None:
                rotated.turn_to(frame)
            _attend_rows(call, row, keys, done)
    return done


def _alike(queries: range, done: set[int], most: int) -> list[range]:
    """Parts of a range of query frames, at most so many at a time, that are all in `done`, or all not."""
    found: list[range] = []
    for frame in queries:
        last = found[-1] if found else range(0)
        if last and (frame in done) == (last.start in done) and len(last) < most:
            found[-1] = range(last.start, frame + 1)
        else:
            found.append(range(frame, frame + 1))
    return found


def _rotated_keys(call: Call) -> tuple[Tensor, RotatedKeys | None]:
    """A copy of the keys of rotated blocks, and what rotates it."""
    schedule, layout = call.plan.schedule(call.layout), call.layout
    tokens, n = schedule.rotated_keys, layout.tokens_per_frame
    if not tokens:
        return call.key, None
    keys = call.key[:, :, tokens.start : tokens.stop].clone(memory_format=torch.contiguous_format)
    frames = layout.frames_of(tokens)
    video = slice(layout.video.start + frames.start * n, layout.video.start + frames.stop * n)
    copy = keys[:, :, video.start - tokens.start : video.stop - tokens.start].unflatten(2, (len(frames), n))
    return keys, RotatedKeys(call.plan, copy, schedule.stale, frames.start)


def _attend_rows(call: Call, blocks: list[Block], rotated: Tensor, done: set[int]) -> None:
    """Attention of query frames over blocks of their dense keys; `rotated` holds the keys of rotated blocks."""
    n, start = call.layout.tokens_per_frame, call.layout.video.start
    for frames in _alike(blocks[0].queries, done, max(1, MOST_QUERIES // n)):
        rows = slice(start + frames.start * n, start + frames.stop * n)
        parts = [part for block in blocks for part in _parts(call, block, rows, rotated)]
        if parts:
            call.add(rows, parts, is_first=frames.start not in done)
        done.update(frames)


def _parts(call: Call, block: Block, rows: slice, rotated: Tensor) -> Iterator[Part]:
    """Attention of query tokens over a block of keys. It is written at once if nothing has to be merged."""
    offset = call.plan.schedule(call.layout).rotated_keys.start
    bias = _bias(call, block) if block.biased else None
    for at in _pieces(block.keys, call):
        key = rotated[:, :, at.start - offset : at.stop - offset] if block.rotated else call.key[:, :, at]
        tensors = call.query[:, :, rows], key, call.value[:, :, at]
        mask = None if call.mask is None else _mask(call.mask, rows, at)
        if bias is not None:
            own = _mask(bias, rows, at)
            mask = own if mask is None else mask + own
        if call.lse is None:
            call.out[:, :, rows] = F.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=call.scale)
        else:
            yield attend_part(*tensors, mask, call.scale)


def _pieces(keys: range, call: Call) -> list[slice]:
    """A range of key tokens in pieces that fit into a CPU's cache with their values."""
    count = round(len(keys) / CACHED_KEYS) if call.lse is not None and call.key.device.type == "cpu" else 1
    count = max(1, count)
    bounds = [keys.start + piece * len(keys) // count for piece in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def _bias(call: Call, block: Block) -> Tensor:
    """What the plan adds to the logits of a block's queries and each key of the sequence, (1, 1, 1, tokens)."""
    layout = call.layout
    of_frames = call.plan.bias_of(block.queries.start, slice(None), call.query)
    of_video = of_frames.repeat_interleave(layout.tokens_per_frame)
    return F.pad(of_video, (layout.text_first, layout.text_last))[None, None, None]


def _mask(mask: Tensor, rows: slice, keys: slice) -> Tensor:
    """The part of a mask for some query and key tokens, (..., queries, keys)."""
    mask = mask if mask.shape[-2] == 1 else mask[..., rows, :]
    mask = mask if mask.shape[-1] == 1 else mask[..., keys]
    return mask.expand(*mask.shape[:-2], rows.stop - rows.start, keys.stop - keys.start)
