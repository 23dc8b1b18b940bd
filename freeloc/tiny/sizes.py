"""How much `freeloc bench` measures: which settings, at which lengths, on how many clips."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from freeloc.errors import FreelocError
from freeloc.tiny.settings import Setting, all_settings, setting_of, single_layer_settings

TRUE = "true clips"
"""The setting that is no method: clips of the world itself."""


class Part(NamedTuple):
    """Clips of some settings at one length.

    Attributes:
        times: length, in trained lengths.
        clips: number of clips, rounded up to fours.
        names: settings; ones that there are not are left out.
    """

    times: int
    clips: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How much to measure.

    Attributes:
        parts: in this order.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        others: methods and profiles beside the bench's own settings, as `setting_of` takes them.
    """

    parts: tuple[Part, ...]
    steps: int = 8
    guidance: float = 3.0
    others: tuple[str, ...] = ()

    def with_others(self, names: Sequence[str]) -> "Size":
        """The same, and beyond the trained length these methods and profiles on the most clips of each."""
        added = tuple(setting_of(name).name for name in names)
        parts = [Part(times, self.clips_at(times)[TRUE], added) for times in self.lengths if times > 1]
        return replace(self, parts=(*self.parts, *parts), others=(*self.others, *names))

    @property
    def settings(self) -> dict[str, Setting]:
        """All that there are, by name."""
        return _settings(self.others)

    @property
    def lengths(self) -> list[int]:
        """In trained lengths, shortest first."""
        return sorted({part.times for part in self.parts})

    def clips_at(self, times: int) -> dict[str, int]:
        """Number of clips of each setting at this length, true clips first."""
        here = [part for part in self.parts if part.times == times]
        counts = {TRUE: max(part.clips for part in here)}
        for name in self.settings:
            clips = [part.clips for part in here if name in part.names]
            if clips:
                counts[name] = max(clips)
        return counts


SOME = ("direct", "sliding-window", "tsa everywhere", "vrpr everywhere", "vrpr+tsa everywhere", "layer-wise")
"""The settings that matter most."""

CHOICES = ("head-wise", "random layers 1", "random layers 2", "random layers 3", "wrong layers")
"""Other choices of what layers get."""

ALONE = Part(1, 48, ("direct",))
"""At the trained length the model as it is stands alone."""


def quick() -> Size:
    """Minutes: a few clips of the settings that matter most, up to 4 times the trained length."""
    return Size((ALONE._replace(clips=4), Part(2, 4, SOME), Part(4, 4, SOME)))


def full() -> Size:
    """Hours: every setting; most clips of those that matter most at 4 times the trained length."""
    methods = tuple(name for name in all_settings() if name not in (*SOME, *CHOICES))
    return Size(
        (
            ALONE,
            Part(4, 48, SOME),
            Part(4, 16, CHOICES),
            Part(2, 24, SOME),
            Part(4, 8, methods),
            Part(2, 8, methods),
            Part(8, 4, ("direct", "sliding-window", "layer-wise")),
        )
    )


def single_layers() -> Size:
    """Hours: one layer at a time treated differently, at 4 times the trained length."""
    return Size((Part(4, 8, ("vrpr everywhere", *single_layer_settings())),))


@functools.cache
def _settings(others: tuple[str, ...]) -> dict[str, Setting]:
    found = all_settings() | single_layer_settings()
    for setting in map(setting_of, others):
        if found.setdefault(setting.name, setting).fingerprint != setting.fingerprint:
            raise FreelocError(f"two settings have the name '{setting.name}': give the file of one of them another")
    return found
