"""Is the patched forward of one checkout slower than that of another? Both run side by side, alternating.

    python benchmarks/cpu_forward.py OLD NEW

Each checkout runs in its own process on one thread, and has the models of `models.py`: unpatched, patched with a
profile, or with one method on every layer. All forwards of a size alternate with the unpatched forward of NEW, so other
load on the machine affects all equally. Processor time is measured.
"""

import argparse
import copy
import functools
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from models import MODELS
from sides import Side, checkout_side, require_freeloc_here, serve
from timing import Timing, compare, milliseconds, rounds_within

import freeloc

METHODS = ("profile", "tsa", "vrpr")
"""What the layers get: the profile's choice, or a method."""


class Worker:
    """What the side of a checkout does: it makes models ready, then times one forward at a time."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}

    def ready(self, model: str, frames: int, quick: bool, methods: list[str]) -> None:
        """Make a model with each of these patches, and unpatched."""
        subject = MODELS[model](quick)
        own = subject.model()
        shared = {id(tensor): tensor for tensor in [*own.parameters(), *own.buffers()]}
        self._inputs, self._models = subject.inputs(frames), {"unpatched": own}
        for method in methods:
            self._models[method] = copy.deepcopy(own, dict(shared))
            freeloc.patch(self._models[method], subject.profile, method=None if method == "profile" else method)

    def milliseconds(self, method: str) -> float:
        """Time of one forward."""
        with torch.no_grad():
            return milliseconds(lambda: self._models[method](**self._inputs), "cpu")


def work() -> None:
    """Answer the questions of `Side.ask`: ``do`` names a method of `Worker`."""
    require_freeloc_here()
    torch.set_num_threads(1)
    worker = Worker()
    serve(lambda do, **given: getattr(worker, do)(**given))


def rows_of(model: str, frames: int, sides: dict[str, Side], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each side and method, beside the unpatched forward of the new one."""
    for side in sides.values():
        side.ask(do="ready", model=model, frames=frames, quick=given.quick, methods=given.methods)
    runs = {
        f"{name} {method}": functools.partial(side.ask, do="milliseconds", method=method)
        for method in given.methods
        for name, side in sides.items()
    }
    base = functools.partial(sides["new"].ask, do="milliseconds", method="unpatched")
    one = 1e-3 * (sum(run() for run in runs.values()) + base() * len(given.methods))
    found = compare(base, runs, rounds_within(given.repeats, given.limit, one), apart=len(sides))
    subject = MODELS[model](given.quick)
    size = {"model": subject.name, "frames": frames, "tokens_per_frame": subject.tokens_per_frame}
    rows = [size | {"side": "new", "method": "unpatched"} | found.pop("")._asdict()]
    for name, timing in found.items():
        side_name, method = name.split(" ")
        rows.append(size | {"side": side_name, "method": method} | timing._asdict() | _beside_old(found, method))
    return rows


def _beside_old(found: dict[str, Timing], method: str) -> dict[str, float]:
    """How many times faster the new side is than the old one."""
    if f"old {method}" not in found:
        return {}
    return {"old_over_new": found[f"old {method}"].ratio / found[f"new {method}"].ratio}


def main() -> None:
    """Compare two checkouts in all models and lengths."""
    parser = argparse.ArgumentParser(description="Compare the patched forwards of two checkouts, on one CPU thread.")
    parser.add_argument("old", type=Path, help="a checkout of freeloc")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--models", nargs="+", default=["small", "tiny-wan"], choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["profile"], help=f"of {', '.join(METHODS)} (profile)")
    parser.add_argument("--repeats", type=int, default=15, help="forwards of each (default: 15)")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one size (default: 900)")
    parser.add_argument("--beyond", action="store_true", help="only the lengths beyond the trained one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("runs/cpu"), help="folder of the results")
    given = parser.parse_args()
    from common import say, write

    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        sides = {name: stack.enter_context(checkout_side(__file__, getattr(given, name))) for name in ("old", "new")}
        for model in given.models:
            subject = MODELS[model](given.quick)
            for frames in [n for n in subject.lengths if n > subject.trained or not given.beyond]:
                rows += (found := rows_of(model, frames, sides, given))
                for row in found:
                    say("  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
                for method in given.methods:
                    ratio = next(row["old_over_new"] for row in found if row["method"] == method)
                    say(f"{subject.name}, {frames} latent frames, {method}: new / old {1 / ratio:.4f}")
                write(given.out, "forward", rows, "cpu")


if __name__ == "__main__":
    import sys

    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main()
