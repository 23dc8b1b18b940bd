"""How much `freeloc bench` measures: settings, lengths and numbers of clips."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from freeloc.errors import FreelocError
from freeloc.tiny.settings import Setting, all_settings, setting_of, single_layer_settings

TRUE = "true clips"
"""The setting without a model: clips of the synthetic dataset."""


class Part(NamedTuple):
    """Clips of some settings at one length.

    Attributes:
        times: length, in trained lengths.
        clips: number of clips, rounded up to a multiple of four.
        names: names of settings. Settings that do not exist are ignored.
    """

    times: int
    clips: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How much to measure.

    Attributes:
        parts: the parts, in order.
        steps: number of denoising steps.
        guidance: scale of classifier-free guidance.
        others: additional methods and profiles, by the names that `setting_of` supports.
    """

    parts: tuple[Part, ...]
    steps: int = 8
    guidance: float = 3.0
    others: tuple[str, ...] = ()

    def with_others(self, names: Sequence[str]) -> "Size":
        """The same, with these methods and profiles added beyond the trained length, on the largest number of clips."""
        added = tuple(setting_of(name).name for name in names)
        parts = [Part(times, self.clips_at(times)[TRUE], added) for times in self.lengths if times > 1]
        return replace(self, parts=(*self.parts, *parts), others=(*self.others, *names))

    @property
    def settings(self) -> dict[str, Setting]:
        """All settings, by name."""
        return _settings(self.others)

    @property
    def lengths(self) -> list[int]:
        """The lengths, in trained lengths, shortest first."""
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
"""The most important settings."""

CHOICES = ("head-wise", "random layers 1", "random layers 2", "random layers 3", "wrong layers")
"""Settings with other choices of policies."""

ALONE = Part(1, 48, ("direct",))
"""At the trained length, only the unchanged model is measured."""


def quick() -> Size:
    """A few clips of the most important settings, up to 4 times the trained length. It runs for minutes."""
    return Size((ALONE._replace(clips=4), Part(2, 4, SOME), Part(4, 4, SOME)))


def full() -> Size:
    """Every setting, with most clips of the most important ones at 4 times the trained length. It runs for hours."""
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
    """Another policy on one layer at a time, at 4 times the trained length. It runs for hours."""
    return Size((Part(4, 8, ("vrpr everywhere", *single_layer_settings())),))


@functools.cache
def _settings(others: tuple[str, ...]) -> dict[str, Setting]:
    found = all_settings() | single_layer_settings()
    for setting in map(setting_of, others):
        if found.setdefault(setting.name, setting).fingerprint != setting.fingerprint:
            raise FreelocError(f"two settings have the name '{setting.name}': rename the file of one of them")
    return found
