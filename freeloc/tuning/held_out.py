"""The check on other clips: does what was chosen on one half of the clips also win on the other half?"""

from collections.abc import Sequence
from dataclasses import dataclass

from freeloc.tuning.candidates import Assignment
from freeloc.tuning.losses import Losses
from freeloc.tuning.racing import Paired, Unit, paired

SHARE = 0.84
"""By which share of the budget this check ends."""

WINS = 1.0
"""The choice must be better than the best candidate on all layers by more than this many standard errors."""

HARM = 2.0
"""And its loss on whole frames must not be higher by more than this many, however much better moving places are."""


@dataclass(frozen=True)
class HeldOut:
    """One comparison on the clips that nothing was chosen on.

    Attributes:
        name: name of what is compared.
        assignment: its candidates.
        score, whole, places: comparisons with the reference: of the score, and of both losses.
    """

    name: str
    assignment: Assignment
    score: Paired
    whole: Paired
    places: Paired


def compare(
    losses: Losses, units: Sequence[Unit], settings: dict[str, Assignment], reference: str, share: float = SHARE
) -> list[HeldOut]:
    """Measure these on the units, as many as the time allows, and compare each with the reference."""
    losses.measure([(assignment, unit) for unit in units for assignment in settings.values()], share)
    every = [losses.of(assignment) for assignment in settings.values()]
    common = [unit for unit in units if all(unit in known for known in every)]
    found = []
    for name, assignment in settings.items():
        pairs = []
        for value in ("score", "whole", "places"):
            mine, its = (_values(losses, one, value) for one in (assignment, settings[reference]))
            pairs.append(paired({unit: mine[unit] for unit in common}, its))
        found.append(HeldOut(name, assignment, *pairs))
    return found


def _values(losses: Losses, assignment: Assignment, value: str) -> dict[Unit, float]:
    if value == "score":
        return dict(losses.scores(assignment))
    return {unit: getattr(loss, value) for unit, loss in losses.of(assignment).items()}


def beats(found: HeldOut) -> bool:
    """Whether a choice is better than the reference on other clips, and not worse on whole frames."""
    harms = found.whole.is_worse(HARM, least=2)
    return found.score.is_better(WINS) and not harms
