"""Racing: which of several arms has the lowest loss, with few measurements. Pure functions on numbers.

All arms are measured on the same units, so that they can be compared unit by unit. An arm stops as soon as it is worse
than the best one beyond doubt. Source: Hoeffding races (Maron and Moore 1993) and F-Race (Birattari et al. 2002), with
Student's distribution instead of their bounds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

Arm = TypeVar("Arm")


class Unit(NamedTuple):
    """What one loss is measured on: a clip, cut to a length, at a noise level.

    Attributes:
        clip: number of the clip.
        frames: length in latent frames.
        level: noise level, 0 clean to 1 noise.
    """

    clip: int
    frames: int
    level: float


Scores = Mapping[Unit, float]
"""Losses of one arm by unit."""


class Paired(NamedTuple):
    """How much lower the loss of one arm is than that of another, on the units that both were measured on.

    Attributes:
        mean: mean over clips of the difference; negative if the first arm is better.
        error: standard error of `mean` over clips; NaN for one clip.
        clips: number of clips.
        wins: on how many clips the first arm is better.
        loss: mean loss of the second arm.
    """

    mean: float
    error: float
    clips: int
    wins: int
    loss: float

    def is_worse(self, errors: float, least: int) -> bool:
        """Whether the first arm is worse by more than `errors` standard errors, after at least `least` clips."""
        return self.clips >= least and self.mean > margin(self.clips, errors) * self.error

    def is_better(self, errors: float) -> bool:
        """Whether the first arm is better by more than `errors` standard errors."""
        return self.clips > 1 and not self.is_nothing() and self.mean < -margin(self.clips, errors) * self.error

    def is_nothing(self) -> bool:
        """Whether the arms give the same result, up to rounding: see `NEGLIGIBLE`."""
        largest = abs(self.mean) + (0.0 if math.isnan(self.error) else self.error)
        return self.clips > 0 and largest <= NEGLIGIBLE * max(self.loss, self.loss + self.mean)


NEGLIGIBLE = 2e-5
"""A difference of less than this share of the loss is none: arithmetic in float32 may differ by that much."""


def margin(clips: int, errors: float) -> float:
    """`errors` standard errors for many clips, and more for few, whose standard error is itself uncertain.

    It is `errors` times the standard deviation of Student's distribution with ``clips - 1`` degrees of freedom.

    >>> [round(margin(clips, 3.0), 1) for clips in (4, 8, 100)]
    [5.2, 3.5, 3.0]
    """
    freedom = clips - 1
    return errors * math.sqrt(freedom / (freedom - 2)) if freedom > 2 else errors * 2


def paired(first: Scores, second: Scores) -> Paired:
    """Compare two arms. Units of one clip count as one sample: their noise is not independent.

    >>> units = [Unit(clip, 9, 0.5) for clip in (0, 1)]
    >>> paired({units[0]: 1.0, units[1]: 2.0}, {units[0]: 2.0, units[1]: 5.0})
    Paired(mean=-2.0, error=1.0, clips=2, wins=2, loss=3.5)
    """
    common = [unit for unit in first if unit in second]
    by_clip: dict[int, list[Unit]] = {}
    for unit in common:
        by_clip.setdefault(unit.clip, []).append(unit)
    apart = torch.tensor(
        [sum(first[unit] - second[unit] for unit in units) / len(units) for units in by_clip.values()],
        dtype=torch.float64,
    )
    if not common:
        return Paired(math.nan, math.nan, 0, 0, math.nan)
    error = float(apart.std() / len(apart) ** 0.5) if len(apart) > 1 else math.nan
    loss = sum(second[unit] for unit in common) / len(common)
    return Paired(float(apart.mean()), error, len(apart), int((apart < 0).sum()), loss)


@dataclass(frozen=True)
class Rules:
    """When an arm stops.

    Args:
        errors: an arm stops if it is worse than the best by more than this many standard errors: see `margin`.
        against: the same where arms are compared with a reference: they must be better to be of use.
        least: fewest clips after which an arm may stop.
        tasks: rounds have at least this many measurements, so that several processes have something to do.
    """

    errors: float = 3.0
    against: float = 1.0
    least: int = 4
    tasks: int = 8


def race(
    arms: Sequence[Arm],
    units: Sequence[Unit],
    scores: Callable[[Arm], Scores],
    measure: Callable[[Sequence[tuple[Arm, Unit]]], bool],
    reference: Arm | None = None,
    rules: Rules = Rules(),
) -> list[Arm]:
    """Measure arms on units in order, until all units are done, one arm remains, or time is out.

    >>> loss = {"a": 1.0, "b": 1.1, "c": 3.0}
    >>> found = {name: {} for name in loss}
    >>> def measure(tasks):
    ...     for arm, unit in tasks:
    ...         found[arm][unit] = loss[arm] + unit.clip + 0.2 * (arm == "b") * (unit.clip % 2)
    ...     return True
    >>> race(list(loss), [Unit(clip, 9, 0.5) for clip in range(12)], found.get, measure)
    ['a']
    >>> {name: len(of_arm) for name, of_arm in found.items()}
    {'a': 8, 'b': 8, 'c': 4}

    Args:
        arms: what is compared.
        units: what to measure on. The first ones should be of different clips.
        scores: arm -> the losses known so far.
        measure: measures (arm, unit) pairs; returns False if time is out, and then perhaps not all were measured.
        reference: the arm that all others are compared with; by default the best one at the time. It is not measured
            here, and never stops. All others stop where they make no difference to it.
        rules: when an arm stops.

    Returns:
        The arms that were not stopped, in their order. They were not all measured on all units if time ran out.
    """
    alive, done = list(arms), 0
    while alive and done < len(units) and (reference is not None or len(alive) > 1):
        step = 1 if not done else max(rules.least - done, math.ceil(rules.tasks / len(alive)), 1)
        batch = units[done : done + step]
        # After a first look the most promising arms go first: where time runs out, they are known best.
        ahead = sorted(alive, key=lambda arm: _promise(scores(arm), reference, scores)) if done else alive
        if not measure([(arm, unit) for arm in ahead for unit in batch]):
            break
        done += len(batch)
        alive = _still(alive, scores, reference, rules)
    return alive


def best(arms: Sequence[Arm], scores: Callable[[Arm], Scores]) -> Arm:
    """The arm with the lowest mean loss; among those that differ by nothing, the first.

    Arms that were measured on other units are compared on the common ones.
    """
    found = arms[0]
    for arm in arms[1:]:
        apart = paired(scores(arm), scores(found))
        if apart.mean < 0 and not apart.is_nothing():
            found = arm
    return found


def _promise(mine: Scores, reference: Arm | None, scores: Callable[[Arm], Scores]) -> float:
    if reference is not None:
        return paired(mine, scores(reference)).mean
    return sum(mine.values()) / max(1, len(mine))


def _still(alive: list[Arm], scores: Callable[[Arm], Scores], reference: Arm | None, rules: Rules) -> list[Arm]:
    """The arms that go on."""
    if reference is None:
        leader = best(alive, scores)
        going = [arm for arm in alive if not paired(scores(arm), scores(leader)).is_worse(rules.errors, rules.least)]
        return [arm for index, arm in enumerate(going) if not _is_repeated(arm, going[:index], scores)]
    apart = {index: paired(scores(arm), scores(reference)) for index, arm in enumerate(alive)}
    stopped = {
        index
        for index, found in apart.items()
        if found.is_worse(rules.against, rules.least) or (found.clips >= min(rules.least, 2) and found.is_nothing())
    }
    return [arm for index, arm in enumerate(alive) if index not in stopped]


def _is_repeated(arm: Arm, before: Sequence[Arm], scores: Callable[[Arm], Scores]) -> bool:
    """Whether an arm gives the same results as an earlier, simpler one."""
    apart = [paired(scores(arm), scores(other)) for other in before]
    return any(found.clips > 1 and found.is_nothing() for found in apart)
