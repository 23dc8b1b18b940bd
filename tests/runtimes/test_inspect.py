"""`freeloc inspect` on Wan of DiffSynth-Studio and of musubi-tuner, with small random weights on the CPU.

ComfyUI's models are in test_comfyui_inspect*.py. DiffSynth-Studio: tests/runtimes/diffsynth.sh installs it. For
musubi-tuner, git clone https://github.com/kohya-ss/musubi-tuner, and set FREELOC_MUSUBI to its folder.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from absent import stand_in
from inspected import problems, written

from freeloc.testing import Example, noise, random_model

pytestmark = pytest.mark.runtimes
SIZES = {"dim": 48, "num_heads": 2, "num_layers": 3, "in_dim": 4, "out_dim": 4, "text_dim": 16, "ffn_dim": 64}


def sharpened(make):
    """A small random model whose attention is far from uniform."""

    def build():
        model = make()
        for name, parameter in model.named_parameters():
            if ".q." in name or ".k." in name:
                parameter.data.mul_(4)
        return model

    return random_model(build)


@pytest.fixture
def musubi(monkeypatch):
    source = Path(os.environ.get("FREELOC_MUSUBI", "")) / "src"
    if not (source / "musubi_tuner").is_dir():
        pytest.skip("git clone https://github.com/kohya-ss/musubi-tuner, and set FREELOC_MUSUBI to its folder")
    stand_in("av", "cv2", "easydict", "accelerate", "bitsandbytes")
    monkeypatch.syspath_prepend(source)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # a default of its text encoder, at import


def musubi_model():
    from musubi_tuner.wan.modules.model import WanModel

    return sharpened(lambda: WanModel(**SIZES, freq_dim=32, text_len=8, attn_mode="torch"))


def musubi_inputs(frames, height, width, batch):
    videos = [noise(4, frames, 2 * height, 2 * width) + sample for sample in range(batch)]
    prompts = [noise(5, 16)] * batch
    sizes = {"seq_len": frames * height * width}
    return {"x": videos, "t": torch.full((batch,), 500.0), "context": prompts, **sizes}


MUSUBI = Example("musubi-wan", musubi_model, musubi_inputs, video="x", axes="c f h w")


def test_musubi_tuner(musubi, tmp_path):
    adapter, text = written(MUSUBI, tmp_path)
    assert problems(MUSUBI, adapter) == [], text
    assert adapter.rounding > 1e-3  # it casts to bfloat16


def test_diffsynth_studio(tmp_path):
    if importlib.util.find_spec("diffsynth") is None:
        pytest.skip("pip install --no-deps diffsynth==2.1.12, or tests/runtimes/diffsynth.sh")
    import transformers  # noqa: F401  # reason: it looks for packages that are stood in for

    stand_in("torchvision", "imageio", "modelscope", "pandas", "xfuser", "av")
    import diffsynth.pipelines.wan_video  # noqa: F401  # reason: its function runs the model
    import diffsynth_cases
    from diffsynth.models.wan_video_dit import WanModel

    more = {"freq_dim": 32, "eps": 1e-6, "patch_size": (1, 2, 2), "has_image_input": False}
    example = diffsynth_cases.example(lambda: sharpened(lambda: WanModel(**SIZES, **more)))
    adapter, text = written(example, tmp_path)
    assert problems(example, adapter) == [], text
    assert adapter.run_by.function == "diffsynth.pipelines.wan_video:model_fn_wan_video"
