"""The most memory that a call allocates at once, on a GPU or on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def peak_mib(run: Callable[[], object], device: str) -> float:
    """Most memory that was allocated at once during a call, in MiB beyond what was allocated before it.

    On a GPU it is the count of torch's allocator. On the CPU, torch's profiler reports each allocation and release of
    torch's allocator, those inside operators too; their running sum is followed. That slows the call down.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = run()
    del kept
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    now = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        if event["args"]["Device Type"] == 0:
            now += event["args"]["Bytes"]
            most = max(most, now)
    return most / MIB
