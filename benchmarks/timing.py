"""Timing of calls: in rounds in which a base and the others alternate. It imports nothing of freeloc."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Timed = Callable[[], float]
"""Runs a call and returns how long it took."""


class Budget:
    """Seconds that a benchmark may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or below if none are."""
        return self._end - time.monotonic()


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Time of one call: of the GPU, by events; of this process on one CPU thread, else by the clock.

    On one thread, processor time is not disturbed by processes that wait for the same core.
    """
    if device == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        run()
        return 1e3 * (clock() - start)
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start_event.record()
    run()
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event))


def timed(run: Callable[[], object], device: str = "cpu") -> Timed:
    """A function that runs it once and returns the milliseconds."""
    return lambda: milliseconds(run, device)


class Timing(NamedTuple):
    """Of repeated calls: the median, its ratio to the base, and the middle half of the ratios.

    Args:
        ms: median in milliseconds.
        ratio: median of the ratios of each call to the base calls next to it.
        low, high: quartiles of these ratios.
        repeats: calls that were timed.
    """

    ms: float
    ratio: float
    low: float
    high: float
    repeats: int


def compare(base: Timed, others: Mapping[str, Timed], rounds: int, apart: int = 1) -> dict[str, Timing]:
    """Time others beside a base, so that a slow moment of the machine hits both. Each must have been called before.

    Each round calls all others, in reverse order every other time, and the base after every `apart` of them. The ratio
    of a call is to the mean of the base calls before and after it.

    Returns:
        A timing for each of the others, by name, and for the base, by the name "".
    """
    bases, found = [base()], dict[str, list[tuple[float, int]]]({name: [] for name in others})
    for number in range(rounds):
        names = list(reversed(others) if number % 2 else others)
        for place, name in enumerate(names, 1):
            found[name].append((others[name](), len(bases)))
            if place % apart == 0 or place == len(names):
                bases.append(base())
    result = {name: _timing(own, bases) for name, own in found.items()}
    return result | {"": Timing(statistics.median(bases), 1.0, 1.0, 1.0, len(bases))}


def _timing(found: Sequence[tuple[float, int]], bases: Sequence[float]) -> Timing:
    """From times, each with the number of base calls before it."""
    ratios = sorted(2 * ms / (bases[before - 1] + bases[before]) for ms, before in found)
    quarter = len(ratios) // 4
    middle = statistics.median(ms for ms, _ in found)
    return Timing(middle, statistics.median(ratios), ratios[quarter], ratios[-1 - quarter], len(ratios))


def rounds_within(rounds: int, seconds: float, each: float) -> int:
    """At most so many rounds of `each` seconds as fit into so many seconds, and at least one."""
    return max(1, min(rounds, int(seconds / max(each, 1e-9))))


def in_rounds(runs: Mapping[str, Timed], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of several things in rounds, after one warm-up each; every other round runs in reverse order."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name in reversed(runs) if number % 2 else runs:
            found[name].append(runs[name]())
    return found
