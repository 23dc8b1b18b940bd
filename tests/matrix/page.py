"""The page docs/matrix.md, written from what was found."""

import re
from collections.abc import Mapping
from itertools import groupby

from .cell import EXACT, Cell
from .jobs import ROOT, SUBJECTS, Job, Outcome, jobs, subject_module, versions

PAGE = ROOT / "docs" / "matrix.md"
START, END = "<!-- written by python -m tests.matrix -->\n", "<!-- end of what python -m tests.matrix wrote -->\n"
MOST = 150
"""Characters of a message on the page."""


def rows(found: Mapping[str, Outcome]) -> list[str]:
    """The lines of the tables, subject by subject.

    Raises:
        SystemExit: if a cell has no result, or another one than it must have.
    """
    every = list(jobs())
    if missing := [job.name for job in every if job.name not in found]:
        raise SystemExit(
            f"{len(missing)} of {len(every)} cells have not run, so there is no page: " + "; ".join(missing)
        )
    if wrong := [job.name for job in every if found[job.name].problem]:
        raise SystemExit(f"{len(wrong)} cells are not as they must be, so there is no page: " + "; ".join(wrong))
    lines = [", ".join(f"{name} {number}" for name, number in versions().items()) + ".\n"]
    for subject in SUBJECTS:
        title = (subject_module(subject).__doc__ or "").splitlines()[0].removesuffix(".")
        lines += [f"\n## {title}\n\n", "| cell | models | order | outcome |\n|---|---|---|---|\n"]
        for _, group in groupby(jobs((subject,)), key=lambda job: id(job.cell)):
            lines += cell_rows(list(group), found)
    return lines


def cell_rows(every: list[Job], found: Mapping[str, Outcome]) -> list[str]:
    """The lines of one cell: one for all models and orders with the same kind of outcome and message."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in every:
        outcome = found[job.name]
        told = shown(outcome.message, job.cell, outcome.outcome)
        groups.setdefault((outcome.outcome, told), []).append(job)
    return [row(told, group, found) for (_, told), group in groups.items()]


def row(told: str, group: list[Job], found: Mapping[str, Outcome]) -> str:
    """One line of the table."""
    families = ", ".join(dict.fromkeys(job.family for job in group))
    orders = ", ".join(filter(None, dict.fromkeys(job.order for job in group)))
    kind = found[group[0].name].outcome
    if kind == EXACT:
        largest = max(found[job.name].difference for job in group)
        gap = min(found[job.name].gap for job in group)
        kind = f"exact: {largest:.1e} of {gap:.1e}"
    text = f"{kind}. {told}" if told else kind
    return f"| {group[0].cell.name.replace('|', '/')} | {families} | {orders} | {text} |\n"


def shown(message: str, cell: Cell, kind: str) -> str:
    """A message as it stands in the table: on one line, without what differs from run to run."""
    line = " ".join(message.split())
    line = re.sub(r"0x[0-9a-f]+|/\S+/", "...", line).replace("|", "/").replace("<", "&lt;").replace("`", "'")
    return line if len(line) <= MOST else line[:MOST].rsplit(" ", 1)[0] + " ..."


def count(found: Mapping[str, Outcome]) -> str:
    """How many cells have which outcome, in words."""
    kinds = [found[job.name].outcome for job in jobs()]
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return f"{len(kinds)} cells: {', '.join(parts)}.\n\n"


def write(found: Mapping[str, Outcome]) -> None:
    """Write the tables into the page."""
    lines = rows(found)
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    PAGE.write_text(before + START + count(found) + "".join(lines) + END + after, encoding="utf-8")
