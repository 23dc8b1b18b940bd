"""Schedule: which pairs of frames one call of an attention kernel computes.

A kernel is fast where it has much to do at once, and each query and key has one rotation in a call. So it needs pairs
whose relative positions are differences, position(i, j) = a(i) - b(j): then queries rotated to a(i) and keys rotated to
b(j) stand right for each other. A block is some query frames that all have the same range of key frames, and it may
have copies: the same some frames later. There are three kinds.

- A block of many queries and keys, without copies.
- A band: copies of one query frame. A sliding window is one, and so are the frames whose distance is floored to the
  same group. Its keys overlap, so that their positions must rise evenly: from frame to frame, or else from each frame
  to the one G frames later, where the copies are G frames apart.
- A comb: copies, each a frame later, of query frames that are G apart. With floor((i - j) / G) they see the same groups
  of G key frames.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.runs import Run, Runs, group_of, ranges
from freeloc.plans.frame_plan import DENSE, STRIPED, FramePlan

SHORTEST_BAND = 5
"""Least number of query frames of a band."""

ENOUGH = (5, 200)
"""Least number of query frames, and of their tokens, with which a block of many keys is made."""

ENOUGH_KEYS = (8, 200)
"""Key frames, or their tokens, with which a band needs no others beside them."""

COMB = 192
"""Least number of query tokens of a comb: with them, PyTorch's kernel on a CPU takes twice as many at a time."""

LEAST = (2, 240)
"""Key frames, and key tokens, of the smallest blocks, to which all queries belong that have something in common."""

FINEST = 2.0**-30
"""Positions that differ by less, in latent frames, are the same."""

CALL, PART = 20_000, 30
"""What a call costs, and each query token of it, in pairs of tokens of a large call. On the CPU of docs/performance.md
these are 0.1 ms and 0.2 us."""


class Block(NamedTuple):
    """Pairs of frames that one call can compute.

    >>> Block(queries=(0, 8), keys=range(20, 24), copies=3).all_queries
    [0, 8, 1, 9, 2, 10]

    Args:
        queries: indices of query frames, in rising order.
        keys: key frames, which all of them see.
        copies: how often.
        step: how many frames later each copy is, in its queries as in its keys.
        is_first: whether these queries have no pair in the blocks before.
    """

    queries: tuple[int, ...]
    keys: range
    copies: int = 1
    step: int = 1
    is_first: bool = True

    @property
    def all_queries(self) -> list[int]:
        """The query frames of all copies."""
        return [query + copy * self.step for copy in range(self.copies) for query in self.queries]


def make_schedule(
    plan: FramePlan, tokens_per_frame: int, bias: Tensor | None = None
) -> tuple[list[Block], list[Block]]:
    """The blocks of the densely visible pairs of a plan, and of the striped ones, which come after them.

    >>> dense, striped = make_schedule(FramePlan.identity(4), tokens_per_frame=60)
    >>> dense
    [Block(queries=(0, 1, 2, 3), keys=range(0, 4), copies=1, step=1, is_first=True)]

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
        ways = [finder.as_blocks(), finder.as_combs()] if kind == DENSE else []
        for block in min([finder.as_bands(), *ways], key=finder.cost):
            blocks.append(block._replace(is_first=seen.isdisjoint(block.all_queries)))
            seen.update(block.all_queries)
    return found[DENSE], found[STRIPED]


class _Finder:
    """Divides the visible pairs of frames among blocks.

    Args:
        plan: the plan.
        visible: (query frames, key frames) bool, the pairs to divide.
        tokens_per_frame: tokens of a latent frame.
        bias: (query frames, key frames); None for none.
    """

    def __init__(self, plan: FramePlan, visible: Tensor, tokens_per_frame: int, bias: Tensor | None) -> None:
        self._visible, self._bias, self._tokens = visible, bias, tokens_per_frame
        self._positions = (plan.positions / FINEST).round()
        self._enough, self._least = (max(frames, -(-tokens // tokens_per_frame)) for frames, tokens in (ENOUGH, LEAST))
        self._runs = Runs(self._positions, bias, min(ENOUGH_KEYS[0], -(-ENOUGH_KEYS[1] // tokens_per_frame)))

    def as_bands(self) -> list[Block]:
        """All bands, and the ranges that are left."""
        left = self._visible.clone()
        return [*self._bands(left), *self._ranges(left)]

    def as_blocks(self) -> list[Block]:
        """Blocks of as many queries as have something in common over many keys, and the ranges that are left."""
        left = self._visible.clone()
        return [*self._within(range(left.shape[1]), left), *self._ranges(left)]

    def as_combs(self) -> list[Block]:
        """Combs, bands, and what is left, as blocks or as ranges, whichever cost less."""
        left = self._visible.clone()
        found = [*self._combs(left), *self._bands(left)]
        copy = left.clone()
        blocks = [*self._within(range(left.shape[1]), copy), *self._ranges(copy)]
        return found + min(blocks, list(self._ranges(left)), key=self.cost)

    def cost(self, blocks: list[Block]) -> float:
        """About how long the blocks take, in pairs of tokens of a large call."""
        total = 0.0
        for block in blocks:
            queries, keys = self._tokens * len(block.queries), self._tokens * len(block.keys)
            of_queries = 0.0 if queries >= 768 else 0.07 if queries >= 192 else 0.2 if queries >= 64 else 0.35
            of_keys = 0.0 if keys >= 200 else 0.15 if keys >= 100 else 0.4
            total += CALL + block.copies * queries * (keys * (1 + of_queries + of_keys) + PART)
        return total

    def _bands(self, left: Tensor) -> list[Block]:
        places: dict[Run, list[int]] = {}
        for query, runs in enumerate(self._runs.of(left)):
            for run in runs:
                places.setdefault(run.moved(query), []).append(query)
        found = []
        for run, queries in places.items():
            for chain in _chains(queries, run.lag):
                if len(chain) >= SHORTEST_BAND:
                    keys = range(run.keys.start + chain[0], run.keys.stop + chain[0])
                    found.append(Block((chain[0],), keys, len(chain), run.lag))
                    _take(found[-1], left)
        return found

    def _combs(self, left: Tensor) -> list[Block]:
        found, runs = [], self._runs.of(left)
        apart = group_of(itertools.chain.from_iterable(runs), below=len(left))
        places: dict[Run, set[int]] = {}
        for query, own in enumerate(runs if apart else []):
            for run in own:
                places.setdefault(run.moved(query % apart)._replace(position=0.0), set()).add(query)
        for run, queries in places.items():
            common = [q for q in sorted(queries) if q % apart == 0 and queries.issuperset(range(q, q + apart))]
            if len(common) > 1 and len(common) * self._tokens >= COMB and run.lag == 1:
                found.append(Block(tuple(common), run.keys, apart))
                _take(found[-1], left)
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
        for query, row in enumerate(left.tolist()):
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


def _chains(numbers: list[int], step: int) -> list[range]:
    """Rising numbers as ranges of this step.

    >>> _chains([1, 2, 3, 5, 7], step=2)
    [range(1, 9, 2), range(2, 4, 2)]
    """
    chains: dict[int, range] = {}  # by the number with which it would go on
    for number in numbers:
        first = chains.pop(number, range(number, number)).start
        chains[number + step] = range(first, number + step, step)
    return sorted(chains.values(), key=lambda chain: chain.start)


def _take(block: Block, left: Tensor) -> None:
    """Mark the pairs of a block as no longer left."""
    queries = torch.tensor(block.queries)
    for moved in range(0, block.copies * block.step, block.step):
        left[queries + moved, block.keys.start + moved : block.keys.stop + moved] = False
