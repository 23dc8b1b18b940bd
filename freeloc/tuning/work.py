"""Work: measurements that are saved as soon as they are done, and shared by several processes through a folder.

One process leads: it searches, and posts rounds of tasks. The others follow: they measure tasks of the posted round
until the leader is done. A task is claimed by creating a file, so none is measured twice, and a process that dies
costs no more than the task it had.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from freeloc.errors import FreelocError, ProbeError
from freeloc.files import content_of
from freeloc.probing.cells import Cell, Cells, write_json
from freeloc.tuning.clock import Clock
from freeloc.untrusted import printable, problems

PAUSE = 0.02
"""Seconds between two looks at the folder."""

LARGEST_ROUND = 100_000_000
"""Largest size of the file of a round, in bytes."""

CellName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")]
"""Name of a task in a round, which becomes a path inside the folder."""

PATIENCE = 10.0
"""Seconds, and times the typical task, after which another process's task is taken over."""


@dataclass(frozen=True)
class Task:
    """One measurement.

    Args:
        name: name of its cell: a path without ending.
        kind: tasks of a kind take about equally long.
        data: all that is needed to measure it, as JSON values.
    """

    name: str
    kind: str
    data: dict[str, Any]


class Round(BaseModel):
    """Tasks for all processes. The file may be from somebody else, until the leader of this run writes one.

    Args:
        run: the run: process and time.
        number: number of the round in it.
        tasks: name, kind and data of each task.
        until: seconds since the epoch until which the tasks may end.
        done: whether the run is over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: Annotated[str, Field(pattern="^[0-9]+-[0-9]+$")]
    number: int
    tasks: list[tuple[CellName, str, dict[str, Any]]]
    until: float
    done: bool


class Work(Cells):
    """The measurements of one tuning, by name.

    Args:
        folder: folder of the measurements; None keeps them in memory only, for one process.
        settings: everything that the measurements depend on. A folder with other settings is refused.
        measure: measures a task.
        clock: the budget.

    Raises:
        ProbeError: if the folder holds another tuning, or cannot be written, or several processes have no folder.
    """

    def __init__(
        self, folder: Path | None, settings: dict[str, Any], measure: Callable[[Task], Cell], clock: Clock
    ) -> None:
        super().__init__(folder, settings)
        self._measure = measure
        self.clock = clock
        self._run = f"{os.getpid()}-{time.time_ns()}"
        self._rounds = 0
        if self.leads and self.folder and self.processes > 1:
            shutil.rmtree(self.folder / "claims", ignore_errors=True)
            self._post([], 0.0)

    @property
    def leads(self) -> bool:
        """Whether this process searches; all others follow."""
        return self.process == 0

    def cell(self, name: str) -> Cell:
        """A cell that exists."""
        return self.get(name, _missing)

    def do(self, tasks: Sequence[Task], share: float = 1.0, after: Callable[[], None] = lambda: None) -> bool:
        """Measure what is missing, with the help of all followers.

        Args:
            tasks: the tasks, the most important first.
            share: the share of the budget that may be spent by the end. A task that is likely to end later is not
                begun.
            after: called after each task.

        Returns:
            Whether all are done.
        """
        missing = [task for task in tasks if not self.has(task.name)]
        if missing and self.processes > 1:
            self._rounds += 1
            until = time.time() + self.clock.left(share)
            self._post(missing, until)
        in_time = True
        for task in missing:
            if not self.clock.fits(task.kind, share):
                in_time = False
                break
            if not self.has(task.name) and self._claim(self._run, self._rounds, task):
                self._one(task)
            after()
        for task in missing:
            self._settle(task, in_time)
            after()
        return all(self.has(task.name) for task in missing)

    def follow(self) -> None:
        """Measure what the leader posts, until it is done or gone."""
        parent = os.getppid()
        seen: tuple[str, int] | None = None
        while os.getppid() == parent:
            posted = self._posted()
            if posted and posted.done:
                return
            if not posted or (number := (posted.run, posted.number)) == seen:
                time.sleep(PAUSE)
                continue
            for task in (Task(*listed) for listed in posted.tasks):
                late = time.time() + self.clock.typical(task.kind) > posted.until
                if late or self._posted() != posted:
                    break
                if not self.has(task.name) and self._claim(*number, task):
                    self._one(task)
            seen = number

    def finish(self) -> None:
        """Tell the followers that all is done and written."""
        if self.leads and self.processes > 1:
            self._post([], 0.0, done=True)

    def _one(self, task: Task) -> None:
        start = self.clock.now()
        self.get(task.name, lambda name: self._measure(task))
        self.clock.note(task.kind, self.clock.now() - start)

    def _settle(self, task: Task, take_over: bool) -> None:
        """Wait for a task of another process, and measure it here if that process seems to be gone."""
        patience = PATIENCE * max(1.0, self.clock.typical(task.kind))
        started = self._claimed_at(task)
        while started is not None and not self.has(task.name) and time.time() < started + patience:
            time.sleep(PAUSE)
        if not self.has(task.name) and take_over:
            self._one(task)

    def _claim(self, run: str, number: int, task: Task) -> bool:
        """Whether this process is the one that measures a task of a round."""
        if self.processes == 1:
            return True
        path = self._claim_path(run, number, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.open("x").close()
        except FileExistsError:
            return False
        return True

    def _claim_path(self, run: str, number: int, task: Task) -> Path:
        return (self.folder or Path()) / "claims" / run / f"{number}-{task.name.replace('/', '_')}"

    def _claimed_at(self, task: Task) -> float | None:
        """When another process began a task of the current round; None if none did."""
        if self.processes == 1:
            return None
        try:
            return self._claim_path(self._run, self._rounds, task).stat().st_mtime
        except FileNotFoundError:
            return None

    def _post(self, tasks: Sequence[Task], until: float, done: bool = False) -> None:
        """Post a round: its tasks, and the time of day until which they may end."""
        listed = [[task.name, task.kind, task.data] for task in tasks]
        posted = {"run": self._run, "number": self._rounds, "tasks": listed, "until": until, "done": done}
        write_json((self.folder or Path()) / "round.json", posted)

    def _posted(self) -> Round | None:
        """The last round; None if there is none.

        Raises:
            ProbeError: if the file is damaged.
        """
        path = (self.folder or Path()) / "round.json"
        where = f"cannot read {printable(str(path))}"
        try:
            return Round.model_validate_json(content_of(path, LARGEST_ROUND)) if path.exists() else None
        except ValidationError as error:
            cause = " ".join(problems(error, "round").split())
            raise ProbeError(f"{where}: expected tasks that freeloc wrote: remove it. {cause}") from None
        except FreelocError as error:
            raise ProbeError(f"{where}: {error}") from error


def _missing(name: str) -> Cell:
    raise KeyError(name)
