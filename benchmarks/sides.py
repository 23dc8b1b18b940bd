"""Sides of a comparison: processes of other checkouts of freeloc, or of other libraries, that work when they are asked.

Each side runs a script with ``--work`` and an import path of its own. Questions and answers are lines of JSON. Only the
side that is asked works, so sides alternate without disturbing each other.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prepare import link_packages


class Side:
    """The process of one side.

    Args:
        script: file to run with ``--work``; it calls `serve`.
        paths: folders of its import path; the first is its working directory.
    """

    def __init__(self, script: str | Path, paths: Sequence[Path]) -> None:
        path = os.pathsep.join(map(str, paths))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(script).resolve()), "--work"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=paths[0]
        )

    def ask(self, **question: Any) -> Any:
        """Its answer to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("expected an answer from a side's process, found that it has ended: see above why")
        return json.loads(answer)

    def end(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@contextmanager
def checkout_side(script: str | Path, checkout: Path) -> Iterator[Side]:
    """A side with the freeloc of a checkout, which need not be installed."""
    with TemporaryDirectory() as folder:
        site = Path(folder)
        link_packages(checkout.resolve(), site)
        side = Side(script, [site])
        try:
            yield side
        finally:
            side.end()


def serve(answer: Callable[..., Any]) -> None:
    """Answer questions until there are no more; what the work prints goes to the standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


def require_freeloc_here() -> None:
    """End unless this side's freeloc is the one of its working directory."""
    import freeloc

    if Path.cwd() not in Path(freeloc.__file__).parents:
        raise SystemExit(f"expected freeloc in {Path.cwd()}, found {freeloc.__file__}")
