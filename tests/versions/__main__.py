"""Run the tests with the oldest or the newest versions that pyproject.toml allows, in an environment of their own.

    python -m tests.versions oldest
    python -m tests.versions between  # the oldest torch whose Dynamo can trace freeloc
    python -m tests.versions newest tests/plans -x

The newest are what pip finds today, not those of constraints.txt. The environment is made in build/versions, and kept.
Further arguments are those of pytest.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL = {
    "oldest": ["-e", ".", "-r", "tests/versions/oldest.txt"],
    "between": ["-e", ".", "-r", "tests/versions/between.txt"],
    "newest": ["--upgrade", "--upgrade-strategy", "eager", "-e", ".[dev]"],
}
FOLDERS = ("plans", "attention", "layer", "profile", "faults", "interception", "adapters/test_families.py")
NEWER = (
    *("test_compile*.py", "test_gradients.py", "test_graph_breaks.py"),  # torch 2.6 cannot compile a patched model
    *("test_triton.py", "test_noise*.py", "test_parallel.py", "test_read_from_the_call.py"),
)
"""Tests of what the oldest versions do not have."""

TESTS = {
    "oldest": [
        *(f"tests/{folder}" for folder in FOLDERS),
        *(f"--ignore-glob=*/{name}" for name in NEWER),
        *("-k", "not compil and not skyreels"),  # the oracle of SkyReels-V2 is for the rotary tables of newer versions
    ],
    "between": [
        *(f"tests/interception/test_{name}.py" for name in ("compile", "compiled_reports", "read_from_the_call")),
        "tests/adapters/test_families.py",
        *("-k", "not export_is_refused"),  # it is, in PyTorch's words
    ],
    "newest": [],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("which", choices=INSTALL)
    known, arguments = parser.parse_known_args()
    environment = ROOT / "build" / "versions" / known.which
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *INSTALL[known.which]], cwd=ROOT, check=True)
    chosen = arguments or TESTS[known.which]
    return subprocess.run([python, "-m", "pytest", *chosen], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
