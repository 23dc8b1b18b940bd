"""Schedule: the rectangles of the table of frames that one call of an attention kernel can compute.

A rectangle is a range of query frames and a range of key tokens. All its pairs attend to each other, and each key
stands at the same rotation for all its queries. Striped pairs are computed apart, by chunks of a frame's tokens.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.layout import TokenLayout
from freeloc.plans.frame_plan import DENSE, STRIPED


class Block(NamedTuple):
    """A rectangle of dense attention.

    Args:
        queries: range of query frames.
        keys: range of key tokens in the sequence; text beside the video may belong to it.
        rotated: whether keys of it are rotated.
        biased: whether the plan adds a bias to logits of it: one row for all its queries.
    """

    queries: range
    keys: range
    rotated: bool
    biased: bool = False


class _Keys(NamedTuple):
    """A range of densely visible key tokens of one query frame."""

    tokens: range
    rotated: bool
    biased: bool

    @property
    def is_plain(self) -> bool:
        """Whether all query frames can share it."""
        return not (self.rotated or self.biased)


class Schedule(NamedTuple):
    """What to compute, in this order.

    Args:
        blocks: dense rectangles of several query frames.
        rows: for each query frame, the other dense rectangles. The next frames have none if they share its own.
        rotated_keys: the tokens in any rotated rectangle.
        stale: for each query frame, the ranges of key frames that are rotated anew before its rectangles.
        striped: for each query frame, the ranges of its striped key frames.
        stale_striped: the same for these.
        parts: largest number of ranges of keys that one query frame has; with 1, nothing has to be merged.
    """

    blocks: list[Block]
    rows: list[list[Block]]
    rotated_keys: range
    stale: list[list[range]]
    striped: list[list[range]]
    stale_striped: list[list[range]]
    parts: int


def make_schedule(visibility: Tensor, rotation: Tensor, layout: TokenLayout, bias: Tensor | None = None) -> Schedule:
    """The schedule of a plan for one layout.

    >>> from freeloc.plans import FramePlan
    >>> visibility = FramePlan.identity(3).visibility
    >>> schedule = make_schedule(visibility, torch.full((3, 3), -1), TokenLayout(3, height=2, width=2, text_last=5))
    >>> schedule.blocks
    [Block(queries=range(0, 3), keys=range(0, 17), rotated=False, biased=False)]

    Args:
        visibility: (frames, frames) uint8, see `freeloc.FramePlan`.
        rotation: (frames, frames) int64, which rotation the keys of a pair have; -1 for none.
        layout: the order of the tokens.
        bias: (frames, frames), what is added to the logits of each pair; by default nothing.
    """
    bias = torch.zeros_like(rotation) if bias is None else bias
    found = [_dense(*row, layout) for row in zip(visibility, rotation >= 0, bias != 0, strict=True)]
    shared = _shared(found)
    rows: list[list[Block]] = [[] for _ in found]
    for queries in _alike(found, rotation, bias):
        rows[queries.start] = [
            Block(queries, *keys) for keys in found[queries.start] if (queries.start, keys.tokens) not in shared.within
        ]
    blocks = [block for row in rows for block in row if block.rotated]
    tokens = range(min(b.keys.start for b in blocks), max(b.keys.stop for b in blocks)) if blocks else range(0)
    in_rows = torch.zeros_like(rotation, dtype=torch.bool)
    for block in blocks:
        frames = layout.frames_of(block.keys)
        in_rows[block.queries.start : block.queries.stop, frames.start : frames.stop] = True
    striped = visibility == STRIPED
    in_stripes = [ranges(row) for row in striped]
    return Schedule(
        shared.blocks,
        rows,
        tokens,
        stale_frames(rotation, in_rows),
        in_stripes,
        stale_frames(rotation, striped),
        max(len(dense) + len(stripes) for dense, stripes in zip(found, in_stripes, strict=True)),
    )


def ranges(chosen: Tensor, gap: int = 0) -> list[range]:
    """The ranges of the true entries of (n,) bool; ranges that are at most `gap` entries apart become one.

    >>> ranges(torch.tensor([True, True, False, True]))
    [range(0, 2), range(3, 4)]
    """
    found: list[range] = []
    for index in chosen.nonzero().flatten().tolist():
        if found and index <= found[-1].stop + gap:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def stale_frames(rotation: Tensor, used: Tensor, gap: int = 3) -> list[list[range]]:
    """For each query frame in turn, the key frames that a copy of the keys must be given anew.

    >>> stale_frames(torch.tensor([[-1, 0, 1], [-1, 0, 2]]), torch.ones(2, 3, dtype=torch.bool))
    [[range(1, 3)], [range(2, 3)]]

    Args:
        rotation: (query frames, key frames) int64, which rotation each pair has; -1 for none, as in the copy at first.
        used: (query frames, key frames) bool, which pairs are read from the copy.
        gap: frames between two ranges that are rotated along, where that saves a call.
    """
    now = torch.full_like(rotation[0], -1)
    found = []
    for wanted, needed in zip(rotation, used, strict=True):
        stale = ranges(needed & (wanted != now), gap)
        for part in stale:
            now[part.start : part.stop] = wanted[part.start : part.stop]
        found.append(stale)
    return found


class _Shared(NamedTuple):
    """Rectangles of several query frames, and which (query frame, key tokens) they hold."""

    blocks: list[Block]
    within: set[tuple[int, range]]


def _dense(visibility: Tensor, moved: Tensor, biased: Tensor, layout: TokenLayout) -> list[_Keys]:
    """The ranges of densely visible tokens of one query frame, text included."""
    n, start = layout.tokens_per_frame, layout.text_first
    found = [_Keys(range(0, start), False, False)] if start else []
    for frames in ranges(visibility == DENSE):
        of = slice(frames.start, frames.stop)
        tokens = range(start + frames.start * n, start + frames.stop * n)
        found.append(_Keys(tokens, bool(moved[of].any()), bool(biased[of].any())))
    if layout.text_last:
        found.append(_Keys(range(layout.video.stop, layout.tokens), False, False))
    joined: list[_Keys] = []
    for keys in found:
        last = joined[-1] if joined else None
        if last is not None and last.tokens.stop == keys.tokens.start:
            tokens = range(last.tokens.start, keys.tokens.stop)
            joined[-1] = _Keys(tokens, last.rotated or keys.rotated, last.biased or keys.biased)
        else:
            joined.append(keys)
    return joined


def _alike(found: Sequence[list[_Keys]], *tables: Tensor) -> list[range]:
    """The ranges of query frames with the same dense keys, at the same rotations and with the same bias."""
    alike = [range(1)]
    for frame in range(1, len(found)):
        rows_equal = (torch.equal(table[frame], table[frame - 1]) for table in tables)
        same = found[frame] == found[frame - 1] and all(rows_equal)
        alike[-1:] = [range(alike[-1].start, frame + 1)] if same else [alike[-1], range(frame, frame + 1)]
    return alike


def _shared(rows: Sequence[Iterable[_Keys]]) -> _Shared:
    """The rectangles without rotation and bias that consecutive query frames have in common."""
    frames_of: dict[range, list[int]] = {}
    for frame, row in enumerate(rows):
        for keys in row:
            if keys.is_plain:
                frames_of.setdefault(keys.tokens, []).append(frame)
    shared = _Shared([], set())
    for tokens, frames in frames_of.items():
        chosen = torch.zeros(len(rows), dtype=torch.bool)
        chosen[frames] = True
        for queries in ranges(chosen):
            if len(queries) > 1:
                shared.blocks.append(Block(queries, tokens, rotated=False))
                shared.within.update((frame, tokens) for frame in queries)
    shared.blocks.sort(key=lambda block: -len(block.queries))  # the fewest calls: those that begin a row, and others
    return shared
