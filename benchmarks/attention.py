"""How long does attention of one layer take, dense and under plans, and how much memory?

    python benchmarks/attention.py                                        on a GPU: 12 heads of 128 channels, bfloat16
    python benchmarks/attention.py --device cpu --old /path/to/checkout   one thread, 2 heads, beside an older freeloc

Each plan alternates with dense attention, and its ratio is to the dense calls next to it. Memory is measured in a call
that is not timed.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import backend_names, commit, options, say, say_row, write
from layer import TRAINED, Size, attend_under, write_plans
from memory import Use, use_of
from sides import Side, checkout_side
from timing import Budget, Timed, Timing, compare, rounds_within, timed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import freeloc
from freeloc import FramePlan
from freeloc.profile.planning import policy_plan

PROFILE = "wan2.1"
METHODS = ("vrpr", "tsa", "vrpr+tsa", "sliding-window")
MIX = f"{PROFILE}, mean of its layers"
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""PyTorch's own kernels on a GPU. The fourth one, math, needs memory for all pairs of tokens."""

GRIDS = {1: (1, 1), 6: (2, 3), 60: (6, 10), 240: (12, 20), 1560: (30, 52)}
"""Rows and columns of a latent frame by its number of tokens; the last is that of 480 x 832 pixels."""


class Call(NamedTuple):
    """A way to compute attention, with the columns that describe it, and functions for its time and other uses."""

    row: dict[str, Any]
    time: Timed
    use: Callable[[], Use]


def dense_calls(size: Size, tensors: Sequence[Tensor], only: str | None = None) -> list[Call]:
    """PyTorch's kernels, or one of them; on the CPU the one that it chooses."""

    def run(kernel: SDPBackend | None) -> Tensor:
        if kernel is None:
            return F.scaled_dot_product_attention(*tensors)
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(*tensors)

    kernels = KERNELS if size.device == "cuda" else {"torch": None}
    return [
        _call({"plan": "dense", "backend": n, "share": 1.0}, functools.partial(run, k), size)
        for n, k in kernels.items()
        if only in (None, n)
    ]


def _call(row: dict[str, Any], run: Callable[[], Tensor], size: Size) -> Call:
    return Call({"side": "this"} | row, timed(run, size.device), lambda: use_of(run, size.device))


def plans_at(frames: int, methods: Sequence[str]) -> dict[str, FramePlan]:
    """Plans by method, with the settings that the published profile has for so many latent frames."""
    if frames <= TRAINED:
        return {"identity": FramePlan.identity(frames)}
    profile = freeloc.load_profile(PROFILE)
    return {method: policy_plan(profile, method, frames) for method in methods}


def plan_calls(
    size: Size, plans: dict[str, FramePlan], backends: Sequence[str], tensors: Sequence[Tensor]
) -> list[Call]:
    """Each plan with each backend of this checkout."""
    calls = []
    for backend in backends:
        for name, plan in plans.items():
            row = {"plan": name, "backend": backend, "share": plan.density(size.tokens_per_frame)}
            calls.append(_call(row, functools.partial(attend_under(plan, size, backend), *tensors), size))
    return calls


def old_calls(size: Size, plans: dict[str, FramePlan], side: Side, given: argparse.Namespace) -> list[Call]:
    """Each plan in another checkout."""
    with TemporaryDirectory() as folder:
        write_plans(plans, path := Path(folder, "plans"))
        side.ask(do="ready", size=asdict(size), plans=str(path), threads=given.threads)
    calls = []
    for name, plan in plans.items():
        row = {"side": "old", "plan": name, "backend": commit(given.old), "share": plan.density(size.tokens_per_frame)}
        ask = functools.partial(side.ask, plan=name)
        calls.append(Call(row, functools.partial(ask, do="milliseconds"), lambda ask=ask: Use(*ask(do="use"))))
    return calls


