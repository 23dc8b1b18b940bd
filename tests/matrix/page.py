"""The page docs/matrix.md, written from what was found."""

import re
from collections.abc import Mapping
from itertools import groupby

from .cell import EXACT
from .jobs import OURS, ROOT, SUBJECTS, Job, Outcome, jobs, subject_module, versions

PAGE = ROOT / "docs" / "matrix.md"
START, END = "<!-- written by python -m tests.matrix -->\n", "<!-- end of what python -m tests.matrix wrote -->\n"
MOST = 150
"""Characters of a message on the page."""


def _some(names: list[str]) -> str:
    """Names in a message: no more than five."""
    return "; ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")


def rows(found: Mapping[str, Outcome]) -> list[str]:
    """The lines of the tables, subject by subject.

    Raises:
        SystemExit: if a cell has no result, or another one than it must have.
    """
    every = list(jobs())
    if missing := [job.name for job in every if job.name not in found]:
        raise SystemExit(f"{len(missing)} of {len(every)} cells have not run, so there is no page: {_some(missing)}")
    if wrong := [job.name for job in every if found[job.name].problem]:
        raise SystemExit(f"{len(wrong)} cells are not as they must be, so there is no page: {_some(wrong)}")
    lines = [", ".join(f"{name} {number}" for name, number in versions().items()) + ".\n"]
    for subject in SUBJECTS:
        lines += [f"\n## {heading(subject)}\n\n", "| cell | models | order | outcome |\n|---|---|---|---|\n"]
        for _, group in groupby(jobs((subject,)), key=lambda job: id(job.cell)):
            lines += cell_rows(list(group), found)
    return lines


def cell_rows(every: list[Job], found: Mapping[str, Outcome]) -> list[str]:
    """The lines of one cell: one for all models with the same kind of outcome and message in the same orders."""
    orders: dict[tuple[str, str, str], list[Job]] = {}
    for job in every:
        outcome = found[job.name]
        orders.setdefault((outcome.outcome, shown(outcome), job.family), []).append(job)
    lines: dict[tuple[str, str, tuple[str, ...]], list[Job]] = {}
    for (kind, told, _), group in orders.items():
        lines.setdefault((kind, told, tuple(job.order for job in group)), []).extend(group)
    return [row(told, group, found) for (_, told, _), group in lines.items()]


def row(told: str, group: list[Job], found: Mapping[str, Outcome]) -> str:
    """One line of the table."""
    families = ", ".join(dict.fromkeys(job.family for job in group))
    orders = ", ".join(filter(None, dict.fromkeys(job.order for job in group)))
    kind = found[group[0].name].outcome
    if kind == EXACT:
        largest, own = (max(getattr(found[job.name], name) for job in group) for name in ("difference", "own"))
        gap = min(found[job.name].gap for job in group)
        if gap < float("inf"):
            kind = f"exact: {largest:.1e} of {gap:.1e}" + (f", rounding alone {own:.1e}" if own else "")
    text = f"{kind}. {told}" if told else kind
    return f"| {title(group[0])} | {families} | {orders} | {text} |\n"


def title(job: Job) -> str:
    """The name of a cell as it stands in the table."""
    return escaped(job.cell.name)


def escaped(text: str) -> str:
    """Text in which nothing is a mark of Markdown, or the end of a cell."""
    for mark, shown_as in {"|": "/", "<": "&lt;", "`": "'", "*": "\\*", "_": "\\_"}.items():
        text = text.replace(mark, shown_as)
    return text


def parsed(text: str) -> dict[tuple[str, str, str, str], str]:
    """By subject, title of the cell, model and order, the outcome that a page names.

    Raises:
        ValueError: if two lines are about the same.
    """
    outcomes: dict[tuple[str, str, str, str], str] = {}
    subject = ""
    for line in text.partition(START)[2].partition(END)[0].splitlines():
        if line.startswith("## "):
            subject = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split(" |")]
        if not line.startswith("| ") or cells[0] == "cell":
            continue
        for family in cells[1].split(", "):
            for order in cells[2].split(", "):
                place = subject, cells[0], family, order
                if place in outcomes:
                    raise ValueError(f"two lines about {place}")
                outcomes[place] = re.split(r"[:.]", cells[3])[0]
    return outcomes


def shown(outcome: Outcome) -> str:
    """A message as it stands in the table: on one line, without what differs from model to model and run to run."""
    line = " ".join(outcome.message.split())
    if outcome.outcome == "refused" and (ours := OURS.search(line)):
        line = line[ours.start() :]  # inside the error of another library, or of another process
    line = re.sub(r"0x[0-9a-f]+|/\S+/", "...", line)
    line = re.sub(r"\w*blocks\.\d+\.\w+( \(\w+\))?", "the attention", line)
    line = re.sub(r"\w*Transformer3DModel", "the model", line)
    return escaped(line if len(line) <= MOST else line[:MOST].rsplit(" ", 1)[0] + " ...")


def heading(subject: str) -> str:
    """The first line of what is said about a subject."""
    return (subject_module(subject).__doc__ or "").splitlines()[0].removesuffix(".")


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
