"""Losses of assignments on units: measured once, with the same noise for all, and saved as soon as they are done."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from freeloc.profile.schema import Profile
from freeloc.tuning.candidates import Assignment, key_of
from freeloc.tuning.racing import Scores, Unit
from freeloc.tuning.runner import Runner
from freeloc.tuning.work import Work


class Loss(NamedTuple):
    """The denoising loss of one unit.

    Attributes:
        whole: mean squared error over the whole video.
        places: the same over moving and detailed places; NaN if they are not told apart.
    """

    whole: float
    places: float


class Losses:
    """The losses that are known, and the way to more.

    Args:
        runner: measures them.
        work: saves and shares them.
        weight: share of `Loss.places` in a score; the rest is `Loss.whole`.
        after: called after each measurement.
    """

    def __init__(self, runner: Runner, work: Work, weight: float, after: Callable[[], None] = lambda: None) -> None:
        self.weight = weight
        self._runner = runner
        self._work = work
        self._after = after
        self._known: dict[str, dict[Unit, Loss]] = {}

    @property
    def profile(self) -> Profile:
        """The profile whose settings candidates leave as they are."""
        return self._runner.profile

    @property
    def count(self) -> int:
        """Number of known losses."""
        return sum(map(len, self._known.values()))

    def measure(self, wanted: Sequence[tuple[Assignment, Unit]], share: float) -> bool:
        """Measure what is missing, until this share of the budget is spent; return whether all is known."""
        tasks = {}
        for assignment, unit in wanted:
            if unit not in self.of(assignment):
                task = self._runner.loss_task(assignment, unit)
                tasks[task.name] = (task, key_of(self.profile, assignment), unit)
        complete = self._work.do([task for task, _, _ in tasks.values()], share, self._after)
        for name, (_, key, unit) in tasks.items():
            if self._work.has(name):
                cell = self._work.cell(name)
                self._known[key][unit] = Loss(float(cell["whole"]), float(cell["places"]))
        return complete

    def missing(self, wanted: Sequence[tuple[Assignment, Unit]]) -> list[Unit]:
        """The units of these that are still to be measured: neither known nor saved by a run before."""
        return [
            unit
            for assignment, unit in wanted
            if unit not in self.of(assignment) and not self._work.has(self._runner.loss_task(assignment, unit).name)
        ]

    def seconds(self, units: Sequence[Unit]) -> float:
        """How long these would take: the measured times, shared by all processes."""
        return sum(self._work.clock.typical(f"loss {unit.frames}") for unit in units) / self._work.processes

    def of(self, assignment: Assignment) -> dict[Unit, Loss]:
        """The known losses of an assignment."""
        return self._known.setdefault(key_of(self.profile, assignment), {})

    def scores(self, assignment: Assignment) -> Scores:
        """What assignments are compared by: the weighted mean of both losses."""
        return {unit: self._score(loss) for unit, loss in self.of(assignment).items()}

    def _score(self, loss: Loss) -> float:
        return (1 - self.weight) * loss.whole + self.weight * loss.places if self.weight else loss.whole
