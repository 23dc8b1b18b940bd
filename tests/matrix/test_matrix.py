"""The cells of the matrix. A few of each subject run always, the rest with ``pytest -m slow``."""

import re

import pytest

from .cell import EXACT, Fails
from .jobs import SUBJECTS, Job, jobs, optional
from .page import PAGE

EVERY = list(jobs())
REQUIRED = re.findall(r"^([\w-]+)==", (PAGE.parents[1] / "tests/matrix/requirements.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "job", [pytest.param(job, id=job.name, marks=() if job.is_quick else pytest.mark.slow) for job in EVERY]
)
def test_cell(job: Job) -> None:
    if missing := job.missing():
        pytest.skip(f"not installed: {', '.join(missing)}; pip install --no-deps -r tests/matrix/requirements.txt")
    outcome = job.run()
    assert not outcome.problem, outcome.problem


def test_every_subject_has_quick_cells() -> None:
    assert {job.subject for job in EVERY if job.is_quick and not job.cell.needs} == set(SUBJECTS)


def test_no_two_cells_have_one_name() -> None:
    names = [job.name for job in EVERY]
    assert sorted(set(names)) == sorted(names)


def test_optional_packages_are_those_of_the_requirements() -> None:
    assert {name for job in EVERY for name in job.cell.needs} - {"cache-dit"} <= set(optional())


def test_the_page_has_every_cell_and_no_other() -> None:
    """With the outcome that the cell must have. `python -m tests.matrix` writes it."""
    lines = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) \| (\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    on_page = {
        (cell, family, order, kind)
        for cell, families, orders, kind in lines
        for family in families.split(", ")
        for order in (orders or "").split(", ")
        if cell != "cell"
    }
    expected = set()
    for job in EVERY:
        wanted = job.cell.expected(job.family)
        kind = "exact" if wanted == EXACT else "fails" if isinstance(wanted, Fails) else "refused"
        expected.add((job.cell.name.replace("|", "/"), job.family, job.order, kind))
    assert on_page == expected
