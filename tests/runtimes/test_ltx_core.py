"""LTX-2 of ltx-core, with video alone and with audio, in both layouts of RoPE, with PyTorch's attention on the CPU.

The source is at FREELOC_LTX2, see tests/runtimes/ltx_core.sh.
"""

import os
import sys
from dataclasses import replace

import dense
import pytest
import torch
from absent import stand_in
from conftest import make_profile
from families import ltx

import freeloc
from freeloc.errors import LayoutError
from freeloc.testing import Example, noise, random_model, run_checks

FOLDER = os.environ.get("FREELOC_LTX2", "")
pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]
if not FOLDER:
    pytest.skip(
        "FREELOC_LTX2 is not set to a folder with the source of Lightricks/LTX-2: see tests/runtimes/ltx_core.sh",
        allow_module_level=True,
    )
sys.path.insert(0, os.path.join(FOLDER, "packages", "ltx-core", "src"))
stand_in("torchaudio", "torchvision", "scipy")

from ltx_core.model.transformer.modality import Modality  # noqa: E402
from ltx_core.model.transformer.model import LTXModel, LTXModelType  # noqa: E402
from ltx_core.model.transformer.rope import LTXRopeType  # noqa: E402

SIZE = 2, 3
RATE = 24
HALVES, PAIRS = LTXRopeType.SPLIT, LTXRopeType.INTERLEAVED
CASES = pytest.mark.parametrize(
    ("rope", "double", "audio"),
    [(HALVES, True, False), (HALVES, False, False), (PAIRS, True, False), (HALVES, True, True)],
)
AUDIO = {"audio_num_attention_heads": 2, "audio_attention_head_dim": 12, "audio_in_channels": 4}


def make(rope, double, audio):
    kind = LTXModelType.AudioVideo if audio else LTXModelType.VideoOnly
    sizes = {"num_attention_heads": 2, "attention_head_dim": 20, "in_channels": 4, "out_channels": 4, "num_layers": 4}
    more = {**AUDIO, "audio_out_channels": 4, "audio_cross_attention_dim": 24} if audio else {}

    def build():
        options = {"rope_type": rope, "double_precision_rope": double, "cross_attention_dim": 40}
        model = LTXModel(model_type=kind, **sizes, **options, **more)
        for name, parameter in model.named_parameters():
            if "table" in name:  # it starts uninitialized
                torch.nn.init.normal_(parameter, std=0.3)
        return model

    return random_model(build)


def positions(frames, height, width):
    """Start and end of each patch, in seconds and pixels: video frame 0, then 1 to 8, 9 to 16 ..."""
    starts, ends = (((torch.arange(frames) + late) * 8.0 - 7).clamp(min=0) / RATE for late in (0, 1))
    rows, columns = (torch.stack([torch.arange(size), torch.arange(size) + 1.0], -1) * 32 for size in (height, width))
    axes = torch.stack([starts, ends], -1)[:, None, None], rows[None, :, None], columns[None, None]
    return torch.stack([axis.expand(frames, height, width, 2) for axis in axes]).flatten(1, 3)


def inputs(frames, height, width, batch, audio=False):
    tokens = frames * height * width
    video = Modality(
        latent=noise(batch, tokens, 4),
        sigma=torch.full((batch,), 0.5),
        timesteps=torch.full((batch, tokens), 0.5),
        positions=positions(frames, height, width).expand(batch, -1, -1, -1),
        context=noise(batch, 5, 40),
    )
    heard = torch.stack([torch.arange(6.0), torch.arange(6.0) + 1], -1)[None, None] / 25
    sound = Modality(
        latent=noise(batch, 6, 4),
        sigma=video.sigma,
        timesteps=torch.full((batch, 6), 0.5),
        positions=heard.expand(batch, -1, -1, -1),
        context=noise(batch, 5, 24),
    )
    return {"video": video, "audio": sound if audio else None, "perturbations": None}


def run(model, frames, audio=False, **changes):
    given = inputs(frames, *SIZE, 2, audio)
    with torch.no_grad():
        return model(**given | {"video": replace(given["video"], **changes)})[0]


@CASES
def test_conformance(rope, double, audio):
    example = Example(
        "ltx-core",
        lambda: make(rope, double, audio),
        lambda *size: inputs(*size, audio=audio),
        video="video.latent",
        axes="b (f h w) c",
    )
    results = run_checks(example)
    assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []


@CASES
@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa"])
def test_equals_the_oracle(rope, double, audio, policy, record_property):
    model, profile = make(rope, double, audio), make_profile({policy: [0, 1, 2, 3]}, adapter="ltx-2")
    profile = profile.model_copy(update={"model": profile.model.model_copy(update={"head_dim": 20})})
    assert freeloc.discovery.find_adapter(model).name == "ltx-core"
    pairs = dense.half_split(20) if rope is HALVES else dense.interleaved(20)
    dtype = torch.float64 if double else torch.float32
    facts = ltx.facts(pairs, ltx.middles, 0.5, dtype, ("pe",), RATE, RATE)
    before = run(model, 12, audio)
    with dense.oracle(model, facts, lambda layer, frames: freeloc.frame_plan(profile, layer, 12), 12, *SIZE):
        oracle = run(model, 12, audio)
    with freeloc.patch(model, profile):
        found = run(model, 12, audio)
        short = run(model, 4, audio)
    difference = (found - oracle).abs().max().item()
    record_property("difference", difference)
    assert difference <= 2e-5
    assert (found - before).abs().max() > 1e-3
    assert torch.equal(short, run(model, 4, audio))
    assert torch.equal(run(model, 12, audio), before)


def test_keyframes_are_refused():
    """Their mask goes to another kernel, and their positions are not a grid."""
    model, tokens = make(HALVES, True, False), 12 * SIZE[0] * SIZE[1]
    profile = make_profile(adapter="ltx-2")
    profile = profile.model_copy(update={"model": profile.model.model_copy(update={"head_dim": 20})})
    places = positions(12, *SIZE).expand(2, -1, -1, -1)
    added = torch.cat([places[:, :, :-6], places[:, :, :6]], dim=2)
    with freeloc.patch(model, profile):
        with pytest.raises(LayoutError, match="is not a grid of latent frames"):
            run(model, 12, positions=added)
        with pytest.raises(LayoutError, match=r"made no call of \.attention_function"):
            run(model, 12, attention_mask=torch.ones(2, tokens, tokens))
