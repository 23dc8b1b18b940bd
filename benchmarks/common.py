"""What the benchmarks share: options, facts about the machine, results as files."""

import argparse
import csv
import functools
import importlib.util
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import freeloc
from freeloc.registry import registry

ROOT = Path(__file__).parent.parent


def options(description: str, budget: float, device: str = "cuda") -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default=device, choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("runs/device"), help="folder of the results")
    parser.add_argument("--budget", type=float, default=budget, help=f"seconds to start work in (default: {budget})")
    return parser


def has_diffusers() -> bool:
    """Whether diffusers is installed."""
    return importlib.util.find_spec("diffusers") is not None


def backend_names() -> list[str]:
    """All registered attention backends except ``reference``, which computes in float64 what the others must equal.

    Those that ``backend="auto"`` prefers come first.
    """
    found = [(-1 if backend.priority is None else backend.priority, name) for name, _, backend in _backends()]
    return [name for _, name in sorted(found, reverse=True) if name != "reference"]


def _backends() -> Sequence[tuple[str, str, Any]]:
    return registry().backends.things()


@functools.cache
def facts(device: str) -> dict[str, str]:
    """The card or processor, and the versions of what runs on it."""
    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "driver": _driver() if device == "cuda" else "none",
        "CUDA": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "diffusers": _version("diffusers"),
        "python": platform.python_version(),
        "freeloc": f"{freeloc.__version__} ({commit(ROOT)})",
    }


def commit(checkout: Path) -> str:
    """The commit of a checkout, and whether its files differ from it."""
    if shutil.which("git") is None:
        return "commit unknown"
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() or "commit unknown"


def _processor() -> str:
    """Name of the processor, and the widest instructions that it has for multiplying."""
    path, found = Path("/proc/cpuinfo"), {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags = found.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_fp16") if flag in flags]
    return " ".join([found.get("model name") or platform.machine(), *wide])


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
    """Write results so far: ``name.json``, with the facts about the machine, and the rows as ``name.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": facts(device), "rows": rows}, indent=1) + "\n")
    with (folder / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(word for row in rows for word in row)))
        table.writeheader()
        table.writerows(rows)


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def say_row(row: dict[str, Any]) -> None:
    """Print a row of results on one line."""
    say("  ".join(f"{word} {value:.5g}" if isinstance(value, float) else f"{value}" for word, value in row.items()))
