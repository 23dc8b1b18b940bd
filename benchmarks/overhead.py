"""Where does the time of a patched forward go: attention, freeloc around it, the rest of the model? On the CPU.

    python benchmarks/overhead.py

The time around attention is small beside attention, so it is measured without it: on both sides self-attention returns
its values at once, and everything else runs. The four kinds of forward alternate. CPU time of the process is measured.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from common import options, say_row, write
from models import MODELS, Subject
from timing import in_rounds, rounds_within, timed
from torch import Tensor

import freeloc
from freeloc.attention import Backend

NO_ATTENTION = Backend("values", lambda query, key, value, *rest: value, priority=None)
"""Returns the values: what is left of a patched forward is what freeloc and the model do around attention."""


@contextmanager
def no_self_attention() -> Iterator[None]:
    """Let self-attention of an unpatched model return its values; cross-attention runs."""
    real = F.scaled_dot_product_attention

    def values(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        return value if query.shape == key.shape else real(query, key, value, *rest, **named)

    F.scaled_dot_product_attention = values
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


def sides(subject: Subject, inputs: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Forwards by name. Each side has a model of its own, so that nothing is patched or unpatched between them."""
    plain, patched, hollow = (subject.model() for _ in range(3))
    freeloc.patch(patched, subject.profile)
    freeloc.patch(hollow, subject.profile, backend=NO_ATTENTION)

    def without() -> object:
        with no_self_attention():
            return plain(**inputs)

    return {
        "unpatched": lambda: plain(**inputs),
        "patched": lambda: patched(**inputs),
        "unpatched, no attention": without,
        "patched, no attention": lambda: hollow(**inputs),
    }


def row_of(subject: Subject, frames: int, repeats: int, limit: float) -> dict[str, Any]:
    """Medians of one size, in milliseconds and as shares of the patched forward; fewer repeats where they take long."""
    beyond = frames > subject.trained
    runs = sides(subject, subject.inputs(frames))
    if not beyond:  # the model's own attention runs on both sides
        runs = {name: runs[name] for name in ("unpatched", "patched")}
    with torch.no_grad():
        one = 1e-3 * sum(timed(run)() for run in runs.values())
        times = in_rounds({name: timed(run) for name, run in runs.items()}, rounds_within(repeats, limit, one))
    middle = {name: statistics.median(own) for name, own in times.items()}
    low, high = ("unpatched, no attention", "patched, no attention") if beyond else ("unpatched", "patched")
    around = sorted(b - a for a, b in zip(times[low], times[high], strict=True))
    quarter = len(around) // 4
    found = {"model": subject.name, "frames": frames, "tokens_per_frame": subject.tokens_per_frame}
    found |= {"repeats": len(around), "unpatched_ms": middle["unpatched"], "ms": middle["patched"]}
    found |= {"ratio": middle["patched"] / middle["unpatched"], "around_ms": statistics.median(around)}
    if beyond:
        found["attention_ms"] = middle["patched"] - middle[high]
        found["own_attention_ms"] = middle["unpatched"] - middle[low]
        found["rest_ms"] = middle[low]
    shares = {"around_share": found["around_ms"], "low": around[quarter], "high": around[-1 - quarter]}
    return found | {name: ms / found["ms"] for name, ms in shares.items()}


def main() -> None:
    """Print and write a row for each model and length."""
    parser = options("Where the time of a patched forward goes, on one thread.", budget=600, device="cpu")
    parser.add_argument("--repeats", type=int, default=41, help="forwards of each kind (default: 41)")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one size (default: 300)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.models:
        subject = MODELS[name](given.quick)
        for frames in subject.lengths:
            rows.append(row_of(subject, frames, 1 if given.quick else given.repeats, given.limit))
            say_row(rows[-1])
            write(given.out, "overhead", rows, given.device)


if __name__ == "__main__":
    main()
