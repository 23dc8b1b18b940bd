"""Breaks freeloc in many small ways, one at a time, and says which of the fast tests notice it.

    python tests/mutation/mutation_check.py              # all of them; a stopped run goes on
    python tests/mutation/mutation_check.py --only vrpr  # those with this in their path or description
    python tests/mutation/mutation_check.py --whole      # what the listed tests miss runs the whole fast suite

It works in a copy of the repository in a temporary folder. Run it in the root of a clone, in the environment in which
the tests run.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from attention_mutations import ATTENTION
from hook_mutations import HOOKS
from mutation import Mutation, read
from plan_mutations import PLANS
from profile_mutations import PROFILES

MUTATIONS = [*PLANS, *ATTENTION, *HOOKS, *PROFILES]
LEAST_CAUGHT = 0.95
"""Smallest share of the mutations that must be noticed."""

IMPORTED_AS = {"freeloc_adapters": "adapters", "freeloc_profiles": "profiles"}
"""Folders that are installed under another name."""

PRELOADED = ("torch", "diffusers.models.transformers.transformer_wan", "transformers", "pytest", "hypothesis")
"""Imported once, in the process from which those that run tests are forked. What freeloc itself is, is not."""

PROCESSES = multiprocessing.get_context("forkserver")

PYTEST = (
    *("-x", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of plugins that are preloaded
)
PASSED, FAILED = 0, 1
"""Exit status of pytest."""

SURVIVED = "SURVIVED"


class Copy:
    """A copy of the files of a repository, in which one line at a time is broken.

    Args:
        root: the repository, a git clone.
        folder: an empty folder.
        timeout: seconds after which tests are stopped. A mutation that makes them hang is noticed.
    """

    def __init__(self, root: Path, folder: Path, timeout: float) -> None:
        self.root, self.timeout = folder / "copy", timeout
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        )  # fmt: skip
        self._digests: dict[str, str] = {}
        for name in sorted(filter(None, listed.stdout.split("\0"))):
            if (root / name).is_file():
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = (root / name).read_bytes()
                target.write_bytes(content)
                self._digests[name] = hashlib.sha256(content).hexdigest()
        self._names, self._printed = folder / "names", folder / "printed.txt"
        self._names.mkdir()
        self._time = time.time()
        for name, of in IMPORTED_AS.items():
            if (self.root / of).is_dir():
                (self._names / name).symlink_to(self.root / of, target_is_directory=True)

    def state_of(self, mutation: Mutation) -> str:
        """Digest of a mutation with all code that it may concern. What is known about another state does not count."""
        tests = {test.partition("::")[0] for test in mutation.paths_of_tests}
        code = [
            (name, digest)
            for name, digest in self._digests.items()
            if name in tests or not ((name.startswith("tests/") and "/test_" in name) or name.endswith(".md"))
            if not name.startswith("tests/mutation/")
        ]
        return hashlib.sha256(repr((code, mutation)).encode()).hexdigest()

    def run(self, tests: Sequence[str], timeout: float | None) -> tuple[int | None, str]:
        """Run tests until one fails. Returns pytest's exit status, None if they were stopped, and what it printed."""
        process = PROCESSES.Process(target=_run_pytest, args=(self.root, self._names, self._printed, tests))
        process.start()
        group = process.pid
        assert group is not None  # it was started
        try:
            process.join(timeout)
            status = process.exitcode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)  # and all processes that the tests have started
        process.join()
        return status, self._printed.read_text(encoding="utf-8", errors="replace")

    def caught_by(self, mutation: Mutation, whole: bool = False) -> str:
        """The first test that fails with a mutation; `SURVIVED` if none does.

        Raises:
            ValueError: if the mutation does not apply, or the tests cannot be run with it.
        """
        path, before = self.root / mutation.path, read(self.root, mutation)
        own = path.stat().st_mtime
        path.write_text(mutation.applied_to(before), encoding="utf-8")
        # Python compiles a file anew if its size or its time in whole seconds is another. Both may be the same here.
        self._time -= 10
        os.utime(path, (self._time, self._time))
        try:
            for tests in [mutation.paths_of_tests, *([[]] if whole else [])]:
                status, printed = self.run(tests, self.timeout)
                if status != PASSED:
                    return _failed(status, printed, mutation)
        finally:
            path.write_text(before, encoding="utf-8")
            os.utime(path, (own, own))
        return SURVIVED

    def require_passing(self, tests: Sequence[str]) -> None:
        """Require that tests that failed with a mutation pass without one. Else that would say nothing.

        Raises:
            ValueError: if one fails.
        """
        status, printed = self.run(tests, None) if tests else (PASSED, "")
        if status != PASSED:
            raise ValueError(f"expected the tests to pass without a mutation, found:\n{printed[-2000:]}")


