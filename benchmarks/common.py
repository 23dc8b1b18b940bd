"""What the benchmarks share: options, facts about the machine, plans by name, timing, results as files."""

import argparse
import functools
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

import freeloc
from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.plans.baselines import sliding_window
from freeloc.plans.tsa import tsa_plan
from freeloc.plans.vrpr import vrpr_plan
from freeloc.registry import registry

TRAINED = 21
"""Latent frames of Wan2.1's training clips."""

HEADS, HEAD_DIM = 12, 128
"""Of Wan2.1-T2V-1.3B."""

ROPE = TemporalRope(channels=lambda head_dim: head_dim - 4 * (head_dim // 6))
"""Wan's: 44 of 128 channels for time."""

MIB = 2**20


def options(description: str, budget: float) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("runs/device"), help="folder of the results")
    parser.add_argument("--budget", type=float, default=budget, help=f"seconds to start work in (default: {budget})")
    return parser


class Budget:
    """Seconds that a benchmark may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or below if none are."""
        return self._end - time.monotonic()


def has_diffusers() -> bool:
    """Whether diffusers is installed."""
    return importlib.util.find_spec("diffusers") is not None


def backend_names() -> list[str]:
    """All registered attention backends except ``reference``, which computes in float64 what the others must equal."""
    return [name for name, _, _ in registry().backends.things() if name != "reference"]


def plans(frames: int, trained: int = TRAINED) -> dict[str, FramePlan]:
    """Plans by the name of their method, for a video of so many latent frames."""
    vrpr, tsa = vrpr_plan(frames, trained), tsa_plan(frames, trained)
    return {
        "VRPR": vrpr,
        "TSA": tsa,
        "VRPR+TSA": FramePlan(vrpr.positions, tsa.visibility, tsa.stripe),
        "sliding window": sliding_window(frames, trained),
    }


class Timing(NamedTuple):
    """Of repeated runs: the median, the number of runs, and the most memory that one took.

    Args:
        ms: milliseconds.
        repeats: runs that were timed.
        peak_mib: memory beyond what was allocated before the run, the output included; 0 on the CPU.
    """

    ms: float
    repeats: int
    peak_mib: float


def measure(run: Callable[[], object], device: str, repeats: int, budget: Budget) -> Timing:
    """Time runs after one warm-up; fewer of them, but at least one, where the budget ends before."""
    run()
    before = _reset_peak(device)
    found: list[float] = []
    while len(found) < repeats and (not found or budget.left > 0):
        found.append(_milliseconds(run, device))
    peak = (torch.cuda.max_memory_allocated() - before) / MIB if device == "cuda" else 0.0
    return Timing(statistics.median(found), len(found), peak)


def _reset_peak(device: str) -> int:
    """Start to look for the most memory allocated; what is allocated now, in bytes."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _milliseconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start_event.record()
    run()
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event))


@functools.cache
def facts(device: str) -> dict[str, str]:
    """The card and the versions of what runs on it."""
    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "driver": _driver() if device == "cuda" else "none",
        "CUDA": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "diffusers": _version("diffusers"),
        "python": platform.python_version(),
        "freeloc": freeloc.__version__,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.split("\n")[0].strip() or "unknown"


def write(folder: Path, name: str, rows: list[dict[str, Any]], device: str) -> None:
    """Write results so far, with the facts about the machine, as ``name.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": facts(device), "rows": rows}, indent=1) + "\n")


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def say_row(row: dict[str, Any]) -> None:
    """Print a row of results on one line."""
    say("  ".join(f"{word} {value:.5g}" if isinstance(value, float) else f"{value}" for word, value in row.items()))