@functools.cache
def usable_backends(device: str, dtype: str) -> list[str]:
    """The backends that can compute a call on this device, the preferred ones first."""
    size = Size(2 * TRAINED, 2, 3, 1, 128, dtype, device)
    calls = plan_calls(size, plans_at(size.frames, ["vrpr+tsa"]), backend_names(), size.tensors())
    reasons = {call.row["backend"]: first_call(call) for call in calls}
    for name, reason in reasons.items():
        if isinstance(reason, str):
            say(f"left out: {name}: {reason}")
    return [name for name, reason in reasons.items() if not isinstance(reason, str)]


def first_call(call: Call) -> float | str:
    """Milliseconds of a first call, which warms up, or why it does not run."""
    try:
        return call.time()
    except (
        Exception
    ) as error:  # torch's "no such kernel", out of memory, or whatever a compiler raises: it becomes a note
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def calls_of(size: Size, side: Side | None, given: argparse.Namespace, kernel: str | None) -> list[Call]:
    """All that is timed at a size. On a GPU, only the preferred backend and sparse plans get the longest videos."""
    tensors, backends = size.tensors(), usable_backends(size.device, size.dtype)
    long = size.device == "cuda" and size.frames > 4 * TRAINED
    longest = size.device == "cuda" and size.frames > 8 * TRAINED
    plans = plans_at(size.frames, [name for name in given.methods if not longest or "tsa" in name])
    calls = dense_calls(size, tensors, kernel) + plan_calls(size, plans, backends[:1] if long else backends, tensors)
    return calls + (old_calls(size, plans, side, given) if side else [])


def time_size(
    size: Size, side: Side | None, given: argparse.Namespace, kernel: str | None, seconds: float
) -> list[dict[str, Any]]:
    """All rows of one size, in about so many seconds; `kernel` is the only dense one to time."""
    calls = calls_of(size, side, given, kernel)
    firsts = [first_call(call) for call in calls]
    rows = [call.row | {"note": first} for call, first in zip(calls, firsts, strict=True) if isinstance(first, str)]
    first_ms = {number: first for number, first in enumerate(firsts) if not isinstance(first, str)}
    dense = [number for number in first_ms if calls[number].row["plan"] == "dense"]
    base = dense[0] if len(dense) == 1 else min(dense, key=lambda number: calls[number].time())
    apart = 1 if size.device == "cpu" else len(calls)
    times = {str(number): calls[number].time for number in first_ms if number != base}
    one = 1e-3 * (sum(first_ms.values()) + first_ms[base] * (len(times) / apart - 1))
    found = compare(calls[base].time, times, rounds_within(given.repeats, seconds, one), apart)
    rows += [row_of(calls[int(number or base)], timing, size) for number, timing in found.items()]
    rows += published_mix([row for row in rows if "ms" in row])
    rows.sort(key=lambda row: (row["plan"] != "dense", row["side"] == "old"))
    return [size.described() | row for row in rows]


def row_of(call: Call, timing: Timing, size: Size) -> dict[str, Any]:
    """A row with the numbers of a call."""
    over, use = timing.ratio / call.row["share"], call.use()
    peak = max(0.0, use.peak_mib - size.mib)  # beyond the output
    numbers = timing._asdict() | {"ratio_over_share": over, "peak_mib": peak, "peak_over_kv": peak / (2 * size.mib)}
    computed = {} if use.pairs is None else {"computed": use.pairs / (size.heads * size.tokens**2)}
    return call.row | numbers | computed


