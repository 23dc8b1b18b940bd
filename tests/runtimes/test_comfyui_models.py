"""ComfyUI's own video models, small and random: the conformance suite, and dense logits from un-rotated q and k."""

import pytest
import torch
from comfyui_source import comfyui

pytestmark = pytest.mark.runtimes
COMFYUI = comfyui("--use-pytorch-cross-attention")

from comfyui_runs import (  # noqa: E402 - after ComfyUI has read its options
    BY_NAME,
    TRAINED,
    choose,
    compare,
    difference,
    model_of,
    patched,
    run,
)

import freeloc  # noqa: E402
from freeloc.testing import run_checks  # noqa: E402

every_model = pytest.mark.parametrize("name", BY_NAME)
every_attention = pytest.mark.parametrize("attention", ["pytorch", "sub_quad", "split"])
ONLY_WHOLE_PATCHES = {"comfyui-hunyuan-video", "comfyui-hunyuan-video-1.5", "comfyui-mochi"}
"""Models that ComfyUI itself cannot run on other sizes."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@every_attention
@every_model
def test_conformance(name, attention, monkeypatch):
    model_of(name)
    choose(attention, monkeypatch)
    results = run_checks(BY_NAME[name])
    assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []


@every_attention
@every_model
def test_equals_dense_logits_at_4x(name, attention, monkeypatch):
    grid = 4 * TRAINED, 3, 5
    runs = compare(name, BY_NAME[name].inputs(*grid, 2), grid, attention, monkeypatch)
    assert difference(runs.found, runs.expected) <= 1e-5
    assert difference(runs.found, runs.before) > 1e-3
    assert runs.report.corrected_calls > 0


@every_attention
@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - {"comfyui-ltx", "comfyui-ltx-2"}))
def test_latents_that_are_no_multiple_of_the_patch(name, attention, monkeypatch):
    """ComfyUI pads them, except where it fails itself. LTX has patches of one latent pixel."""
    grid = 4 * TRAINED, 3, 4
    inputs = BY_NAME[name].inputs(*grid, 2)
    inputs["x"] = inputs["x"][..., :5, :7]
    if name in ONLY_WHOLE_PATCHES:
        with pytest.raises((RuntimeError, AssertionError)):
            run(model_of(name), inputs)
        return
    runs = compare(name, inputs, grid, attention, monkeypatch)
    assert difference(runs.found, runs.expected) <= 1e-5
    assert difference(runs.found, runs.before) > 1e-3


@every_attention
@every_model
@pytest.mark.parametrize("frames", [2, TRAINED])
def test_the_trained_length_is_bit_for_bit_the_models_own(name, attention, frames, monkeypatch):
    model_of(name)
    choose(attention, monkeypatch)
    inputs = BY_NAME[name].inputs(frames, 3, 5, 1)
    inputs |= {"fps": 24.0} if "fps" in inputs else {}  # as in training
    before = run(model_of(name), inputs)
    found, report = patched(name, inputs)
    assert torch.equal(found, before)
    assert report.corrected_calls == 0


def test_every_class_that_an_adapter_claims_is_proven_here():
    claimed = {
        path
        for adapter in freeloc.discovery.adapters()
        for path in adapter.classes
        if adapter.name.startswith("comfyui-")
    }
    proven = {type(model_of(name)) for name in BY_NAME}
    assert claimed == {f"{cls.__module__}.{cls.__qualname__}" for cls in proven}


def test_a_new_video_model_of_comfyui_is_noticed():
    import comfy.model_base as base

    families = ("WAN2", "Hunyuan", "LTX", "CogVideo", "Genmo", "Cosmos", "Kandinsky", "SVD", "SeedVR", "MiniMax")
    found = {name for name in vars(base) if name.startswith(families)}
    assert found == VIDEO_MODELS | OTHER_MODELS


VIDEO_MODELS = {
    *("WAN21", "WAN22", "WAN21_Camera", "WAN21_CausalAR", "WAN21_FlowRVS", "WAN21_HuMo", "WAN21_SCAIL", "WAN21_SCAIL2"),
    *("WAN21_Vace", "WAN22_Animate", "WAN22_S2V", "WAN22_WanDancer", "LTXV", "LTXAV", "CogVideoX", "GenmoMochi"),
    *("CosmosVideo", "CosmosPredict2", "HunyuanVideo", "HunyuanVideo15", "HunyuanVideo15_SR_Distilled"),
    *("HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "Kandinsky5", "SVD_img2vid", "SeedVR2", "MiniMaxH3"),
}
"""Their transformers are corrected, or refused: test_comfyui_calls.py."""
OTHER_MODELS = {
    *("HunyuanDiT", "HunyuanImage21", "HunyuanImage21Refiner", "Hunyuan3Dv2", "Hunyuan3Dv2_1", "Kandinsky5Image"),
}
"""Of images and of shapes."""
