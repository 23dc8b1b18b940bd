"""musubi-tuner's own Wan 2.1 and 2.2, with its attention mode "torch", on the CPU.

The source is at FREELOC_MUSUBI, see tests/runtimes/musubi.sh.
"""

import os
import sys
from unittest import mock

import pytest
import torch
from absent import stand_in
from musubi_cases import Cases

from freeloc.testing import noise, random_model

FOLDER = os.environ.get("FREELOC_MUSUBI", "")
pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]
if not FOLDER:
    pytest.skip(
        "FREELOC_MUSUBI is not set to a folder with the source of kohya-ss/musubi-tuner: see tests/runtimes/musubi.sh",
        allow_module_level=True,
    )
sys.path.insert(0, os.path.join(FOLDER, "src"))
stand_in("torchvision", "cv2", "easydict", "sentencepiece", "bitsandbytes", "toml", "voluptuous")
with mock.patch("torch.cuda.current_device", return_value=0):  # the default of an argument of its text encoder
    from musubi_tuner.wan.modules.model import WanModel

SIZES = {"dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16, "text_len": 4, "num_heads": 2, "num_layers": 4}


class TestWan21(Cases):
    version = "2.1"

    @classmethod
    def make(cls):
        def build():
            return WanModel(model_version=cls.version, in_dim=4, out_dim=4, attn_mode="torch", **SIZES)

        return random_model(build)

    @staticmethod
    def inputs(frames, height, width, batch):
        return {
            "x": [noise(4, frames, 2 * height, 2 * width) + sample for sample in range(batch)],
            "t": torch.full((batch,), 500.0),
            "context": [noise(3, 16)] * batch,
            "seq_len": frames * height * width,
        }


class TestWan22(TestWan21):
    version = "2.2"
