"""Clock: how much of the budget is spent. A run that was interrupted goes on with what is left of it."""

import math
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from freeloc.errors import FreelocError, ProbeError
from freeloc.files import content_of
from freeloc.probing.cells import write_json
from freeloc.untrusted import brief, parsed, printable

LARGEST_FILE = 1000
"""Largest size of the file that keeps what was spent, in bytes."""


class Clock:
    """Counts the time of a run, and of the interrupted runs before it in the same folder.

    >>> seconds = iter([0.0, 30.0])
    >>> clock = Clock(1.0, now=lambda: next(seconds))
    >>> clock.spent()
    30.0

    Args:
        minutes: the budget.
        folder: folder that keeps what was spent; None keeps it in memory only.
        now: seconds of a clock that never goes back.

    Raises:
        ProbeError: if the file in the folder is damaged.
    """

    def __init__(self, minutes: float, folder: Path | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.budget = 60 * minutes
        self._now = now
        self._path = folder / "clock.json" if folder else None
        self._before = 0.0
        if self._path and self._path.exists():
            self._before = _seconds(self._path)
        self._start = now()
        self._typical: dict[Hashable, float] = {}
        self._expected: dict[Hashable, float] = {}

    def now(self) -> float:
        """Seconds of the clock."""
        return self._now()

    def spent(self) -> float:
        """Seconds so far."""
        return self._before + self._now() - self._start

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the budget is spent."""
        return share * self.budget - self.spent()

    def fits(self, kind: Hashable, share: float = 1.0) -> bool:
        """Whether another measurement of this kind would end before this share of the budget is spent."""
        return self.typical(kind) < self.left(share)

    def typical(self, kind: Hashable) -> float:
        """Seconds of a measurement of this kind; what is expected if none was made, else 0."""
        return self._typical.get(kind, self._expected.get(kind, 0.0))

    def expect(self, kind: Hashable, seconds: float) -> None:
        """Say how long a measurement of this kind is likely to take, before the first is made."""
        self._expected[kind] = seconds

    def note(self, kind: Hashable, seconds: float) -> None:
        """Record a measurement, and save what was spent."""
        known = self._typical.get(kind)
        # The first one of a kind also loads and prepares, so later ones count more.
        self._typical[kind] = seconds if known is None else 0.5 * (known + seconds)
        if self._path:
            write_json(self._path, {"seconds": self.spent()})


def _seconds(path: Path) -> float:
    """What was spent according to a file, which may be damaged or from somebody else."""
    try:
        found = parsed(content_of(path, LARGEST_FILE))
        seconds = found.get("seconds") if isinstance(found, dict) else None
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError(f'expected {{"seconds": a number from 0}}, found {brief(found)}')
        return float(seconds)
    except (FreelocError, ValueError, RecursionError, OverflowError) as error:
        raise ProbeError(
            f"cannot read {printable(str(path))}: {printable(str(error))}: remove it to count the time from 0"
        ) from error
