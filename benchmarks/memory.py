"""What a call uses beside time: the most memory at once, and on the CPU the pairs of tokens that it computes."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20
KERNELS = ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math")
"""What `scaled_dot_product_attention` calls on a CPU."""


class Use(NamedTuple):
    """What a call uses.

    Args:
        peak_mib: most memory that is allocated at once, in MiB beyond what was allocated before the call.
        pairs: pairs of query and key of a head that go through PyTorch's attention kernels; None on a GPU.
    """

    peak_mib: float
    pairs: int | None


def use_of(run: Callable[[], object], device: str) -> Use:
    """What a call uses. It is not to be timed at the same time.

    On a GPU memory is the count of torch's allocator. On the CPU, torch's profiler reports each allocation and release
    of torch's allocator, those inside operators too; their running sum is followed.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return Use((torch.cuda.max_memory_allocated() - before) / MIB, None)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as found:
        kept = run()
    del kept
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return Use(_peak(events) / MIB, _pairs(events))


def _peak(events: list[dict[str, Any]]) -> int:
    """Largest sum of the allocations and releases up to any moment, in bytes."""
    now = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        if event["args"]["Device Type"] == 0:
            now += event["args"]["Bytes"]
            most = max(most, now)
    return most


def _pairs(events: list[dict[str, Any]]) -> int:
    """Queries times keys, summed over the calls of the kernels and their heads."""
    total = 0
    for event in events:
        if event["name"] in KERNELS:
            (batch, heads, queries, _), (*_, keys, _) = event["args"]["Input Dims"][:2]
            total += batch * heads * queries * keys
    return total
