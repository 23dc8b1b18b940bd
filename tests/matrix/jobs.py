"""Runs of cells: a cell with one family in one order. Each is judged, and what was found is kept in a file."""

import contextlib
import functools
import importlib
import json
import re
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

from .cell import EXACT, LEAST_GAP, LEAST_GAP_OF_MOVING, Case, Cell, Exact, Fails, Refused

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "matrix"
SUBJECTS = (
    "lengths",
    "offloading",
    "weights",
    "lora",
    "compilation",
    "graph_breaks",
    "hooks",
    "backends",
    "caches",
    "pipelines",
    "training",
    "compiled_training",
    "precision",
    "copies",
    "threads",
    "processes",
)
LIBRARIES = ("freeloc", "torch", "diffusers", "accelerate", "peft", "cache-dit")
"""Packages of the development environment whose versions the page names."""
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


@dataclass(frozen=True)
class Outcome:
    """What one run of a cell has found."""

    outcome: str
    """``"exact"``, ``"refused"``, ``"fails without freeloc"`` or ``"not installed"``."""
    difference: float = 0.0
    gap: float = 0.0
    own: float = 0.0
    message: str = ""
    problem: str = ""
    """What is not as expected; empty if nothing is."""


@dataclass(frozen=True)
class Job:
    """A cell, with one family in one order."""

    subject: str
    cell: Cell
    family: str
    order: str

    @property
    def name(self) -> str:
        """A name that no other job has."""
        return ", ".join(filter(None, (self.subject, self.cell.name, self.family, self.order)))

    @property
    def is_quick(self) -> bool:
        return self.family in self.cell.quick and self.order in ("", *self.cell.orders[:1])

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.cell.needs if version(name) is None]

    def run(self) -> Outcome:
        """Run the cell as it is expected to end."""
        expected = self.cell.expected(self.family, self.order)
        if missing := self.missing():
            return Outcome("not installed", message=", ".join(missing), problem=f"not installed: {missing}")
        with restored(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return judge(self.cell, expected, Case(self.family, self.order, not isinstance(expected, Fails)))


def judge(cell: Cell, expected: Refused | Fails | str, case: Case) -> Outcome:
    """Run a cell, and compare what comes of it with what is expected."""
    kind = {Refused: "refused", Fails: "fails without freeloc"}.get(type(expected), EXACT)  # type: ignore[call-overload]
    try:
        found = cell.body(case)
    except Exception as error:
        told = messages(error)
        if not isinstance(expected, Refused | Fails):
            return Outcome(kind, problem="".join(traceback.format_exception(error, limit=-12)))
        fits = [each for each in told if re.search(expected.pattern, each, flags=re.DOTALL)]
        own = isinstance(expected, Fails) or any(re.match(r"\w+: ", each) and OURS.search(each) for each in fits)
        problem = "" if fits and own else f"expected an error with {expected.pattern!r}, found {told}"
        return Outcome(kind, message=" ".join(fits[:1]), problem=problem)
    if kind != EXACT:
        return Outcome(kind, problem=f"expected an error with {expected.pattern!r}, found none: {found}")  # type: ignore[union-attr]
    return Outcome(EXACT, found.difference, found.gap, found.own, found.note, differs(cell, case, found))


def differs(cell: Cell, case: Case, found: Exact) -> str:
    """What is wrong with a measurement; empty if nothing is."""
    allowed, least = (
        max(cell.tolerance, case.facts.tolerance, 2 * found.own),
        LEAST_GAP_OF_MOVING if found.own else LEAST_GAP,
    )
    if not found.difference <= allowed:
        return f"expected a difference of at most {allowed:.1e}, found {found.difference:.1e} of {found.gap:.1e}"
    if not found.gap >= least * found.difference:
        return f"expected a correction of {least} times the difference {found.difference:.1e}, found {found.gap:.1e}"
    return ""


def messages(error: BaseException | None) -> list[str]:
    """The texts of an error, and of those that led to it."""
    found = []
    while error is not None and len(found) < 20:
        found.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return found


OURS = re.compile(r"\b(Layout|Patch|Adapter|Profile|Registry|Probe|Freeloc)Error\b")
"""Name of an error of freeloc, which may stand inside the text of another error."""


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Put back what is global: compiled code, default dtype, default device, threads, attention backend, gradients."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    before = torch.get_default_dtype(), registry._active_backend, torch.is_grad_enabled(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_default_device(None)
        registry._active_backend = before[1]
        torch.set_grad_enabled(before[2])
        torch.set_num_threads(before[3])
        torch._dynamo.reset()


def subject_module(subject: str) -> ModuleType:
    """The file with the cells of a subject."""
    return importlib.import_module(f".{subject}", __package__)


def jobs(subjects: tuple[str, ...] = SUBJECTS) -> Iterator[Job]:
    """All runs of the cells of these subjects."""
    for subject in subjects:
        for cell in subject_module(subject).CELLS:
            for family in cell.families:
                for order in cell.orders or ("",):
                    yield Job(subject, cell, family, order)


@functools.cache
def version(package: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def optional() -> list[str]:
    """The packages of requirements.txt."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")]


def versions() -> dict[str, str]:
    """The versions of everything that the matrix is about."""
    return {name: found for name in (*LIBRARIES, *optional()) if (found := version(name)) is not None}


class Results:
    """What was found, in one file for each subject, so that an interrupted matrix goes on where it was."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder

    def read(self, subject: str) -> dict[str, Outcome]:
        """By name of the job, what was found with the versions that are installed now."""
        file = self.folder / f"{subject}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        read = [json.loads(line) for line in lines]
        now = versions()
        return {each["job"]: Outcome(**each["outcome"]) for each in read if each["versions"] == now}

    def add(self, job: Job, outcome: Outcome, seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"job": job.name, "outcome": asdict(outcome), "seconds": round(seconds, 1), "versions": versions()}
        with (self.folder / f"{job.subject}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def run_subject(subject: str, results: Results, again: bool, only: str = "") -> Iterator[tuple[Job, Outcome]]:
    """Run the cells of a subject that have no good result yet, or with `again` all; yield each as it ends."""
    known = {} if again else results.read(subject)
    for job in jobs((subject,)):
        if only and not re.search(only, job.name):
            continue
        outcome = known.get(job.name)
        if outcome is None or outcome.problem:
            start = time.perf_counter()
            outcome = job.run()
            results.add(job, outcome, time.perf_counter() - start)
        yield job, outcome
