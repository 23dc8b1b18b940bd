"""The matrix in one command.

::

    pip install --no-deps -r tests/matrix/requirements.txt
    python -m tests.matrix                       # all cells that have no result yet, then docs/matrix.md
    python -m tests.matrix compilation --only mode --again

Each subject runs in a process of its own. Results are kept in build/matrix, so an interrupted matrix goes on.
"""

import argparse
import os
import subprocess
import sys

from .jobs import ROOT, SUBJECTS, Results, run_subject


def here(subject: str, again: bool, only: str) -> int:
    """Run one subject in this process, and print each cell. The exit status: 1 if one is not as it must be."""
    import torch

    torch.set_num_threads(1)
    wrong = 0
    for job, found in run_subject(subject, Results(), again, only):
        figures = f" {found.difference:.1e} of {found.gap:.1e}" if found.gap else ""
        told = found.problem and f"\n    PROBLEM: {found.problem}"
        print(f"{job.name}: {found.outcome}{figures} {' '.join(found.message.split())[:150]}{told}", flush=True)
        wrong += bool(found.problem)
    return min(wrong, 1)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"by default all: {', '.join(SUBJECTS)}")
    parser.add_argument("--again", action="store_true", help="also cells that have a result")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cells whose name this pattern is found in")
    parser.add_argument("--here", action="store_true", help="in this process, and without the page")
    given = parser.parse_args()
    subjects = given.subjects or list(SUBJECTS)
    if unknown := set(subjects) - set(SUBJECTS):
        parser.error(f"expected subjects among {', '.join(SUBJECTS)}, found {', '.join(sorted(unknown))}")
    if given.here:
        return max(here(subject, given.again, given.only) for subject in subjects)
    options = ["--only", given.only, *(["--again"] if given.again else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    codes = [
        subprocess.run(
            [sys.executable, "-m", "tests.matrix", "--here", subject, *options], cwd=ROOT, env=environment
        ).returncode
        for subject in subjects
    ]
    from . import page

    results = Results()
    page.write({name: found for subject in SUBJECTS for name, found in results.read(subject).items()})
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
