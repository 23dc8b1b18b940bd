"""Whether the file that `freeloc inspect` writes for a model meets every requirement unedited."""

import importlib.util
import sys
from pathlib import Path

from freeloc.adapter import Adapter, Example
from freeloc.inspection import inspect
from freeloc.inspection.adapter_file import adapter_file
from freeloc.testing import run_checks

TOKENS = 8, 2, 3, 2
"""Latent frames, rows, columns and batch: those of the command."""


def written(example: Example, folder: Path) -> tuple[Adapter, str]:
    """The adapter in the file that is written, and the text of that file."""
    text = adapter_file(inspect(example.model(), example.inputs(*TOKENS), run=example.run))
    path = folder / f"written_{len(sys.modules)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ADAPTER, text


def problems(example: Example, adapter: Adapter) -> list[str]:
    """What an adapter does not meet."""
    return [f"{result.check}: {result.problem}" for result in run_checks(example, adapter) if result.problem]
