"""The keys of each query frame as a short list of segments, and the rotations of queries that they need.

RoPE is a rotation, so R(a) k . q = k . R(-a) q: instead of the keys of a frame, the kernel rotates its few queries. It
must do so again wherever the angle changes, so a segment is a range of key frames with the same angle. Two sets of keys
make the ranges long:

- the model's own keys, rotated by f j. The angle is that of (i - j) - P(i, j): one for all near frames with P = i - j.
- a copy, rotated back to where j does not matter. The angle depends on P(i, j) alone: one for all frames of a group of
  VRPR, and for all frames at the clip.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.prepared import PreparedPlan
from freeloc.plans.frame_plan import NONE, STRIPED, relative_positions

DENSE_FRAMES, STRIPED_FRAMES, FIRST_TEXT, LAST_TEXT, EVERYTHING = range(5)
"""Kinds of segments. The kernel has the same numbers."""

WORTH_A_COPY = 0.75
"""A rotated copy of the keys must save a quarter of the segments."""


class Segment(NamedTuple):
    """Keys that all queries of a frame attend to with the same rotation.

    Args:
        kind: `DENSE_FRAMES`, ...
        first, frames: range of key frames; 0, 0 for text and for everything.
        rotation: row of `Segments.angles`, or -1 for none.
        rotated_keys: 1 if the keys are those of the rotated copy.
        factor: factor on positive logits.
        bias: what is added to the logits.
    """

    kind: int
    first: int = 0
    frames: int = 0
    rotation: int = -1
    rotated_keys: int = 0
    factor: float = 1.0
    bias: float = 0.0


TEXT = (Segment(FIRST_TEXT), Segment(LAST_TEXT))


@dataclass(frozen=True)
class Segments:
    """What the kernel walks under one plan.

    Args:
        of_queries: a list of segments for text queries, then one for each query frame.
        angles: by which the queries rotate back, (rotations, ..., pairs) float64 radians.
        copy_angles: by which the copy of the keys is rotated back, (frames, ..., pairs); None if none is needed.
    """

    of_queries: list[list[Segment]]
    angles: Tensor
    copy_angles: Tensor | None


def segments_of(prepared: PreparedPlan, tokens_per_frame: int) -> Segments:
    """The segments of a plan. A stripe as wide as a frame counts as dense."""
    if prepared.is_identity:
        everything = [[Segment(EVERYTHING)]] * (1 + prepared.frames)
        return Segments(everything, prepared.frequencies.new_zeros(0, *prepared.frequencies.shape), None)
    pairs = _Pairs.of(prepared, tokens_per_frame)
    runs = pairs.runs(copied=True)
    worth_it = sum(map(len, runs)) <= WORTH_A_COPY * pairs.count()
    runs = runs if worth_it else pairs.runs(copied=False)
    angles, rows = pairs.angles([(frame, run) for frame, own in enumerate(runs) for run in own])
    rotates = (angles != 0).flatten(1).any(dim=1)
    row = iter(rows.where(rotates[rows], -1).tolist())
    turned = [[run._replace(rotation=next(row)) for run in own] for own in runs]
    of_frames = [_ordered(own, prepared.frames) for own in turned]
    return Segments([[Segment(EVERYTHING)], *of_frames], angles, pairs.copy_angles() if worth_it else None)


def _ordered(own: list[Segment], frames: int) -> list[Segment]:
    """Text and what needs no rotation first: the kernel starts with the queries as they are."""
    if own == [Segment(DENSE_FRAMES, 0, frames)]:
        return [Segment(EVERYTHING)]
    return [*TEXT, *sorted(own, key=lambda segment: segment.rotation >= 0)]


@dataclass(frozen=True)
class _Pairs:
    """What pairs of frames have, (frames, frames): codes are equal where the angles of a query frame are.

    Args:
        codes: for the model's keys, and for the rotated copy.
        moves_with_key: whether the copy is at the new frequencies instead of rotated back to position 0, for plans that
            change the frequencies and leave the positions: then all key frames have the same angle.
    """

    kind: Tensor
    codes: tuple[Tensor, Tensor]
    factor: Tensor
    bias: Tensor
    positions: Tensor
    old: Tensor
    new: Tensor
    moves_with_key: int

    @classmethod
    def of(cls, prepared: PreparedPlan, tokens_per_frame: int) -> "_Pairs":
        plan, frames, old = prepared.plan, prepared.frames, prepared.frequencies
        new = old if plan.frequencies is None else plan.frequencies(old)
        moves_with_key = 0 if plan.frequencies is None else 1
        kind = plan.visibility.long()
        if prepared.stripe_tokens(tokens_per_frame) >= tokens_per_frame:
            kind = kind.where(kind != STRIPED, torch.full_like(kind, 2))
        true, key = relative_positions(frames), torch.arange(frames, dtype=torch.float64)
        moves = (true - plan.positions).unique(return_inverse=True)[1]
        if plan.frequencies is not None:
            at = plan.positions.unique(return_inverse=True)[1]
            moves = (true.long() + frames) * (int(at.max()) + 1) + at
        held = (plan.positions + moves_with_key * key).unique(return_inverse=True)[1]
        held = torch.arange(frames)[:, None] * (int(held.max()) + 1) + held
        factor = torch.ones_like(true) if plan.decay is None else plan.decay
        bias = torch.zeros_like(true) if prepared.bias is None else prepared.bias
        return cls(kind, (moves, held), factor, bias, plan.positions, old, new, moves_with_key)

    def runs(self, copied: bool) -> list[list[Segment]]:
        """The visible key frames of each query frame, in as few ranges as possible: greedily the longest next one."""
        breaks = [self._breaks(code) for code in self.codes[: 1 + copied]]
        tables = (table.tolist() for table in (self.kind, self.factor, self.bias))
        return [list(_row_of_runs(*row)) for row in zip(*tables, *breaks, strict=True)]

    def count(self) -> int:
        """The number of ranges without the copy."""
        return int((self.kind[:, 0] != NONE).sum() + (self._changes(self.codes[0]) & (self.kind[:, 1:] != NONE)).sum())

    def _breaks(self, code: Tensor) -> list[list[int]]:
        """For each query frame, the key frames before which `_changes` is true, and the number of frames."""
        return [[*(row.nonzero().flatten() + 1).tolist(), len(code)] for row in self._changes(code)]

    def _changes(self, code: Tensor) -> Tensor:
        """Whether the kind, angle, factor or bias of a key frame is another than that of the one before it."""
        return torch.stack([table.diff(dim=1) != 0 for table in (self.kind, code, self.factor, self.bias)]).any(dim=0)

    def angles(self, runs: list[tuple[int, Segment]]) -> tuple[Tensor, Tensor]:
        """The distinct angles of ranges of key frames, (rotations, ..., pairs), and the row of each range."""
        query, key, copy = torch.tensor([(frame, run.first, run.rotated_keys) for frame, run in runs]).T
        code = 2 * self.codes[0][query, key].where(copy == 0, self.codes[1][query, key]) + copy
        distinct, rows = code.unique(return_inverse=True)
        one = torch.empty_like(distinct).scatter_(0, rows, torch.arange(len(rows)))  # a range of each angle
        query, key, copy = query[one], key[one], copy[one]
        to = self.positions[query, key] + copy * self.moves_with_key * key
        wide = (-1, *[1] * self.old.ndim)
        return (query - (1 - copy) * key).view(wide) * self.old - to.view(wide) * self.new, rows

    def copy_angles(self) -> Tensor:
        """By which the copy is rotated back, (frames, ..., pairs)."""
        key = torch.arange(len(self.kind), dtype=torch.float64)
        return key.view(-1, *[1] * self.old.ndim) * (self.old - self.moves_with_key * self.new)


def _row_of_runs(kinds: list[int], factors: list[float], biases: list[float], *breaks: list[int]) -> Iterator[Segment]:
    """The ranges of one query frame; `breaks` are those of the model's keys, and those of the copy."""
    at = 0
    while at < len(kinds):
        stops = [points[bisect_right(points, at)] for points in breaks]
        rotated_keys = int(stops[-1] > stops[0])
        if kinds[at] != NONE:
            kind = STRIPED_FRAMES if kinds[at] == STRIPED else DENSE_FRAMES
            yield Segment(kind, at, stops[rotated_keys] - at, -1, rotated_keys, factors[at], biases[at])
        at = stops[rotated_keys]
