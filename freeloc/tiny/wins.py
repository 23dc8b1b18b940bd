"""Wins and losses of settings by measure: how much closer to true clips one is than another, with standard errors.

For each measure, the value of true clips is taken as the best. The *gain* of a setting over another is how much closer
its mean is to that value; for a loss, by how much it is lower. Only clips that both have are compared, so the noise and
the prompts of both are the same. Its standard error is by jackknife over these clips, with the true clips taken as
given. There is no sum over measures: a setting can win in motion and lose in drift.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from freeloc.tiny import scores
from freeloc.tiny.losses import MOVING, WHOLE
from freeloc.tiny.sizes import TRUE

LOSSES = (WHOLE, MOVING)
"""Measures without a value for true clips; lower is better."""

BASELINES = ("direct", "vrpr everywhere", "layer-wise", "tuned")
"""The settings that all others are compared with, where they are measured."""

Values = dict[str, dict[str, dict[int, float]]]
"""Value by setting, measure and clip, at one length."""


class Gain(NamedTuple):
    """How much closer to true clips a setting is than another.

    Attributes:
        times: length, in trained lengths.
        measure: name of the measure.
        setting: the setting.
        other: the setting that it is compared with.
        clips: number of clips that both have.
        gain: how much closer its mean is, in units of the measure; negative if it is farther.
        error: standard error of the gain.
    """

    times: int
    measure: str
    setting: str
    other: str
    clips: int
    gain: float
    error: float

    @property
    def verdict(self) -> str:
        """``win`` or ``loss`` beyond two standard errors, in brackets beyond one, else ``even``.

        >>> [Gain(4, "drift", "a", "b", 8, gain, 1.0).verdict for gain in (3, 1.5, 0.5, -1.5, -3)]
        ['win', '(win)', 'even', '(loss)', 'loss']
        """
        word = "win" if self.gain > 0 else "loss"
        if abs(self.gain) > 2 * self.error:
            return word
        return f"({word})" if abs(self.gain) > self.error else "even"

    def __str__(self) -> str:
        return f"{self.gain:+.2g} ± {self.error:.1g} {self.verdict}"


def values_at(rows: list[dict[str, Any]], times: int) -> Values:
    """The values of the rows of one length."""
    found: Values = {}
    for row in rows:
        if row["times"] == times:
            for name, value in row.items():
                if name not in ("times", "setting", "clip", "prompt"):
                    found.setdefault(row["setting"], {}).setdefault(name, {})[row["clip"]] = value
    return found


def gain(values: Values, times: int, measure: str, setting: str, other: str) -> Gain | None:
    """The gain of a setting over another; None if they have fewer than two clips in common, or no true clips.

    >>> values = {"a": {"drift": {0: 0.1, 1: 0.2}}, "b": {"drift": {0: 0.5, 1: 0.7}}, "true clips": {"drift": {7: 0.2}}}
    >>> print(gain(values, 4, "drift", "a", "b"))
    +0.35 ± 0.15 win
    """
    mine, its = (values.get(name, {}).get(measure, {}) for name in (setting, other))
    true = values.get(TRUE, {}).get(measure, {})
    clips = [clip for clip in mine if clip in its]
    if len(clips) < 2 or (not true and measure not in LOSSES):
        return None
    best = 0.0 if measure in LOSSES else sum(true.values()) / len(true)

    def distance(of: dict[int, float], some: Sequence[int]) -> float:
        return abs(sum(of[clip] for clip in some) / len(some) - best)

    def closer(some: Sequence[int]) -> float:
        return distance(its, some) - distance(mine, some)

    value, error = scores.jackknife(closer, clips)
    return Gain(times, measure, setting, other, len(clips), value, error)


def gains(rows: list[dict[str, Any]], times: int, measures: Sequence[str]) -> list[Gain]:
    """The gains of all settings over each of `BASELINES`, and over the best other setting, at one length."""
    values = values_at(rows, times)
    settings = [name for name in values if name != TRUE]
    pairs = [(setting, other) for other in BASELINES if other in values for setting in settings if setting != other]
    found = [gain(values, times, measure, *pair) for measure in measures for pair in pairs]
    return [each for each in found if each]


def standings(rows: list[dict[str, Any]], times: int, measures: Sequence[str]) -> dict[str, list[Gain]]:
    """For each measure the best setting, then all others by their gain over it, at one length.

    The best is that with the mean closest to true clips, among the settings with the most clips. Its own gain is 0.
    """
    values, found = values_at(rows, times), {}
    for measure in measures:
        counts = {name: len(of[measure]) for name, of in values.items() if name != TRUE and of.get(measure)}
        most = [name for name, count in counts.items() if count == max(counts.values())]
        scored = {name: gain(values, times, measure, name, most[0]) for name in most}
        known = {name: each.gain for name, each in scored.items() if each}
        if known:
            best = max(known, key=known.__getitem__)
            over_best = [gain(values, times, measure, name, best) for name in counts]
            found[measure] = sorted((each for each in over_best if each), key=lambda each: -each.gain)
    return found


def standings_table(rows: list[dict[str, Any]], times: int, measures: Sequence[str]) -> str:
    """A Markdown table of `standings`: per measure the best setting, and which others are as good.

    Settings with fewer clips than the best are compared on the clips that both have, and marked with their number.
    """
    shown = [[f"{times}x", "best", "within 1 s.e. of it", "within 2 s.e.", "behind by more", "ahead, on fewer clips"]]
    for measure, ranked in standings(rows, times, measures).items():
        most = max(each.clips for each in ranked)
        best = ranked[0].other
        groups: list[list[str]] = [[], [], [], []]
        for each in ranked:
            if each.setting == best:
                continue
            name = each.setting + ("" if each.clips == most else f" ({each.clips} clips)")
            place = {"even": 0, "(loss)": 1, "loss": 2}.get(each.verdict, 3)
            groups[place].append(f"{name} {each.gain:+.2g}")
        shown.append([measure, best, *("; ".join(group) for group in groups)])
    return scores.markdown(shown)


def gains_table(found: list[Gain], other: str) -> str:
    """A Markdown table of the gains over one setting: a row per setting, a column per measure."""
    here = [each for each in found if each.other == other]
    measures = list(dict.fromkeys(each.measure for each in here))
    cells = {(each.setting, each.measure): str(each) for each in here}
    clips: dict[str, int] = {}
    for each in here:
        clips[each.setting] = max(each.clips, clips.get(each.setting, 0))
    shown = [[f"{here[0].times}x, closer to true clips than {other}", "clips", *measures]]
    for setting, count in clips.items():
        shown.append([setting, str(count), *(cells.get((setting, name), "") for name in measures)])
    return scores.markdown(shown)


def tables(rows: list[dict[str, Any]], times: int, measures: Sequence[str]) -> list[str]:
    """The table of standings, and one of gains over each of `BASELINES`."""
    found = gains(rows, times, measures)
    others = dict.fromkeys(each.other for each in found)
    ranked = [standings_table(rows, times, measures)] if found else []
    return [*ranked, *(gains_table(found, other) for other in others)]
