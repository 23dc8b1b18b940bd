"""Wan 2.2's own repository: text to video, its sequence parallelism in two processes, Animate, and S2V.

The source is at FREELOC_WAN22, see tests/runtimes/wan22.sh. Its flash-attn, which needs a GPU, is replaced by PyTorch's
attention of the same arguments. Nothing else of the models is.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import wan22_source as source
from conftest import make_profile
from original_wan import TOLERANCE, dense_logits, difference

import freeloc
from freeloc.testing import Example, noise, random_model, run_checks

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]  # torch.cuda.amp on a CPU
if not source.FOLDER:
    pytest.skip(
        "FREELOC_WAN22 is not set to a folder with the source of Wan-Video/Wan2.2: see tests/runtimes/wan22.sh",
        allow_module_level=True,
    )

source.load()
ROTATION = "wan.modules.model:rope_apply"
SIZE = 2, 3


def model():
    return random_model(source.model)


def inputs(frames, height=SIZE[0], width=SIZE[1], batch=1, padding=0):
    tokens = frames * height * width + padding
    return {
        "x": [noise(4, frames, 2 * height, 2 * width) + sample for sample in range(batch)],
        "t": torch.full((batch, tokens), 500.0) if batch > 1 else torch.tensor([500.0]),
        "context": [noise(3, 16)] * batch,
        "seq_len": tokens,
    }


def animate():
    """It has one adapter of faces for five layers."""
    cls = importlib.import_module(source.ANIMATE).WanAnimateModel
    sys.modules[source.ANIMATE].flash_attention = source.flash_attention
    importlib.import_module("wan.modules.animate.face_blocks").flash_attn_func = source.flash_attention

    def build():
        made = cls(in_dim=4, out_dim=4, motion_encoder_dim=16, use_img_emb=False, **source.SIZES | {"num_layers": 5})
        made.motion_encoder.get_motion = lambda pixels: pixels.flatten(1)[:, :16]  # 512 x 512 pixels a frame, else
        for name, parameter in made.named_parameters():
            if ".q." in name or ".k." in name:
                parameter.data.mul_(4)
        return made

    return random_model(build)


def animate_inputs(frames, height=SIZE[0], width=SIZE[1], batch=1):
    given = inputs(frames, height, width, batch)
    return given | {
        "t": torch.full((batch,), 500.0),
        "clip_fea": None,
        "pose_latents": [noise(16, 1, 2 * height, 2 * width).expand(-1, frames - 1, -1, -1)] * batch,
        "face_pixel_values": noise(batch, 3, 4 * (frames - 1), 4, 4),
    }


EXAMPLES = {
    "wan-original": Example("wan-original", model, inputs, video="x", axes="c f h w"),
    "wan-original-animate": Example("wan-original-animate", animate, animate_inputs, video="x", axes="c f h w"),
}
ORACLE = {
    "wan-original": ("wan.modules.model", 0),
    "wan-original-animate": (source.ANIMATE, 1),
}


def run(model, given):
    with torch.no_grad():
        return model(**given)[0]


def profile_of(model, adapter, policy):
    layers = len(model.blocks)
    return make_profile({policy: [*range(layers)]}, adapter={"wan-original": "wan"}.get(adapter, "wan-animate"))


@pytest.mark.parametrize("adapter", EXAMPLES)
def test_conformance(adapter):
    results = run_checks(EXAMPLES[adapter])
    assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []


@pytest.mark.parametrize("adapter", EXAMPLES)
@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa"])
def test_equals_the_oracle(adapter, policy, record_property):
    model, given = EXAMPLES[adapter].model(), EXAMPLES[adapter].inputs(12, *SIZE, 1)
    assert freeloc.discovery.find_adapter(model).name == adapter
    profile = profile_of(model, adapter, policy)
    before = run(model, given)
    file, references = ORACLE[adapter]
    sites = {block.self_attn: layer for layer, block in enumerate(model.blocks)}
    still = {f"{file}:rope_apply": lambda x, *rest: x.float()}
    with dense_logits(sites, profile, SIZE, f"{file}:flash_attention", still, references=references):
        oracle = run(model, given)
    with freeloc.patch(model, profile):
        found = run(model, given)
    record_property("difference", difference(found, oracle))
    assert difference(found, oracle) <= TOLERANCE
    assert difference(before, oracle) > 1e-3
    assert torch.equal(run(model, given), before)
    given = EXAMPLES[adapter].inputs(4 + references, *SIZE, 1)
    with freeloc.patch(model, profile):
        short = run(model, given)
    assert torch.equal(short, run(model, given))


def test_s2v_is_refused():
    cls = importlib.import_module("wan.modules.s2v.model_s2v").WanModel_S2V
    with torch.device("meta"), pytest.raises(freeloc.errors.AdapterError, match="position of frame 30"):
        freeloc.patch(
            cls(dim=48, num_heads=2, num_layers=1, ffn_dim=64, audio_dim=32, enable_motioner=False), method="vrpr"
        )


@pytest.fixture(scope="module")
def measured():
    """What two processes found."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), str(here.parent / "support"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
        command = [sys.executable, str(here / "wan22_processes.py"), folder]
        processes = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(2)]
        assert [process.wait(300) for process in processes] == [0, 0]
        return json.loads((Path(folder) / "found.json").read_text())


def test_its_sequence_parallelism_alone_is_exact(measured):
    assert measured["alone"] <= TOLERANCE


@pytest.mark.parametrize("case", ["12 frames", "padded", "vrpr", "tsa", "vrpr+tsa"])
def test_two_processes_compute_what_one_does(measured, case):
    assert measured[case]["difference"] <= TOLERANCE
    assert measured[case]["correction"] > 1e-2
    assert "this process computes some of 2 heads" in measured["report"]


def test_heads_that_differ_are_refused_in_two_processes(measured):
    assert "freeloc cannot find out which heads they are" in measured["heads"]


def test_two_processes_at_the_trained_length(measured):
    assert measured["short"] == 0
