"""The cells of the matrix: a few of each subject always, all with ``python -m tests.matrix`` or ``pytest -m hours``."""

import pytest

from .jobs import SUBJECTS, Job, jobs, optional

EVERY = list(jobs())


@pytest.mark.parametrize(
    "job", [pytest.param(job, id=job.name, marks=() if job.is_quick else pytest.mark.hours) for job in EVERY]
)
def test_cell(job: Job) -> None:
    if missing := job.missing():
        pytest.skip(f"not installed: {', '.join(missing)}; pip install --no-deps -r tests/matrix/requirements.txt")
    outcome = job.run()
    assert not outcome.problem, outcome.problem


def test_every_subject_has_quick_cells() -> None:
    without = {"processes", "compiled_training"}  # one of their cells takes longer than all that are quick
    assert {job.subject for job in EVERY if job.is_quick and not job.cell.needs} == set(SUBJECTS) - without


def test_no_two_cells_have_one_name() -> None:
    names = [job.name for job in EVERY]
    assert sorted(set(names)) == sorted(names)


def test_optional_packages_are_those_of_the_requirements() -> None:
    assert {name for job in EVERY for name in job.cell.needs} - {"cache-dit"} <= set(optional())
