"""How much `freeloc bench` measures: settings, lengths and numbers of clips."""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from freeloc.errors import FreelocError
from freeloc.tiny.models import TinyModel, model_named
from freeloc.tiny.setting import Setting
from freeloc.tiny.settings import all_settings, setting_of, single_layer_settings

TRUE = "true clips"
"""The setting without a model: true clips."""


class Part(NamedTuple):
    """Clips of some settings at one length.

    Attributes:
        times: length, in trained lengths.
        clips: number of clips, rounded up to a multiple of four.
        names: names of settings. Settings that do not exist are ignored.
        part: name of the part of the bench that this belongs to, for ``--part``.
    """

    times: int
    clips: int
    names: tuple[str, ...]
    part: str = ""


@dataclass(frozen=True)
class Size:
    """How much to measure.

    Attributes:
        parts: the parts, in order.
        steps: number of denoising steps.
        guidance: scale of classifier-free guidance.
        others: additional methods and profiles, by the names that `setting_of` supports.
        model: name of the model.
        loss_clips: number of first clips on which the denoising loss is measured too.
    """

    parts: tuple[Part, ...]
    steps: int = 8
    guidance: float = 3.0
    others: tuple[str, ...] = ()
    model: str = "tiny-wan"
    loss_clips: int = 12

    def with_others(self, names: Sequence[str]) -> "Size":
        """The same, with these methods and profiles added beyond the trained length, on the largest number of clips."""
        return replace(self, parts=(*self.parts, *self._added(names)), others=(*self.others, *names))

    def with_only(self, names: Sequence[str]) -> "Size":
        """Only these settings beyond the trained length; the same size if there are none."""
        alone = tuple(part for part in self.parts if part.times == 1)
        return replace(self, parts=(*alone, *self._added(names)), others=tuple(names)) if names else self

    def only(self, parts: Collection[str]) -> "Size":
        """The parts with these names; all if there are none.

        Raises:
            FreelocError: if there is no part of a name.
        """
        known = list(dict.fromkeys(part.part for part in self.parts if part.part))
        for name in parts:
            if name not in known:
                raise FreelocError(f"expected one of the parts {', '.join(known) or '(none)'}, found '{name}'")
        return replace(self, parts=tuple(part for part in self.parts if part.part in parts)) if parts else self

    def _added(self, names: Sequence[str]) -> list[Part]:
        added = tuple(setting_of(name, self.model).name for name in names)
        return [Part(times, self.clips_at(times)[TRUE], added) for times in self.lengths if times > 1]

    @property
    def settings(self) -> dict[str, Setting]:
        """All settings, by name."""
        return _settings(self.model, self.others)

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
"""The settings of a quick bench: the paper's ablation."""

FIRST = ("sliding-window", "freenoise", "layer-wise", "tuned")
"""The settings that are expected to be best."""

SECOND = ("direct", "balanced everywhere", "lvsa")
"""Direct sampling, the rule that needs no tuning, and the nearest rival."""

UNIFORM = ("vrpr everywhere", "tsa everywhere", "vrpr+tsa everywhere")
"""One correction on every layer."""

NOISY = ("layer-wise, noise of freenoise", "tuned, noise of freenoise")
"""Combinations with FreeNoise's noise."""

OTHERS = (
    *("clip", "self-extend", "ultravico", "riflex"),
    *("random layers 1", "random layers 2", "random layers 3", "wrong layers"),
)
"""Other methods and other choices of layers."""

ALONE = Part(1, 48, ("direct",), "short")
"""At the trained length, only the unchanged model is measured."""


def quick(model: str = "tiny-wan") -> Size:
    """A few clips of the most important settings, up to 4 times the trained length. It runs for minutes."""
    return _of(model_named(model), (ALONE._replace(clips=4), Part(2, 4, SOME), Part(4, 4, SOME)))


def full(model: str = "tiny-wan") -> Size:
    """48 clips at 4 times the trained length of every setting that is claimed to win or lose, fewer of others.

    It runs for hours, in parts of less than an hour each on two free cores. The denoising loss has a bench of its own.
    """
    parts = (
        Part(4, 48, (*FIRST, *SECOND), "4x"),
        Part(8, 24, (*FIRST, *UNIFORM, *SECOND), "8x"),
        Part(4, 48, UNIFORM, "4x-more"),
        Part(4, 16, NOISY, "4x-more"),
        Part(4, 16, OTHERS, "4x-others"),
        ALONE,
        Part(2, 12, (*FIRST, *SECOND, *UNIFORM), "short"),
    )
    return replace(_of(model_named(model), parts), loss_clips=0)


def single_layers(model: str = "tiny-wan") -> Size:
    """Another policy on one layer at a time, at 4 times the trained length. It runs for hours."""
    return _of(model_named(model), (Part(4, 8, ("vrpr everywhere", *single_layer_settings(model))),))


def _of(model: TinyModel, parts: tuple[Part, ...]) -> Size:
    """These parts, with no more clips than there are true ones, and as the model is sampled."""
    fewer = tuple(part._replace(clips=min(part.clips, model.most_clips)) for part in parts)
    return Size(fewer, model.steps, model.guidance, model=model.name)


@functools.cache
def _settings(model: str, others: tuple[str, ...]) -> dict[str, Setting]:
    found = all_settings(model) | single_layer_settings(model)
    for name in others:
        setting = setting_of(name, model)
        if found.setdefault(setting.name, setting).fingerprint != setting.fingerprint:
            raise FreelocError(f"two settings have the name '{setting.name}': rename the file of one of them")
    return found
