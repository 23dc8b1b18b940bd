"""The model of ComfyUI-WanVideoWrapper (March 2025), imported by the path of its folder, as ComfyUI does.

The source is at FREELOC_WANVIDEOWRAPPER, see tests/runtimes/wan_video_wrapper.sh. Its nodes are not imported; of
ComfyUI it needs the names of devices. Its kernel is PyTorch's own, in float32 for these tests.
"""

import importlib
import os
import sys
import types

import pytest
import torch
from wrapper_cases import Cases, in_float32

from freeloc.testing import noise, random_model

FOLDER = os.environ.get("FREELOC_WANVIDEOWRAPPER", "")
pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]
if not FOLDER:
    pytest.skip(
        "FREELOC_WANVIDEOWRAPPER is not set to a folder with the source of kijai/ComfyUI-WanVideoWrapper: see "
        "tests/runtimes/wan_video_wrapper.sh",
        allow_module_level=True,
    )
FILE = f"{FOLDER}.wanvideo.modules.model"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    management = types.ModuleType("comfy.model_management")
    management.get_torch_device, management.get_autocast_device = lambda: CPU, lambda device: "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
        patch.setitem(sys.modules, "comfy.model_management", management)
        sys.modules["comfy"].model_management = management
        for part in ("", ".wanvideo", ".wanvideo.modules", ".enhance_a_video"):
            package = types.ModuleType(FOLDER + part)
            package.__path__ = [FOLDER + part.replace(".", "/")]
            patch.setitem(sys.modules, FOLDER + part, package)
        file = importlib.import_module(FILE)
        # In bfloat16, its output would need the autocast of the nodes.
        patch.setattr(file, "attention", in_float32(file.attention))
        yield


class TestReal(Cases):
    file = FILE

    @staticmethod
    def make():
        sizes = {"dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16, "text_len": 4, "num_heads": 2}
        devices = {"main_device": CPU, "offload_device": CPU}
        file = sys.modules[FILE]
        return random_model(lambda: file.WanModel(num_layers=4, in_dim=4, out_dim=4, **sizes, **devices))

    @staticmethod
    def inputs(frames, height, width, batch):
        tables = sys.modules[FILE].rope_params
        return {
            "x": [noise(4, frames, 2 * height, 2 * width) + sample for sample in range(batch)],
            "t": torch.full((batch,), 500.0),
            "context": [noise(3, 16)] * batch,
            "seq_len": frames * height * width,
            "freqs": torch.cat([tables(1024, 8)] * 3, dim=1),
            "device": CPU,
        }
