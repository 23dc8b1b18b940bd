"""Attention by blocks: of many query frames over many key frames at a time.

Attention over all keys follows from that over each block, with its log-sum-exp: see `freeloc.attention.sums`.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from freeloc.attention.backends.frames import Frames
from freeloc.attention.parts import Part, attend_part
from freeloc.attention.placed import PlacedBlock
from freeloc.attention.sums import of_copies


def attend_blocks(frames: Frames, blocks: Sequence[PlacedBlock], is_first: bool = True) -> None:
    """Add the attention of all blocks.

    Args:
        frames: queries and keys.
        blocks: the blocks.
        is_first: whether nothing was added to the queries before.
    """
    for block in blocks:
        queries = block.count * block.copies * frames.query.shape[2]
        calls = min(block.count if block.copies == 1 else block.copies, -(-queries // frames.most_queries))
        for part in block.parts(calls) if calls > 1 else (block,):
            _attend_block(frames, part, is_first and block.is_first)


def _attend_block(frames: Frames, block: PlacedBlock, is_first: bool) -> None:
    query = frames.rotated(_of_block(frames.query, block), block.query_rotations)
    key, value = (_windows(tensor, block) for tensor in (frames.keys_of(block), frames.value[:, block.keys]))
    bias = _bias(frames, block)
    calls = max(1, round(key.shape[2] / frames.most_keys))
    bounds = [key.shape[2] * call // calls for call in range(calls + 1)]
    for keys in (slice(*pair) for pair in itertools.pairwise(bounds)):
        own = None if bias is None else bias[..., keys]
        tensors = query.flatten(2, 3), key[:, :, keys], value[:, :, keys]
        part = attend_part(*tensors, own, frames.scale, hides_all=frames.mask is not None)
        out, lse = part.out.view(query.shape), part.lse.view(query.shape[:-1])
        lse = lse + block.constant if block.constant else lse
        for at, among in zip(block.queries, block.places, strict=True):
            found = Part(out[:, :, among], lse[:, :, among])
            frames.sums.add(at, block.copies, block.step, found, is_first and keys.start == 0)


def _of_block(frames: Tensor, block: PlacedBlock) -> Tensor:
    """The query frames of a block, (copies, heads, frames, ...); a copy if it is more than one slice."""
    if len(block.queries) == 1:
        return of_copies(frames, block.queries[0], block.copies, block.step)
    return torch.cat([of_copies(frames, at, block.copies, block.step) for at in block.queries], dim=2)


def _windows(frames: Tensor, block: PlacedBlock) -> Tensor:
    """The key frames of each copy, (copies, heads, tokens, head_dim) of (heads, frames, tokens, head_dim).

    It is a view in which they overlap, or one of a copy if the tokens of frames are not a range of memory.
    """
    if frames.stride(1) != frames.shape[2] * frames.stride(2):
        frames = frames.contiguous()
    if block.copies == 1:
        return frames.flatten(1, 2)[None]
    return frames.unfold(1, block.width, block.step).permute(1, 0, 4, 2, 3).flatten(2, 3)


def _bias(frames: Frames, block: PlacedBlock) -> Tensor | None:
    """What is added to the logits, (copies or 1, heads or 1, query tokens or 1, key tokens)."""
    found, (queries, keys) = list[Tensor](), (frames.query.shape[2], frames.key.shape[2])
    if frames.of_tokens is not None:
        found.append(frames.of_tokens.repeat(block.count, block.width)[None, None])
    if block.bias is not None:
        of_pairs = block.bias.to(frames.query.dtype).repeat_interleave(keys, dim=1)
        found.append(of_pairs if len(of_pairs) == 1 else of_pairs.repeat_interleave(queries, dim=0))
    if frames.mask is not None:
        rows = frames.mask[None] if frames.mask.shape[1] == 1 else _of_block(frames.mask, block)
        windows = [block.keys.start + copy * block.step for copy in range(block.copies)]
        each = [
            own[..., start : start + block.width, :]
            for own, start in zip(rows.expand(block.copies, *rows.shape[1:]), windows, strict=True)
        ]
        found.append(torch.stack(each).flatten(4).flatten(2, 3))
    return sum(found[1:], found[0]) if found else None
