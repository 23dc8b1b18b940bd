"""DiffSynth-Studio's own Wan: its function, its VACE, and its pipeline, with small random weights on the CPU.

tests/runtimes/diffsynth.sh installs it. Packages for files and videos are stood in for; nothing of the model is.
"""

import importlib.util
import pkgutil
import types

import pytest
import torch
from absent import stand_in
from conftest import make_profile
from diffsynth_cases import SIZES, Cases, difference, example, expected, inputs, run, sharpened, sites
from original_wan import TOLERANCE, dense_logits

import freeloc
from freeloc.testing import run_checks

pytestmark = pytest.mark.runtimes
if importlib.util.find_spec("diffsynth") is None:
    pytest.skip("pip install --no-deps diffsynth==2.1.12, or tests/runtimes/diffsynth.sh", allow_module_level=True)

from transformers import Wav2Vec2Processor  # noqa: E402, F401  # reason: it looks for packages that are stood in for

stand_in("torchvision", "imageio", "modelscope", "pandas", "xfuser")

from diffsynth.models.wan_video_dit import WanModel  # noqa: E402
from diffsynth.models.wan_video_mot import MotWanModel  # noqa: E402
from diffsynth.models.wan_video_text_encoder import WanTextEncoder  # noqa: E402
from diffsynth.models.wan_video_vace import VaceWanModel  # noqa: E402
from diffsynth.pipelines.wan_video import TeaCache, WanVideoPipeline  # noqa: E402

DIT = SIZES | {
    "ffn_dim": 64,
    "freq_dim": 32,
    "eps": 1e-6,
    "patch_size": (1, 2, 2),
    "has_image_input": False,
}
PART = {"dim": 48, "num_heads": 2, "ffn_dim": 64}


class TestReal(Cases):
    def build(self, cls=WanModel):
        return cls(**DIT)

    @pytest.fixture
    def model(self):
        return sharpened(self.build)

    @pytest.fixture
    def vace(self):
        return sharpened(lambda: VaceWanModel(vace_layers=(0, 2), vace_in_dim=4, **PART))

    def prepare(self, model, changes):
        if "reference_latents" in changes:
            model.ref_conv = torch.nn.Conv2d(16, 48, 2, 2)
        if "vap" in changes:
            changes["vap"] = MotWanModel(mot_layers=(0,), text_dim=16, freq_dim=32, in_dim=4, **PART)
            changes |= {"vap_hidden_state": inputs(12)["latents"], "context_vap": inputs(12)["context"]}
            changes["vap_clip_feature"] = torch.zeros(1, 3, 1280)

    def test_conformance(self):
        results = run_checks(example(lambda: sharpened(self.build)))
        assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []

    def test_tea_cache(self, model):
        """The released thresholds, for 4 steps of which the third is skipped."""
        cache = TeaCache(4, 10.0, "Wan2.1-T2V-1.3B")
        cache.coefficients = [0.0, 0.0, 0.0, 1.0, 0.0]
        with freeloc.patch(model, make_profile()) as patch:
            for step in range(4):
                run(model, inputs(12) | {"tea_cache": cache, "timestep": torch.tensor([900.0 - step])})
        assert dict(patch.report().models[0].forwards) == {12: 4}
        assert "made no call in 2 of them: skipped by a cache" in str(patch.report())


class Tokenizer:
    """Of the one prompt that is used."""

    def __call__(self, prompt, return_mask, add_special_tokens):
        return torch.tensor([[len(prompt), 2, 3]]), torch.ones(1, 3, dtype=torch.long)


class Latents(torch.nn.Module):
    """In place of the VAE: the sizes that the pipeline asks for, and the latents themselves as the video."""

    upsampling_factor = 8
    model = types.SimpleNamespace(z_dim=4)

    def decode(self, latents, **options):
        return latents


@pytest.fixture
def pipe():
    pipe = WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.tokenizer, pipe.vae = Tokenizer(), Latents()
    pipe.text_encoder = sharpened(lambda: WanTextEncoder(64, 16, 16, 32, 2, 1))
    pipe.dit, pipe.dit2 = (sharpened(lambda: WanModel(**DIT)) for _ in range(2))
    return pipe


def generate(pipe, **changes):
    options = {"height": 32, "width": 48, "num_frames": 45, "num_inference_steps": 3, "seed": 0}
    return pipe("a", "bb", output_type="floatpoint", progress_bar_cmd=list, tiled=False, **(options | changes))


@pytest.mark.parametrize("changes", [{}, {"cfg_scale": 1.0}, {"sliding_window_size": 8, "sliding_window_stride": 4}])
def test_the_pipeline(pipe, changes):
    """Two transformers, one after the other, and guidance in two calls."""
    profile = make_profile()
    before = generate(pipe, **changes)
    both = sites(pipe.dit) | sites(pipe.dit2)
    still = {"diffsynth.models.wan_video_dit:rope_apply": lambda x, freqs, num_heads: x}
    with dense_logits(both, profile, (2, 3), "diffsynth.models.wan_video_dit:flash_attention", still, "num_heads"):
        oracle = generate(pipe, **changes)
    with freeloc.patch(pipe, profile) as patch:
        found = generate(pipe, **changes)
    assert difference(found, oracle) <= TOLERANCE * max(1, oracle.abs().max())
    assert difference(before, oracle) > 1e-3
    calls = sum(sum(model.forwards.values()) for model in patch.report().models)
    assert calls == 3 * (1 if "cfg_scale" in changes else 2) * (2 if "sliding_window_size" in changes else 1)
    assert torch.equal(generate(pipe, **changes), before)
    with freeloc.patch(pipe, profile):
        short = generate(pipe, num_frames=13)
    assert torch.equal(short, generate(pipe, num_frames=13))


def test_offloaded_parts(pipe):
    """With its memory management, the pipeline wraps the transformer's parts."""
    from diffsynth.configs import VRAM_MANAGEMENT_MODULE_MAPS
    from diffsynth.core import enable_vram_management

    names = VRAM_MANAGEMENT_MODULE_MAPS["diffsynth.models.wan_video_dit.WanModel"]
    wrappers = {pkgutil.resolve_name(name): pkgutil.resolve_name(wrapper) for name, wrapper in names.items()}
    profile = make_profile()
    with freeloc.patch(pipe, profile):
        expected = generate(pipe)
    config = dict.fromkeys(("offload_dtype", "onload_dtype", "preparing_dtype", "computation_dtype"), torch.float32)
    config |= dict.fromkeys(("offload_device", "onload_device", "preparing_device", "computation_device"), "cpu")
    for model in (pipe.dit, pipe.dit2):
        enable_vram_management(model, wrappers, vram_config=config)
        assert type(model.blocks[0]).__name__ == "AutoWrappedNonRecurseModule"
    with freeloc.patch(pipe, profile) as patch:
        assert torch.equal(generate(pipe), expected)
    assert patch.report().corrected_calls > 0


def test_compiled(pipe):
    """`compile_pipeline` compiles each block."""
    profile = make_profile()
    with freeloc.patch(pipe, profile):
        expected = generate(pipe)
    pipe.compile_pipeline(mode=None, fullgraph=False, compile_models=["dit", "dit2"], backend="eager")
    with freeloc.patch(pipe, profile) as patch:
        assert difference(generate(pipe), expected) <= TOLERANCE
    assert patch.report().corrected_calls > 0


def test_the_oracle_is_the_model_where_nothing_is_corrected():
    model = sharpened(lambda: WanModel(**DIT))
    given = inputs(9)
    assert difference(expected(model, make_profile({"none": [0, 1, 2, 3]}), given), run(model, given)) <= TOLERANCE
