"""ComfyUI's own video models, small and random: the conformance suite, and dense logits from un-rotated q and k."""

import pytest
from comfyui_source import comfyui

pytestmark = pytest.mark.runtimes
COMFYUI = comfyui("--use-pytorch-cross-attention")


def test_the_models_can_be_imported():
    from comfy.ldm.wan.model import WanModel

    assert WanModel.__module__ == "comfy.ldm.wan.model"