def _run_pytest(root: Path, names: Path, printed: Path, tests: Sequence[str]) -> None:
    """In a process of its own: run tests of the copy, with the packages of the copy."""
    os.setsid()
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    sys.path[:0] = [str(root), str(names)]
    sys.dont_write_bytecode = False  # what is not broken is compiled once
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "OMP_NUM_THREADS": "1"}
    for name in ("freeloc", *os.listdir(names)):
        package = importlib.import_module(name)
        if root.resolve() not in Path(str(package.__file__)).resolve().parents:
            raise RuntimeError(f"expected the tests to import the copy in {root}, found {package.__file__}")
    sys.exit(pytest.main([*PYTEST, *tests]))


def _failed(status: int | None, printed: str, mutation: Mutation) -> str:
    """The name of the test that failed, as pytest printed it."""
    if status is None:
        return "stopped, since the tests did not end in time"
    lines = [line.partition(" ")[2] for line in printed.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if status != FAILED or not lines:
        raise ValueError(
            f"expected a failing test with '{mutation.what}', found exit status {status}:\n{printed[-2000:]}"
        )
    return lines[0].partition(" - ")[0]


def check(copy: Copy, mutations: Sequence[Mutation], results: Path, whole: bool = False) -> dict[str, str]:
    """Try these mutations, those first in `results` excepted, and print a line for each. Returns what caught each."""
    known = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    states = {mutation.what: copy.state_of(mutation) for mutation in mutations}
    found = {what: known.get(state, SURVIVED) for what, state in states.items()}
    todo = [mutation for mutation in mutations if found[mutation.what] == SURVIVED]
    for number, mutation in enumerate(mutations, start=1):
        if mutation in todo:
            known[states[mutation.what]] = found[mutation.what] = copy.caught_by(mutation, whole)
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(known, indent=1), encoding="utf-8")
        print(f"{number:3} {mutation.path}: {mutation.what}: {_told(mutation, found[mutation.what])}", flush=True)
    copy.require_passing(sorted({caught for caught in found.values() if "::" in caught}))
    return found


def _told(mutation: Mutation, caught: str) -> str:
    if caught != SURVIVED:
        return f"caught by {caught}"
    return f"{SURVIVED}: {mutation.survives}" if mutation.survives else SURVIVED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check. Returns 0 if enough mutations were caught, and all others say why they are not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="mutations with this text in their path or description")
    parser.add_argument("--whole", action="store_true", help="run the whole fast suite where the listed tests pass")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which tests are stopped")
    parser.add_argument("--results", type=Path, default=Path("build/mutation.json"), help="what is known so far")
    given = parser.parse_args(arguments)
    chosen = [own for own in MUTATIONS if given.only in f"{own.path}: {own.what}"]
    PROCESSES.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Copy(Path.cwd(), Path(folder), given.timeout)
        found = check(copy, chosen, given.results, given.whole)
    survived = [own for own in chosen if found[own.what] == SURVIVED]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations caught, {len(survived)} survived")
    enough = len(chosen) - len(survived) >= LEAST_CAUGHT * len(chosen)
    return 0 if enough and all(own.survives for own in survived) else 1


if __name__ == "__main__":
    sys.exit(main())
