"""Attention by blocks: of many query frames over many key frames at a time.

Attention over all keys follows from that over each block, with its log-sum-exp: see `freeloc.attention.sums`.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from freeloc.attention.backends.frames import Frames, slices_of, with_counts
from freeloc.attention.parts import Part, attend_part
from freeloc.attention.placed import PlacedBlock


def attend_blocks(frames: Frames, blocks: Sequence[PlacedBlock], is_first: bool = True) -> None:
    """Add the attention of all blocks.

    Args:
        frames: queries and keys.
        blocks: the blocks.
        is_first: whether nothing was added to the queries before.
    """
    for block in blocks:
        count = len(block.query_frames)
        calls = min(count, -(-count * frames.query.shape[3] // frames.most_queries))
        bounds = [count * call // calls for call in range(calls + 1)]
        for start, stop in itertools.pairwise(bounds):
            part = block.part(start, stop) if calls > 1 else block
            attend = _attend_block if block.width is None else _attend_band
            attend(frames, part._replace(is_first=block.is_first and is_first))


def _attend_band(frames: Frames, block: PlacedBlock) -> None:
    """The query frames become a batch, whose keys overlap in memory."""
    width = block.width or 0
    query = frames.rotated(slices_of(frames.query, block.queries), block.query_rotations)
    key = frames.rotated(frames.key[:, :, block.keys], block.key_rotations)
    for batch in range(len(query)):
        one = slice(batch, batch + 1)
        bias = _band_bias(frames, one, block, width)
        keys, values = (_windows(tensor, width) for tensor in (key[batch], frames.value[batch, :, block.keys]))
        tensors = query[batch].transpose(0, 1), keys, values
        part = attend_part(*tensors, bias, frames.scale, hides_all=frames.mask is not None)
        out, lse = (tensor.transpose(0, 1)[None] for tensor in part)
        frames.sums.add((one, slice(None), block.queries[0]), Part(out, _biased(lse, block)), block.is_first)


def _biased(lse: Tensor, block: PlacedBlock) -> Tensor:
    """A log-sum-exp with what the plan adds to all logits of a block, which leaves their weights in it alone."""
    return lse + block.bias if block.bias else lse


def _windows(frames: Tensor, width: int) -> Tensor:
    """Each range of frames, (ranges, heads, width * tokens, head_dim) of (heads, frames, tokens, head_dim).

    It is a view in which they overlap, or one of a copy if the tokens of frames are not a range of memory.
    """
    if frames.stride(1) != frames.shape[2] * frames.stride(2):
        frames = frames.contiguous()
    return frames.unfold(1, width, 1).permute(1, 0, 4, 2, 3).flatten(2, 3)


def _band_bias(frames: Frames, batch: slice, block: PlacedBlock, width: int) -> Tensor | None:
    """What is added to the logits of a band, (query frames or 1, heads or 1, queries or 1, width * keys)."""
    (at,), found = block.queries, list[Tensor]()
    if frames.of_tokens is not None:
        found.append(frames.of_tokens.repeat(1, width)[None, None])
    if frames.of_frames is not None and block.bias is None:
        rows = frames.of_frames[at, block.keys]
        of_pairs = rows.as_strided((len(rows), width), (rows.stride(0) + rows.stride(1), rows.stride(1)))
        found.append(_each_token(of_pairs, frames)[:, None, None])
    if frames.mask is not None:
        offset = block.keys.start - at.start
        each = [(slice(q, q + 1), slice(offset + q, offset + q + width)) for q in range(at.start, at.stop)]
        mask = frames.mask if len(frames.mask) == 1 else frames.mask[batch]
        parts = [_rows(mask, (query,))[..., keys, :] for query, keys in each]
        found.append(torch.cat(parts, dim=2)[0].transpose(0, 1).flatten(3))
    return sum(found[1:], found[0]) if found else None


def _attend_block(frames: Frames, block: PlacedBlock) -> None:
    query = frames.rotated(slices_of(frames.query, block.queries), block.query_rotations)
    key = frames.rotated(frames.key[:, :, block.keys], block.key_rotations).flatten(2, 3)
    value, bias = frames.value[:, :, block.keys].flatten(2, 3), _block_bias(frames, block)
    calls = max(1, round(key.shape[2] / frames.most_keys))
    bounds = [key.shape[2] * call // calls for call in range(calls + 1)]
    for keys in (slice(*pair) for pair in itertools.pairwise(bounds)):
        own = None if bias is None else bias[..., keys]
        tensors = query.flatten(2, 3), key[:, :, keys], value[:, :, keys]
        part = attend_part(*tensors, own, frames.scale, hides_all=frames.mask is not None)
        out, lse = (tensor.unflatten(2, query.shape[2:4]) for tensor in part)
        for at, among in with_counts(block.queries):
            of_slice = Part(out[:, :, among], _biased(lse[:, :, among], block))
            frames.sums.add((slice(None), slice(None), at), of_slice, block.is_first and keys.start == 0)


def _block_bias(frames: Frames, block: PlacedBlock) -> Tensor | None:
    """What is added to the logits of a block, (batch or 1, heads or 1, query tokens or 1, key tokens)."""
    found = list[Tensor]()
    if frames.of_tokens is not None:
        repeats = len(block.query_frames), block.keys.stop - block.keys.start
        found.append(frames.of_tokens.repeat(repeats)[None, None])
    if frames.of_frames is not None and block.bias is None:
        found.append(_each_token(frames.of_frames[block.queries[0].start, block.keys], frames)[None, None, None])
    if frames.mask is not None:
        found.append(_rows(frames.mask, block.queries)[..., block.keys, :].flatten(4).flatten(2, 3))
    return sum(found[1:], found[0]) if found else None


def _each_token(of_frames: Tensor, frames: Frames) -> Tensor:
    """Numbers of key frames (..., frames) for each of their tokens, (..., frames * keys)."""
    return of_frames.repeat_interleave(frames.key.shape[3], dim=-1)


def _rows(mask: Tensor, queries: tuple[slice, ...]) -> Tensor:
    """The part of a mask for some query frames."""
    return mask if mask.shape[2] == 1 else slices_of(mask, queries)
