"""Reference images on the axis of frames: in the pipeline of VACE, in Wan-Animate, and where a user tells them."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from freeloc_adapters import wan
from freeloc_adapters.examples import wan_based
from test_families import run

import freeloc
from freeloc.adapter import References, TokenGrid

SIZES = {"num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64}
IMAGE = PIL.Image.fromarray(np.full((32, 48, 3), 128, np.uint8))


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    model = WanVACETransformer3DModel(**SIZES, num_layers=4, vace_layers=[0, 2], vace_in_channels=96)
    pipe = WanVACEPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(shift=3.0), model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, images, num_frames):
    text = torch.ones(1, 3, 16)
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=-text,
        reference_images=images,
        num_frames=num_frames,
        height=32,
        width=48,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


@pytest.mark.parametrize("references", [0, 1, 2])
def test_vace_at_its_trained_length_is_left_alone(pipe, references):
    images = [IMAGE] * references or None
    before = sample(pipe, images, 17)
    with freeloc.patch(pipe, freeloc.default_profile(pipe, "vrpr+tsa", trained_latent_frames=5)) as patch:
        assert torch.equal(sample(pipe, images, 17), before)
    assert patch.report().corrected_calls == 0


@pytest.mark.parametrize("references", [0, 1, 2])
def test_the_number_that_the_pipeline_knows_is_as_good_as_the_number_that_a_user_tells(pipe, references):
    images, profile = [IMAGE] * references or None, freeloc.default_profile(pipe, "vrpr+tsa", trained_latent_frames=3)
    with freeloc.patch(pipe, profile, reference_frames=references):
        expected = sample(pipe, images, 25)
    with freeloc.patch(pipe, profile) as patch:
        found = sample(pipe, images, 25)
    assert torch.equal(found, expected)
    assert {frames for layer in patch.report().layers for frames in layer.calls} == {7}
    assert "not known outside a pipeline" not in str(patch.report())


def test_vace_outside_a_pipeline_says_that_references_are_not_known(pipe):
    model = pipe.transformer
    inputs = {
        "hidden_states": torch.randn(1, 16, 7, 4, 6),
        "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "control_hidden_states": torch.randn(1, 96, 7, 4, 6),
    }
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=3)
    with freeloc.patch(model, profile) as patch:
        run(model, inputs)
    assert "reference images: not known outside a pipeline, counted as none" in str(patch.report())
    with freeloc.patch(model, profile, reference_frames=1) as patch:
        run(model, inputs)
    assert "not known" not in str(patch.report())
    assert {frames for layer in patch.report().layers for frames in layer.calls} == {6}


class WithAReference(WanTransformer3DModel):
    """Wan that puts a picture before the video that it gets."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True):
        both = torch.cat([hidden_states[:, :, :1] * 0.5, hidden_states], dim=2)
        (out,) = super().forward(both, timestep, encoder_hidden_states, return_dict=False)
        return (out[:, :, 1:],)


@pytest.mark.parametrize("kinds", [1, 2])
def test_references_that_the_argument_of_the_grid_does_not_hold(kinds):
    apart = References(frames=1, apart=True)
    grid = TokenGrid(references=apart if kinds == 1 else (apart, References("last", frames=1)))
    adding, plain, last = make_wan(cls=WithAReference), make_wan(), kinds - 1
    adapter, profile = replace(wan.DIFFUSERS, grid=grid), make_profile()
    for frames in (4 + last, 9):
        inputs = wan_inputs(frames)
        both = torch.cat([inputs["hidden_states"][:, :, :1] * 0.5, inputs["hidden_states"]], dim=2)
        with freeloc.patch(plain, profile, reference_frames=(1, last)) as patch, torch.no_grad():
            expected = plain(**inputs | {"hidden_states": both})[0][:, :, 1:]
        assert bool(patch.report().corrected_calls) == (frames == 9)
        with freeloc.patch(adding, profile, adapter=adapter), torch.no_grad():
            assert torch.equal(adding(**inputs)[0], expected)


def test_references_that_only_some_models_of_a_class_take():
    references = References(frames=1, present="config.added_kv_proj_dim")
    model, adapter = make_wan(), replace(wan.DIFFUSERS, grid=TokenGrid(references=references))
    with freeloc.patch(model, make_profile(), adapter=adapter) as patch, torch.no_grad():
        model(**wan_inputs(5))
    assert patch.report().corrected_calls == 3


def test_the_picture_of_the_character_is_no_frame_of_the_video():
    model, profile = wan_based.wan_animate(), None
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    for frames, is_long in ((5, False), (6, True)):
        inputs = wan_based.wan_animate_inputs(frames, 2, 3, 1)
        before = run(model, inputs)
        with freeloc.patch(model, profile) as patch:
            assert torch.equal(run(model, inputs), before) == (not is_long)
        assert bool(patch.report().corrected_calls) == is_long


def test_every_frame_sees_every_reference():
    plan = freeloc.frame_plan(freeloc.load_profile("wan2.1"), 0, 83, reference_frames=(2, 0))
    assert (plan.visibility[:, :2] == 2).all()
    assert (plan.visibility[:2] == 2).all()
    assert plan.positions[:, 0].max() == 22  # 20 frames of training after the last of two references
    assert torch.equal(plan.positions[2:23, 0], torch.arange(2, 23).double())
    assert torch.equal(plan.positions[2:, 2:], freeloc.frame_plan(freeloc.load_profile("wan2.1"), 0, 81).positions)
