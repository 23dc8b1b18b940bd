"""Runs a program in two processes that share a folder."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def require(package: str, plugin: str, script: str) -> None:
    """Skip a file without the source of an engine, or without the installed plugin."""
    if importlib.util.find_spec(package) is None or not any(
        point.dist is not None and point.dist.name == plugin for point in metadata.entry_points(name="freeloc")
    ):
        pytest.skip(f"needs {package} and {plugin}: run tests/runtimes/{script}", allow_module_level=True)


def outputs(program: str, case: dict, profile: Path, seconds: float = 240.0) -> list[list[torch.Tensor]]:
    """What each of two processes saved: the outputs of all calls of the case."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "FREELOC_PROFILE": str(profile),
            "LOCAL_RANK": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
            "PYTHONWARNINGS": "ignore",
            "WORLD_SIZE": "2",
        }
        command = [sys.executable, str(HERE / program), folder, json.dumps(case)]
        processes = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            said = [process.communicate(timeout=seconds)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise RuntimeError("\n".join(said))
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
