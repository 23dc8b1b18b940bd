"""What a call of ComfyUI's models may have: references, options of RoPE, masks, overrides; and what is refused."""

import pytest
import torch
from comfyui_source import comfyui

pytestmark = pytest.mark.runtimes
COMFYUI = comfyui("--use-pytorch-cross-attention")

from comfyui_facts import FACTS  # noqa: E402 - after ComfyUI has read its options
from comfyui_runs import BY_NAME, TRAINED, compare, difference, model_of, patched, profile_of, run  # noqa: E402

import freeloc  # noqa: E402
from freeloc.errors import AdapterError, LayoutError  # noqa: E402
from freeloc.testing import noise  # noqa: E402

GRID = 4 * TRAINED, 4, 5


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def inputs_of(name, frames=GRID[0], batch=2, **more):
    return BY_NAME[name].inputs(frames, *GRID[1:], batch) | more


def latent(frames, batch=2, channels=4):
    return noise(batch, channels, frames, 2 * GRID[1], 2 * GRID[2])


REFERENCES = {
    "one in front, of Fun-Control": ("comfyui-wan-i2v", {"reference_latent": latent(1)[:, :, 0]}, 1, 0),
    "one that the model does not take": ("comfyui-wan", {"reference_latent": latent(1)[:, :, 0]}, 0, 0),
    "two behind, of Phantom": ("comfyui-wan", {"time_dim_concat": latent(2)}, 0, 2),
    "in front and behind": (
        "comfyui-wan-i2v", {"reference_latent": latent(1)[:, :, 0], "time_dim_concat": latent(1)}, 1, 1
    ),
    "two of HuMo": ("comfyui-wan-humo", {"reference_latent": latent(2)}, 0, 2),
    "two of SCAIL": ("comfyui-wan-scail", {"reference_latent": latent(2)}, 2, 0),
}  # fmt: skip


@pytest.mark.parametrize("label", REFERENCES)
@pytest.mark.parametrize("attention", ["pytorch", "sub_quad"])
def test_references_are_no_frames_of_the_video(label, attention, monkeypatch):
    name, more, first, last = REFERENCES[label]
    runs = compare(name, inputs_of(name, **more), GRID, attention, monkeypatch, first, last)
    assert difference(runs.found, runs.expected) <= 1e-5
    assert difference(runs.found, runs.before) > 1e-3
    assert {frames for layer in runs.report.layers for frames in layer.calls} == {GRID[0]}
    short = inputs_of(name, TRAINED, **more)
    assert torch.equal(patched(name, short)[0], run(model_of(name), short))


def test_references_of_vace_are_not_known_and_can_be_told():
    model, profile = (
        model_of("comfyui-wan-vace"),
        freeloc.default_profile(model_of("comfyui-wan-vace"), "vrpr", TRAINED),
    )
    inputs = inputs_of("comfyui-wan-vace", TRAINED + 1)
    with freeloc.patch(model, profile) as patch:
        run(model, inputs)
    assert "reference images: not known" in str(patch.report())
    with freeloc.patch(model, profile, reference_frames=1) as patch:
        assert torch.equal(run(model, inputs), run(model_of("comfyui-wan-vace"), inputs))
    assert patch.report().corrected_calls == 0


SHIFTED = {"rope_options": {"scale_t": 0.5, "shift_t": 2.0, "scale_y": 1.5, "shift_x": 1.0}}


@pytest.mark.parametrize("name", ["comfyui-wan", "comfyui-kandinsky5"])
def test_scaled_positions(name, monkeypatch):
    """The node ScaleROPE."""
    facts = FACTS[name]
    plain = 1.0 if name == "comfyui-wan" else 0.5

    def spatial(height, width):
        at = facts.spatial(height, 1)[:, None] * 1.5 + facts.spatial(1, width)[None]
        return at.flatten(0, 1) / plain

    inputs = inputs_of(name, transformer_options=SHIFTED)
    changed = {"temporal": facts.temporal * 0.5, "spatial": spatial}
    runs = compare(name, inputs, GRID, "sub_quad", monkeypatch, **changed)
    assert difference(runs.found, runs.expected) <= 1e-5
    assert difference(runs.found, runs.before) > 1e-3


@pytest.mark.parametrize("attention", ["pytorch", "sub_quad"])
def test_padded_text_of_hunyuan_video(attention, monkeypatch):
    """ComfyUI supports a mask for a batch of 1."""
    name = "comfyui-hunyuan-video"
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    inputs = inputs_of(name, batch=1, attention_mask=mask)
    runs = compare(name, inputs, GRID, attention, monkeypatch)
    assert difference(runs.found, runs.expected) <= 1e-5
    assert difference(patched(name, inputs_of(name, batch=1))[0], runs.found) > 1e-3


def test_another_nodes_kernel_computes_what_is_not_corrected():
    name, calls = "comfyui-wan", []

    def override(kernel, query, key, *rest, **named):
        calls.append(key.shape[1])
        return kernel(query, key, *rest, **named)

    expected, _ = patched(name, inputs_of(name))
    options = {"optimized_attention_override": override}
    assert torch.equal(patched(name, inputs_of(name, transformer_options=dict(options)))[0], expected)
    assert calls == [7] * 3  # cross-attention over the text
    short = inputs_of(name, TRAINED)
    expected = run(model_of(name), short)
    calls.clear()
    assert torch.equal(patched(name, short | {"transformer_options": dict(options)})[0], expected)
    assert len(calls) == 6


