"""Progress: a bar over the budget, with the time left."""

import time
from typing import Any

from freeloc.tuning.clock import Clock


class Progress:
    """A progress bar in seconds, if tqdm is installed.

    Args:
        clock: the budget.
        shown: whether to show it: one process of several does.
    """

    def __init__(self, clock: Clock, shown: bool) -> None:
        self._clock = clock
        self._bar = _bar(clock.budget) if shown else None
        self._stage, self._shown = "", 0.0

    def stage(self, name: str) -> None:
        """Begin a stage."""
        self._stage, self._shown = name, 0.0
        self.update()

    def update(self) -> None:
        """Show the time, at most twice a second."""
        if self._bar is not None and time.monotonic() > self._shown + 0.5:
            self._shown = time.monotonic()
            self._bar.n = min(self._bar.total, round(self._clock.spent()))
            self._bar.set_description_str(f"tune: {self._stage}", refresh=False)
            self._bar.set_postfix_str(f"at most {max(0.0, self._clock.left()) / 60:.1f} min left", refresh=False)
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(seconds: float) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=max(1, round(seconds)), unit="s", bar_format="{desc} |{bar}| {postfix}", leave=False)
