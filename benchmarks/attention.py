"""How long does attention take, dense and under plans, at the size of one layer of Wan2.1-T2V-1.3B?"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    HEAD_DIM,
    HEADS,
    MIB,
    ROPE,
    TRAINED,
    Budget,
    backend_names,
    measure,
    options,
    say,
    say_row,
    write,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import freeloc
from freeloc import FramePlan, attend_layer
from freeloc.errors import LayoutError
from freeloc.profile.planning import policy_plan

PROFILE = "wan2.1"
DENSE = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""PyTorch's own kernels. The fourth one, math, needs memory for all pairs of tokens."""


def time_one(run: Callable[[], Tensor], device: str, repeats: int, budget: Budget) -> dict[str, Any]:
    """A row's numbers, or why there are none. Memory is counted beyond query, key, value and output."""
    try:
        found = measure(run, device, repeats, budget)
    except (LayoutError, RuntimeError) as error:  # torch's "no such kernel", and out of memory
        return {"note": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
    return {"ms": found.ms, "repeats": found.repeats, "peak_mib": found.peak_mib}


def time_dense(tensors: Sequence[Tensor], repeats: int, budget: Budget) -> list[dict[str, Any]]:
    """A row for each of PyTorch's kernels."""
    rows = []
    for name, kernel in DENSE.items():

        def run(kernel: SDPBackend = kernel) -> Tensor:
            with sdpa_kernel(kernel):
                return F.scaled_dot_product_attention(*tensors)

        numbers = time_one(run, tensors[0].device.type, repeats, budget)
        rows.append({"plan": "dense", "backend": name, "share": 1.0} | numbers)
    return rows


def time_plan(
    name: str, plan: FramePlan, backend: str, tensors: Sequence[Tensor], grid: tuple[int, int, int], *how: Any
) -> dict[str, Any]:
    """A row for a plan; `how` are repeats and budget."""
    run = functools.partial(attend_layer, plan, 0, *tensors, grid=grid, rope=ROPE, backend=backend)
    numbers = time_one(run, tensors[0].device.type, *how)
    return {"plan": name, "backend": backend, "share": plan.density(grid[1] * grid[2])} | numbers


def published_plans(frames: int) -> dict[str, FramePlan]:
    """Plans by the name of their method, with the settings that the published profile has for so many latent frames."""
    profile, methods = freeloc.load_profile(PROFILE), ("vrpr", "tsa", "vrpr+tsa", "sliding-window")
    return {method: policy_plan(profile, method, frames) for method in methods}


def published_mix(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over the layers of the published profile, from the rows of the plans that it gives them."""
    profile = freeloc.load_profile(PROFILE)
    names = [profile.policy(layer) for layer in range(profile.model.layers)]
    found = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = {row["plan"]: row for row in rows if row["backend"] == backend and "ms" in row}
        if set(names) <= set(own):
            each = [own[name] for name in names]
            means = {word: sum(row[word] for row in each) / len(each) for word in ("share", "ms")}
            most = {word: pick(row[word] for row in each) for word, pick in (("repeats", min), ("peak_mib", max))}
            found.append({"plan": f"{PROFILE}, mean of its layers", "backend": backend} | means | most)
    return found


def time_length(
    grid: tuple[int, int, int], device: str, dtype: torch.dtype, repeats: int, budget: Budget
) -> list[dict[str, Any]]:
    """All rows of one length, with their ratios to the fastest dense kernel."""
    frames, tokens = grid[0], grid[0] * grid[1] * grid[2]
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, HEADS, tokens, HEAD_DIM)
    tensors = torch.randn(shape, generator=generator, device=device, dtype=dtype).unbind()
    rows = time_dense(tensors, repeats, budget)
    corrected = [
        time_plan(name, plan, backend, tensors, grid, repeats, budget)
        for backend in backend_names()
        for name, plan in published_plans(frames).items()
        if budget.left > 0
    ]
    rows += corrected + published_mix(corrected)
    output = tensors[0].numel() * tensors[0].element_size() / MIB
    fastest = min((row["ms"] for row in rows if row["plan"] == "dense" and "ms" in row), default=None)
    for row in rows:
        row |= {"frames": frames, "tokens": tokens}
        if "ms" in row:
            row["peak_mib"] = max(0.0, row["peak_mib"] - output)
            if fastest:
                row["ratio"] = row["ms"] / fastest
                row["ratio_over_share"] = row["ratio"] / row["share"]
        say_row(row)
    return rows


def main() -> None:
    """Time each length in turn, and write what is there after each."""
    parser = options("Time attention, dense and under plans.", budget=70)
    parser.add_argument("--frames", type=int, nargs="+", default=[81, 41, 161])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    height, width = (2, 3) if given.quick else (30, 52)
    dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
    budget = Budget(given.budget)
    rows: list[dict[str, Any]] = []
    for frames in [2 * TRAINED, 4 * TRAINED] if given.quick else given.frames:
        # Four times the tokens of the longest one before, so sixteen times its seconds: not started in vain.
        if budget.left > 0:
            rows += time_length((frames, height, width), given.device, dtype, given.repeats, budget)
            write(given.out, "attention", rows, given.device)
        else:
            say(f"{frames} latent frames are left out for want of time")


if __name__ == "__main__":
    main()
