"""Runs: key frames of a query frame over which the position rises evenly."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor


class Run(NamedTuple):
    """Key frames over which the position rises evenly.

    Args:
        keys: which ones.
        lag: how far apart the frames are between which it rises.
        position: that of the first one.
        like: how the position rises over the first ones, and the bias of all: runs that go the same way have the same.
    """

    keys: range
    lag: int
    position: float
    like: tuple[float, ...]

    def moved(self, frames: int) -> "Run":
        """The run that many frames earlier."""
        return self._replace(keys=range(self.keys.start - frames, self.keys.stop - frames))


class Runs:
    """The runs of a plan.

    Args:
        positions: (query frames, key frames), equal where they are the same.
        bias: (query frames, key frames); None for none.
        enough: number of key frames with which a run need not be joined with those beside it.
    """

    def __init__(self, positions: Tensor, bias: Tensor | None, enough: int) -> None:
        self._positions, self._enough = positions.tolist(), enough
        self._bias = None if bias is None else bias.tolist()

    def of(self, visible: Tensor) -> list[list[Run]]:
        """The runs of each query frame among its visible frames, (query frames, key frames) bool."""
        runs = [self._even(query, row) for query, row in enumerate(visible.tolist())]
        lag = group_of(itertools.chain.from_iterable(runs), below=self._enough)
        return [self._joined(query, own, lag) if lag else own for query, own in enumerate(runs)]

    def _even(self, query: int, chosen: list[bool], lag: int = 1) -> list[Run]:
        return [
            self._run(query, range(keys.start + run.start, keys.start + run.stop), lag)
            for keys in ranges(chosen)
            for run in even_runs(self._positions[query][keys.start : keys.stop], lag)
        ]

    def _run(self, query: int, keys: range, lag: int) -> Run:
        first, *after = self._positions[query][keys.start : min(keys.stop, keys.start + lag + 1)]
        bias = [] if self._bias is None else self._bias[query][keys.start : keys.stop]
        return Run(keys, lag, first, (*(position - first for position in after), *bias))

    def _joined(self, query: int, runs: list[Run], lag: int) -> list[Run]:
        """These runs, the short ones joined where the position rises evenly from each frame to that `lag` later."""
        short = [run for run in runs if len(run.keys) < self._enough]
        chosen = [False] * len(self._positions[query])
        for key in itertools.chain.from_iterable(run.keys for run in short):
            chosen[key] = True
        joined = self._even(query, chosen, lag)
        return runs if len(joined) >= len(short) else [*(run for run in runs if len(run.keys) >= self._enough), *joined]


def group_of(runs: Iterable[Run], below: int) -> int:
    """Length of the runs, shorter than `below`, in which most frames have one position; 0 if there are none."""
    frames = Counter[int]()
    for run in runs:
        if 1 < len(run.keys) < below and run.like[0] == 0:
            frames[len(run.keys)] += len(run.keys)
    return frames.most_common(1)[0][0] if frames else 0


def ranges(chosen: Sequence[bool]) -> list[range]:
    """The ranges of what is true.

    >>> ranges([True, True, False, True])
    [range(0, 2), range(3, 4)]
    """
    pairs = zip([False, *chosen], [*chosen, False], strict=True)
    edges = [index for index, (before, after) in enumerate(pairs) if before != after]
    return [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def even_runs(values: Sequence[float], lag: int = 1) -> list[range]:
    """Ranges over which values rise evenly, the longest ones first; together they are all of them.

    >>> even_runs([5, 4, 4, 3, 3, 3])
    [range(3, 6), range(1, 3), range(0, 1)]
    >>> even_runs([4, 4, 3, 3, 2, 2], lag=2)
    [range(0, 6)]

    Args:
        values: the values.
        lag: how far apart the values are that are compared.
    """
    if len(values) <= lag:
        return [range(len(values))]
    steps = [after - before for before, after in zip(values, values[lag:], strict=False)]
    bounds = [0, *(index for index in range(1, len(steps)) if steps[index] != steps[index - 1]), len(steps)]
    runs = [range(start, stop + lag) for start, stop in itertools.pairwise(bounds)]
    runs.sort(key=lambda run: (-len(run), abs(steps[run.start])))
    free, found = [True] * len(values), list[range]()
    for run in runs:
        found += [run[left.start : left.stop] for left in ranges(free[run.start : run.stop])]
        free[run.start : run.stop] = [False] * len(run)
    return found
