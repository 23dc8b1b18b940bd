"""Clock: how much of the budget is spent. A run that was interrupted goes on with what is left of it."""

import json
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from freeloc.probing.cells import write_json


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
    """

    def __init__(self, minutes: float, folder: Path | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.budget = 60 * minutes
        self._now = now
        self._path = folder / "clock.json" if folder else None
        self._before = 0.0
        if self._path and self._path.exists():
            self._before = float(json.loads(self._path.read_text(encoding="utf-8"))["seconds"])
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
