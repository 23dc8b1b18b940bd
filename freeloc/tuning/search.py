"""Search: the assignment with the lowest loss on the tuning clips, in four stages that each end within their share.

1. `uniform`: candidates race on all layers.
2. `single layers`: alternatives race on one layer at a time, all others having the best of stage 1.
3. `together`: the gains of stage 2 do not add up, so they are added one by one, and each sum is measured.
4. `settings`: numbers of the policies found are changed in small steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from freeloc.errors import ProbeError
from freeloc.tuning.candidates import Assignment, Candidate, uniform, with_layer
from freeloc.tuning.clock import Clock
from freeloc.tuning.defaults import neighbours
from freeloc.tuning.losses import Losses
from freeloc.tuning.racing import Paired, Rules, Unit, best, paired, race

SHARES = {"uniform": 0.30, "single layers": 0.50, "together": 0.65, "settings": 0.72}
"""By which share of the budget each stage ends; the rest is for the checks. A stage that ends early leaves its time."""

MOST_STEPS = 4
"""Most steps of one number in one direction."""

GAIN = 2.0
"""A change is kept if it is better by more than this many standard errors. Other clips check it again."""


@dataclass(frozen=True)
class Step:
    """A change that was tried.

    Attributes:
        stage: the stage.
        what: the change, in words.
        apart: the comparison with what it would replace.
        kept: whether it was kept.
        why: why it was, or was not.
    """

    stage: str
    what: str
    apart: Paired
    kept: bool
    why: str


@dataclass
class Search:
    """One search. It does the same each time on the same losses, unless time runs out.

    Args:
        losses: the losses.
        clock: the budget.
        units: what to measure on, in order.
        candidates: what is tried on all layers, the simplest first.
        alternatives: what is tried on one layer, the simplest first; a function of the candidates that are left, the
            best on all layers first.
        layers: number of layers.
        rules: when an arm of a race stops.
    """

    losses: Losses
    clock: Clock
    units: Sequence[Unit]
    candidates: Sequence[Candidate]
    alternatives: Callable[[Sequence[Candidate]], Sequence[Candidate]]
    layers: int
    rules: Rules = field(default_factory=Rules)
    steps: list[Step] = field(default_factory=list)
    """All that was tried, in order."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    survivors: list[Candidate] = field(default_factory=list)
    """The candidates that no race has stopped."""
    entered: Callable[[str], None] = lambda stage: None
    """Called at the begin of each stage."""
    standing: dict[Candidate, Paired] = field(default_factory=dict)
    """Each candidate on all layers, compared with the best one."""
    tried: list[Candidate] = field(default_factory=list)
    """What was tried on single layers."""
    base: Candidate = field(init=False)
    """The best candidate on all layers."""

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates that no race has stopped, the best first."""
        return sorted(self.survivors, key=lambda one: (one != self.base, self.standing[one].mean))

    def run(self) -> Assignment:
        """All stages.

        Raises:
            ProbeError: if the budget is too small for the first stage.
        """
        self.entered("all layers")
        base = self._uniform()
        self.entered("single layers")
        changes = self._single(base)
        self.entered("together")
        chosen = self._together(base, changes)
        self.entered("settings")
        return self._settings(chosen)

    def _uniform(self) -> Assignment:
        """Stage 1."""
        arms = [uniform(candidate, self.layers) for candidate in self.candidates]
        self._require_budget(arms)
        alive = race(arms, self.units, self.losses.scores, self._measure("uniform"), rules=self.rules)
        winner = best(alive, self.losses.scores)
        self.base, self.survivors = winner[0], [arm[0] for arm in alive]
        # What comes later is compared with the winner, unit by unit: so all units that it can be measured on.
        self.losses.measure([(winner, unit) for unit in self.units], SHARES["uniform"])
        for arm in arms:
            apart = self.standing[arm[0]] = self._apart(arm, winner)
            why = "the lowest loss" if arm == winner else "not told apart" if arm in alive else "worse beyond doubt"
            self.steps.append(Step("uniform", f"{arm[0]} on all layers", apart, arm == winner, why))
        return winner

    def _single(self, base: Assignment) -> list[tuple[int, Candidate, Paired]]:
        """Stage 2: (layer, alternative, comparison) of the gains, the largest first; then what changes nothing."""
        self.tried = list(dict.fromkeys(self.alternatives(self.ranked)))
        arms = [
            with_layer(base, layer, other)
            for layer in range(self.layers)
            for other in self.tried
            if other != base[layer]
        ]
        units = self._units_of(base)
        alive = race(arms, units, self.losses.scores, self._measure("single layers"), base, self.rules)
        gains, nothing = [], []
        for arm in arms:
            layer = next(layer for layer in range(self.layers) if arm[layer] != base[layer])
            apart = self._apart(arm, base)
            better, same = arm in alive and apart.is_better(GAIN), apart.clips > 1 and apart.is_nothing()
            if better:
                gains.append((layer, arm[layer], apart))
            elif same and self._simpler(arm[layer], base[layer]):
                nothing.append((layer, arm[layer], apart))
            why = "better" if better else "no difference" if same else "worse" if arm not in alive else "not told apart"
            self.steps.append(Step("single layers", f"{arm[layer]} on layer {layer}", apart, better, why))
        return [*sorted(gains, key=lambda gain: gain[2].mean), *nothing]

    def _together(self, chosen: Assignment, changes: Sequence[tuple[int, Candidate, Paired]]) -> Assignment:
        """Stage 3: add the changes one by one, each measured on top of those before."""
        taken: set[int] = set()
        for layer, other, alone in changes:
            if layer in taken:
                continue
            changed = with_layer(chosen, layer, other)
            kept = self._try("together", f"{other} on layer {layer}", changed, chosen, may_be_equal=alone.is_nothing())
            if kept:
                chosen = changed
                taken.add(layer)
        return chosen

    def _settings(self, chosen: Assignment) -> Assignment:
        """Stage 4: small steps of the numbers of each policy, on all layers that have it."""
        for current in dict.fromkeys(chosen):
            moved: set[tuple[str, ...]] = set()
            for path, by in neighbours(current, self.losses.profile):
                if path in moved:  # the other direction, where we come from
                    continue
                for _ in range(MOST_STEPS):
                    other = neighbours(current, self.losses.profile).get((path, by))
                    if other is None:
                        break
                    changed = tuple(other if own == current else own for own in chosen)
                    if not self._try("settings", f"{other} for {current}", changed, chosen):
                        break
                    chosen, current = changed, other
                    moved.add(path)
        return chosen

    def _try(self, stage: str, what: str, changed: Assignment, chosen: Assignment, may_be_equal: bool = False) -> bool:
        """Whether a change is an improvement on all units, or, where that is enough, no change at all."""
        units = self._units_of(chosen)
        alive = race([changed], units, self.losses.scores, self._measure(stage), chosen, self.rules)
        apart = self._apart(changed, chosen)
        if alive and not self.losses.of(changed).keys() >= set(units):  # time ran out
            return False
        same = apart.is_nothing() and apart.clips > 1
        kept = (may_be_equal and same) or (bool(alive) and apart.is_better(GAIN))
        why = (
            "no difference, and simpler" if kept and same else "better" if kept else "worse" if not alive else "no gain"
        )
        self.steps.append(Step(stage, what, apart, kept, why))
        return kept

    def _measure(self, stage: str) -> Callable[[Sequence[tuple[Assignment, Unit]]], bool]:
        def measure(tasks: Sequence[tuple[Assignment, Unit]]) -> bool:
            complete = self.losses.measure(tasks, SHARES[stage])
            note = f"Time ran out in the stage '{stage}', after {SHARES[stage]:.0%} of the budget."
            if not complete and note not in self.notes:
                self.notes.append(note)
            return complete

        return measure

    def _apart(self, first: Assignment, second: Assignment) -> Paired:
        return paired(self.losses.scores(first), self.losses.scores(second))

    def _units_of(self, assignment: Assignment) -> list[Unit]:
        """The units that an assignment was measured on, in order."""
        known = self.losses.of(assignment)
        return [unit for unit in self.units if unit in known]

    def _simpler(self, first: Candidate, second: Candidate) -> bool:
        order = [*self.tried, *self.candidates]
        return order.index(first) < order.index(second)

    def _require_budget(self, arms: Sequence[Assignment]) -> None:
        """Time a unit of each length, and require that all candidates can be measured on a few clips.

        Raises:
            ProbeError: if they cannot.
        """
        first = {unit.frames: unit for unit in reversed(self.units)}
        longest = max(first)
        each = [first[frames] for frames in sorted(first, reverse=True)]
        # The first measurement of a length also records a call, so the second counts as well.
        known = [self.losses.measure([(arm, unit)], SHARES["uniform"]) for arm in arms[:2] for unit in each]
        few = self.units[: min(self.rules.least, len({unit.clip for unit in self.units}))]
        missing = self.losses.missing([(arm, unit) for arm in arms for unit in few])
        # Where not all lengths were timed, the longest stands for all.
        seconds = self.losses.seconds(missing if all(known) else len(missing) * [first[longest]])
        allowed = self.clock.left(SHARES["uniform"])
        if missing and not all(known) and not seconds:
            raise ProbeError(
                f"expected a budget for {len(arms)} candidates on {len(few)} clips, found {self.clock.budget / 60:g} "
                f"minutes, of which {SHARES['uniform']:.0%} were spent before the first loss ({self.clock.spent():.2g} "
                "s for samples and calls of the model): give more minutes"
            )
        if missing and (not all(known) or seconds > allowed):
            needed = (self.clock.spent() + seconds) / SHARES["uniform"] / 60
            raise ProbeError(
                f"expected a budget that measures {len(arms)} candidates on {len(few)} clips in its first "
                f"{SHARES['uniform']:.0%}, found {self.clock.budget / 60:g} minutes: one loss at {longest} "
                f"latent frames takes {self.losses.seconds([first[longest]]):.2g} s. Give "
                f"minutes={math.ceil(1.2 * needed * 10) / 10:g} "
                "or more, fewer candidates, fewer times, or more processes"
            )
