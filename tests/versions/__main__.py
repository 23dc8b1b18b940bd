"""Run the tests with the oldest or the newest versions that pyproject.toml allows, in an environment of their own.

    python -m tests.versions oldest
    python -m tests.versions newest tests/plans -x

The environment is made in build/versions, and kept. Further arguments are those of pytest.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL = {
    "oldest": ["-e", ".", "-r", "tests/versions/oldest.txt"],
    "newest": ["-e", ".[dev]", "-c", "constraints.txt"],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("which", choices=INSTALL)
    which, arguments = parser.parse_known_args()
    environment = ROOT / "build" / "versions" / which.which
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *INSTALL[which.which]], cwd=ROOT, check=True)
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