def published_mix(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over the layers of the published profile, from the rows of the plans that it gives them."""
    profile = freeloc.load_profile(PROFILE)
    names = [profile.policy(layer) for layer in range(profile.model.layers)]
    found = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = {row["plan"]: row for row in rows if row["backend"] == backend}
        if set(names) <= set(own):
            each = [own[name] for name in names]
            words = [word for word in ("share", "computed", "ms", "ratio") if word in each[0]]
            mean = {word: sum(row[word] for row in each) / len(each) for word in words}
            mean["ratio_over_share"] = mean["ratio"] / mean["share"]
            most = {word: max(row[word] for row in each) for word in ("peak_mib", "peak_over_kv")}
            row = {"side": each[0]["side"], "plan": MIX, "backend": backend} | mean | most
            found.append(row | {"repeats": min(row["repeats"] for row in each)})
    return found


def parsed() -> argparse.Namespace:
    """The options, with the defaults of the device."""
    parser = options("Time attention of one layer, dense and under plans.", budget=80)
    parser.add_argument(
        "--frames", type=int, nargs="+", help="latent frames (default: 81 321 41 161 on a GPU, 21 41 81 on the CPU)"
    )
    parser.add_argument(
        "--tokens", type=int, nargs="+", choices=list(GRIDS), help="tokens per frame (1560; CPU: 60 240)"
    )
    parser.add_argument("--dtypes", nargs="+", help="default: bfloat16; on the CPU float32 bfloat16")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--heads", type=int, help="heads of 128 channels (default: 12; CPU: 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each (default: 5)")
    parser.add_argument("--limit", type=float, help="seconds for one size (default: 40; on the CPU 900)")
    parser.add_argument("--name", default="attention", help="name of the results (default: attention)")
    parser.add_argument("--old", type=Path, help="an older checkout of freeloc to time beside this one")
    given, on_cpu = parser.parse_args(), parser.parse_args().device == "cpu"
    given.frames = given.frames or ([21, 41, 81] if on_cpu else [81, 321, 41, 161])
    given.tokens = given.tokens or ([60, 240] if on_cpu else [1560])
    given.dtypes = given.dtypes or (["float32", "bfloat16"] if on_cpu else ["bfloat16"])
    given.heads, given.limit = given.heads or (2 if on_cpu else 12), given.limit or (900 if on_cpu else 40)
    given.budget = 1e9 if on_cpu else given.budget  # on the CPU, --limit and the sizes say how long it takes
    if given.quick:
        given.frames, given.tokens, given.dtypes, given.heads = [TRAINED, 2 * TRAINED], [6], ["float32"], 2
    return given


def main() -> None:
    """Time each size in turn, and write what is there after each."""
    given = parsed()
    torch.set_num_threads(given.threads)
    budget, rows, last = Budget(given.budget), list[dict[str, Any]](), dict[str, dict[str, Any]]()
    with ExitStack() as stack:
        side = stack.enter_context(checkout_side(Path(__file__).parent / "layer.py", given.old)) if given.old else None
        sizes = [
            Size(frames, *GRIDS[tokens], given.heads, 128, dtype, given.device)
            for dtype in given.dtypes
            for tokens in given.tokens
            for frames in given.frames
        ]
        for size in sizes:
            fastest, seconds = last.get(size.dtype, {}), min(given.limit, budget.left)
            if seconds < expected(size, fastest, given):
                say(f"left out for want of time: {size}: it takes about {expected(size, fastest, given):.0f} s or more")
                continue
            rows += (found := time_size(size, side, given, fastest.get("backend"), seconds))
            dense = [row for row in found if row["plan"] == "dense" and "ms" in row]
            last[size.dtype] = min(dense, key=lambda row: row["ms"])
            for row in found:
                say_row(row)
            write(given.out, given.name, rows, given.device)


def expected(size: Size, known: dict[str, Any], given: argparse.Namespace) -> float:
    """Least seconds of a size, from the dense call of another: a first call, a timed one, and one for the memory."""
    if not known:
        return 0.0
    shares = [plan.density(size.tokens_per_frame) for plan in plans_at(size.frames, given.methods).values()]
    sides = 2 if given.old else 1
    calls = 3 * (1 + sides * sum(shares)) + sides * len(shares) if size.device == "cpu" else 3
    return calls * 1e-3 * float(known["ms"]) * (size.tokens / known["tokens"]) ** 2


if __name__ == "__main__":
    main()
