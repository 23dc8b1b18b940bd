"""Makes ComfyUI importable from a checkout, on the CPU."""

import os
import sys
from pathlib import Path

import pytest
from absent import stand_in

UNUSED = ("torchvision", "torchaudio", "av", "kornia", "spandrel")
"""Imported by ComfyUI, and needed for other models or for files only."""


def comfyui(*options: str) -> Path:
    """The folder of ComfyUI, whose modules can be imported from now on. ComfyUI reads its options once in a process.

    Args:
        options: options of its command line, such as ``"--use-pytorch-cross-attention"``.
    """
    folder = Path(os.environ.get("FREELOC_COMFYUI", ""))
    if not (folder / "comfy" / "ldm").is_dir():
        pytest.skip(
            "needs ComfyUI's source: set FREELOC_COMFYUI to a checkout, or run tests/runtimes/comfyui.sh, that gets it",
            allow_module_level=True,
        )
    stand_in(*UNUSED)
    sys.path.insert(0, str(folder))
    given, sys.argv = sys.argv, ["main.py", "--cpu", *options]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv
    finally:
        sys.argv = given
    return folder
