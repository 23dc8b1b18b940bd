"""`freeloc inspect` on ComfyUI's own video models under sub-quadratic attention: what it writes must pass unedited."""

import pytest
from comfyui_source import comfyui

pytestmark = pytest.mark.runtimes
COMFYUI = comfyui("--use-quad-cross-attention")

from comfyui_inspected import CASES, check  # noqa: E402  # reason: ComfyUI must be importable


@pytest.mark.parametrize("label", CASES)
def test_the_written_file(label, tmp_path):
    check(label, tmp_path, kernel="comfy.ldm.")
