"""Schedule: which pairs of frames one call of an attention kernel computes.

A kernel is fast where it has much to do at once, and each query and key has one rotation in a call. So it needs pairs
whose relative positions are differences, position(i, j) = a(i) - b(j): then queries rotated to a(i) and keys rotated to
b(j) stand right for each other. There are two shapes of them.

- A band: query frames that follow each other, each with the same number of key frames at the same distances, over which
  the position rises evenly. A sliding window is one; so are the frames whose distance is floored to the same group.
- A block: query frames that all have the same range of key frames.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.plans.frame_plan import DENSE, STRIPED, FramePlan

SHORTEST_BAND = 5
"""Least number of query frames of a band."""

ENOUGH = (5, 200)
"""Least number of query frames, and of their tokens, with which a block of many keys is made."""

LEAST = (2, 240)
"""Key frames, and key tokens, of the smallest blocks, to which all queries belong that have something in common."""

FINEST = 2.0**-30
"""Positions that differ by less, in latent frames, are the same."""

CALL, PART = 20_000, 30
"""What a call costs, and each query token of it, in pairs of tokens of a large call. On the CPU of docs/performance.md
these are 0.1 ms and 0.2 us."""


class Block(NamedTuple):
    """Pairs of frames that one call can compute.

    Args:
        queries: indices of query frames, in rising order; those of a band follow each other.
        keys: key frames; of a band, those of its first query frame. Each next one has those one frame later.
        is_band: whether it is a band.
        is_first: whether these queries have no pair in the blocks before.
    """

    queries: tuple[int, ...]
    keys: range
    is_band: bool = False
    is_first: bool = True


def make_schedule(
    plan: FramePlan, tokens_per_frame: int, bias: Tensor | None = None
) -> tuple[list[Block], list[Block]]:
    """The blocks of the densely visible pairs of a plan, and of the striped ones, which come after them.

    >>> dense, striped = make_schedule(FramePlan.identity(4), tokens_per_frame=60)
    >>> dense
    [Block(queries=(0, 1, 2, 3), keys=range(0, 4), is_band=False, is_first=True)]

    Args:
        plan: the plan.
        tokens_per_frame: tokens of a latent frame.
        bias: (frames, frames), what is added to the logits of each pair; by default nothing.
    """
    seen: set[int] = set()
    found: dict[int, list[Block]] = {DENSE: [], STRIPED: []}
    for kind, blocks in found.items():
        finder = _Finder(plan, plan.visibility == kind, tokens_per_frame, bias)
        # Striped pairs are computed for a few tokens of a frame at a time, in small calls: there, bands are best.
        ways = [finder.as_bands(), *([finder.as_blocks()] if kind == DENSE else [])]
        for block in min(ways, key=lambda way: _cost(way, tokens_per_frame)):
            blocks.append(block._replace(is_first=seen.isdisjoint(block.queries)))
            seen.update(block.queries)
    return found[DENSE], found[STRIPED]


def _cost(blocks: list[Block], tokens_per_frame: int) -> float:
    """About how long the blocks take, in pairs of tokens of a large call."""
    total = 0.0
    for block in blocks:
        queries, keys = tokens_per_frame * len(block.queries), tokens_per_frame * len(block.keys)
        together = tokens_per_frame if block.is_band else queries
        of_queries = 0.0 if together >= 768 else 0.04 if together >= 192 else 0.14
        of_keys = 0.0 if keys >= 200 else 0.15 if keys >= 100 else 0.4
        total += CALL + queries * (keys * (1 + of_queries + of_keys) + PART)
    return total


def ranges(chosen: Tensor) -> list[range]:
    """The ranges of the true entries of (n,) bool.

    >>> ranges(torch.tensor([True, True, False, True]))
    [range(0, 2), range(3, 4)]
    """
    found: list[range] = []
    for index in chosen.nonzero().flatten().tolist():
        if found and index == found[-1].stop:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def even_runs(values: Tensor) -> list[range]:
    """Ranges over which values rise evenly, the longest ones first; together they are all of (n,).

    >>> even_runs(torch.tensor([5, 4, 4, 3, 3, 3]))
    [range(3, 6), range(1, 3), range(0, 1)]
    """
    steps = values.diff()
    bounds = [0, *((steps.diff() != 0).nonzero().flatten() + 1).tolist(), len(values) - 1]
    runs = [range(start, stop + 1) for start, stop in itertools.pairwise(bounds)]
    runs.sort(key=lambda run: (-len(run), int(steps[run.start].abs()) if len(run) > 1 else 0))
    free, found = torch.ones(len(values), dtype=torch.bool), list[range]()
    for run in runs:
        found += [run[left.start : left.stop] for left in ranges(free[run.start : run.stop])]
        free[run.start : run.stop] = False
    return found


class _Finder:
    """Divides the visible pairs of frames among blocks.

    Args:
        plan: the plan.
        visible: (query frames, key frames) bool, the pairs to divide.
        tokens_per_frame: tokens of a latent frame.
        bias: (query frames, key frames); None for none.
    """

    def __init__(self, plan: FramePlan, visible: Tensor, tokens_per_frame: int, bias: Tensor | None) -> None:
        self._visible, self._bias = visible, bias
        self._positions = (plan.positions / FINEST).round()
        self._enough, self._least = (max(frames, -(-tokens // tokens_per_frame)) for frames, tokens in (ENOUGH, LEAST))

    def as_bands(self) -> list[Block]:
        """All bands, and the ranges that are left."""
        left = self._visible.clone()
        return [*self._bands(left), *self._ranges(left)]

    def as_blocks(self) -> list[Block]:
        """Blocks of as many queries as have something in common over many keys, and the ranges that are left."""
        left = self._visible.clone()
        return [*self._within(range(left.shape[1]), left), *self._ranges(left)]

    def _bands(self, left: Tensor) -> list[Block]:
        begun: dict[tuple[float, ...], int] = {}  # the first query frame of each run that goes on
        found = []
        for query in range(len(left) + 1):
            now = self._runs(query) if query < len(left) else set()
            for run in sorted(begun.keys() - now):
                first = begun.pop(run)
                if query - first >= SHORTEST_BAND:
                    keys = range(first + int(run[0]), first + int(run[1]))
                    found.append(Block(tuple(range(first, query)), keys, is_band=True))
            for run in now:
                begun.setdefault(run, query)
        for band in found:
            for offset, query in enumerate(band.queries):
                left[query, band.keys.start + offset : band.keys.stop + offset] = False
        return found

    def _runs(self, query: int) -> set[tuple[float, ...]]:
        """Of each run of evenly rising positions: where it starts and stops from the query, and its first positions."""
        found = set()
        for keys in ranges(self._visible[query]):
            positions = self._positions[query, keys.start : keys.stop]
            for run in even_runs(positions):
                first = positions[run.start : min(run.stop, run.start + 2)].tolist()
                found.add((keys.start + run.start - query, keys.start + run.stop - query, *first))
        return found

    def _within(self, keys: range, left: Tensor) -> Iterator[Block]:
        """The blocks of these keys, then those of each half of them."""
        middle, at = (keys.start + keys.stop) // 2, slice(keys.start, keys.stop)
        is_smallest = middle - keys.start < self._least
        for queries in self._alike(left[:, at].all(dim=1).nonzero().flatten(), keys):
            if len(queries) >= self._enough or (is_smallest and len(queries) > 1):
                left[queries, at] = False
                yield Block(tuple(queries.tolist()), keys)
        if not is_smallest and left[:, at].any():
            yield from self._within(range(keys.start, middle), left)
            yield from self._within(range(middle, keys.stop), left)

    def _ranges(self, left: Tensor) -> Iterator[Block]:
        """The ranges of keys of each query, those together that several queries have in common."""
        queries_of: dict[range, list[int]] = {}
        for query, row in enumerate(left):
            for keys in ranges(row):
                queries_of.setdefault(keys, []).append(query)
        for keys, chosen in queries_of.items():
            for queries in self._alike(torch.tensor(chosen), keys):
                yield Block(tuple(queries.tolist()), keys)

    def _alike(self, queries: Tensor, keys: range) -> list[Tensor]:
        """Groups of query frames whose positions and bias go the same way over these keys."""
        if not len(queries):
            return []
        at = slice(keys.start, keys.stop)
        positions = self._positions[queries, at]
        table = positions - positions[:, :1]
        if self._bias is not None:
            table = torch.cat([table, self._bias[queries, at]], dim=1)
        _, group = table.unique(dim=0, return_inverse=True)
        return [queries[group == index] for index in range(int(group.max()) + 1)]