@pytest.mark.filterwarnings("default")  # Dynamo warns of what LTX-2 caches
@pytest.mark.parametrize("name", ["comfyui-wan-vace", "comfyui-hunyuan-video", "comfyui-cogvideox", "comfyui-ltx-2"])
def test_compiled(name):
    """As a whole, by a backend that keeps the numbers: layers, blocks and kernels of several kinds."""
    torch._dynamo.reset()
    compiled = torch.compile(model_of(name), backend="eager")
    expected = [patched(name, inputs_of(name, frames, 1))[0] for frames in (GRID[0], TRAINED)]
    with freeloc.patch(model_of(name), profile_of(model_of(name))) as patch:
        for output, frames in zip(expected, (GRID[0], TRAINED), strict=True):
            assert torch.equal(run(compiled, inputs_of(name, frames, 1)), output)
    assert patch.report().corrected_calls > 0
    torch._dynamo.reset()


REFUSED = {
    "references in context": (
        "comfyui-wan", {"context_latents": [latent(2, 1)]}, "context_latents: the frames of each reference follow"
    ),
    "reference of S2V": (
        "comfyui-wan-s2v", {"reference_latent": latent(1, 1)}, "reference_latent: a reference image follows"
    ),
    "earlier frames of S2V": (
        "comfyui-wan-s2v", {"reference_motion": latent(19, 1, 16)}, "reference_motion: earlier frames, pooled"
    ),
    "pose of SCAIL": (
        "comfyui-wan-scail", {"pose_latents": latent(2, 1)}, "pose_latents: the frames of the pose follow"
    ),
    "reference of HunyuanVideo": (
        "comfyui-hunyuan-video", {"ref_latent": latent(1, 1)}, "ref_latent: a reference image, at time -1"
    ),
    "guides of LTX": (
        "comfyui-ltx", {"keyframe_idxs": torch.zeros(1, 3, 20, 2), "denoise_mask": True},
        "keyframe_idxs: the frames of guides follow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
def test_what_cannot_be_corrected_is_refused_beyond_the_trained_length(label):
    name, more, message = REFUSED[label]

    def call(frames):
        inputs = inputs_of(name, frames, batch=1, **more)
        if "denoise_mask" in more:
            inputs["denoise_mask"] = torch.ones(1, 4, frames, *GRID[1:])
            inputs["timestep"] = torch.full((1, frames * 20), 0.5)
        return inputs

    with pytest.raises(LayoutError, match=f"cannot be corrected when called with {message}"):
        patched(name, call(GRID[0]))
    assert torch.equal(patched(name, call(TRAINED))[0], run(model_of(name), call(TRAINED)))


def test_a_frame_rate_that_moves_the_last_frame_is_refused():
    """WanDancer at other rates than 30 uses another patch embedding, and puts the last frame at another distance."""
    with pytest.raises(LayoutError, match="patch_embedding of WanDancerModel has not run, from which its grid is read"):
        patched("comfyui-wandancer", inputs_of("comfyui-wandancer", fps=12.5))
    expected = run(model_of("comfyui-wandancer"), inputs_of("comfyui-wandancer", fps=30.0))
    assert difference(patched("comfyui-wandancer", inputs_of("comfyui-wandancer", fps=30.0))[0], expected) > 1e-3


def test_positions_that_half_precision_cannot_hold_are_refused():
    """ComfyUI counts latent frames in the model's own dtype. bfloat16 has no odd numbers above 256."""
    import copy

    model = copy.deepcopy(model_of("comfyui-wan")).to(torch.bfloat16)
    model.patch_embedding.float()
    profile = freeloc.default_profile(model, "vrpr", 200)
    inputs = {"timestep": torch.full((1,), 500.0), "context": noise(1, 7, 16).bfloat16()}
    with freeloc.patch(model, profile) as patch:
        run(model, inputs | {"x": noise(1, 4, 257, 2, 4).bfloat16()})
        with pytest.raises(LayoutError, match="expected rotary tables that rotate the latent frames evenly"):
            run(model, inputs | {"x": noise(1, 4, 261, 2, 4).bfloat16()})
    assert patch.report().corrected_calls == 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("wan.ar_model.CausalWanModel", "it generates block by block, each of which attends to cached keys"),
        ("cosmos.model.GeneralDIT", "its attention modules get tokens first and the batch second"),
        ("minimax.model.MiniMaxH3Model", "text, images, sound and video are packed into one sequence"),
        ("seedvr.model.NaDiT", "it enlarges a finished video, with attention inside small windows"),
        ("modules.diffusionmodules.openaimodel.UNetModel", r"it is a U-Net \(Stable Diffusion for images"),
    ],
)
def test_models_that_cannot_be_corrected(path, reason):
    import importlib

    file, _, name = path.rpartition(".")
    model = object.__new__(getattr(importlib.import_module(f"comfy.ldm.{file}"), name))
    torch.nn.Module.__init__(model)
    with pytest.raises(AdapterError, match=f"{name} cannot be corrected: {reason}"):
        freeloc.patch(model)


def test_an_image_model_that_is_derived_from_a_video_model_is_not_claimed():
    from comfy.ldm.anima.model import Anima

    model = object.__new__(Anima)
    torch.nn.Module.__init__(model)
    with pytest.raises(AdapterError, match=r"no adapter describes this model\. Looked at: comfy\.ldm\.anima"):
        freeloc.patch(model)
