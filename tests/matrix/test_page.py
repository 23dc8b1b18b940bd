"""The page docs/matrix.md names every cell once, with the outcome that the cell must have."""

from pathlib import Path

import pytest

from . import jobs as module
from .cell import EXACT, Fails, Refused
from .jobs import Job, Outcome, Results, jobs
from .page import PAGE, START, cell_rows, heading, parsed, title

KINDS = {Refused: "refused", Fails: "fails without freeloc", str: EXACT}
EVERY = list(jobs())


def test_no_cell_is_empty_and_none_is_of_another_time() -> None:
    expected = {
        (heading(job.subject), title(job), job.family, job.order): KINDS[type(job.cell.expected(job.family, job.order))]
        for job in EVERY
    }
    assert parsed(PAGE.read_text(encoding="utf-8")) == expected, "run python -m tests.matrix"


def of(job: Job, **changes: object) -> tuple[str, Outcome]:
    return job.name, Outcome("exact", 1e-7, 1e-2, **changes)  # type: ignore[arg-type]


def test_lines_name_models_and_orders_that_have_the_same_outcome() -> None:
    cell = next(job.cell for job in EVERY if len(job.cell.families) == 4 and job.cell.orders)
    group = [job for job in EVERY if job.cell is cell]
    found = dict(of(job) for job in group)
    assert len(cell_rows(group, found)) == 1
    found[group[1].name] = Outcome("refused", message="LayoutError: blocks.0.attn1 (WanAttention) made no call")
    lines = cell_rows(group, found)
    page = START + "## part\n" + "".join(lines)
    places = {("part", title(job), job.family, job.order): found[job.name].outcome for job in group}
    assert parsed(page) == places
    assert "the attention made no call" in "".join(lines)


def test_two_lines_about_one_cell_are_an_error() -> None:
    with pytest.raises(ValueError, match="two lines about"):
        parsed(START + "## part\n" + "| a | wan | before | exact: 1 of 2 |\n" * 2)


def test_results_of_other_versions_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)
    job = EVERY[0]
    results.add(job, of(job)[1], 1.0)
    assert results.read(job.subject) == {job.name: of(job)[1]}
    monkeypatch.setattr(module, "versions", lambda: {"torch": "other"})
    assert results.read(job.subject) == {}
