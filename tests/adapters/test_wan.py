"""Real diffusers Wan models, end to end against the oracle of oracle.py."""

import copy

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanVACETransformer3DModel
from oracle import use_oracle_of

import freeloc

POLICIES = ["vrpr", "tsa", "vrpr+tsa", "none"]


def oracle_of(model, profile, height, width, method=None):
    plan = method or (lambda layer, frames: freeloc.frame_plan(profile, layer, frames))
    return use_oracle_of(model, plan, height, width)


@pytest.mark.parametrize("policy", [*POLICIES, "mixed"])
@pytest.mark.parametrize("frames", [3, 4, 5, 8, 13, 16, 24])  # 1x to 6x of 4 trained latent frames
def test_equals_the_oracle_at_1x_to_6x(small_wan, run, policy, frames):
    profile = make_profile(None if policy == "mixed" else {policy: [0, 1, 2, 3]})
    expected = run(oracle_of(small_wan, profile, 3, 5), frames)
    with freeloc.patch(small_wan, profile):
        found = run(small_wan, frames)
    assert (found - expected).abs().max() <= 2e-5


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 14), (10, 6), (6, 34)])
def test_any_grid(small_wan, run, height, width):
    profile = make_profile()
    expected = run(oracle_of(small_wan, profile, height // 2, width // 2), 9, height=height, width=width)
    with freeloc.patch(small_wan, profile):
        found = run(small_wan, 9, height=height, width=width)
    assert (found - expected).abs().max() <= 2e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float64, 2e-5)])
def test_other_dtypes_stay_within_their_rounding_of_the_float32_oracle(small_wan, run, dtype, tolerance):
    profile = make_profile()
    small_wan.to(dtype).float()  # the same rounded weights for both
    expected = run(oracle_of(small_wan, profile, 3, 5), 12)
    small_wan.to(dtype)
    inputs = {name: value.to(dtype) for name, value in wan_inputs(12).items() if isinstance(value, torch.Tensor)}
    with freeloc.patch(small_wan, profile), torch.no_grad():
        found = small_wan(**inputs, return_dict=False)[0]
    assert found.dtype == dtype
    assert (found - expected).abs().max() / expected.abs().max() <= tolerance


def test_the_correction_is_not_small(small_wan, run):
    before = run(small_wan, 16)
    with freeloc.patch(small_wan, make_profile()):
        assert (run(small_wan, 16) - before).abs().max() > 1e-2


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_within_the_trained_length_the_output_is_the_models_own_bit_for_bit(small_wan, run, frames):
    before = run(small_wan, frames)
    with freeloc.patch(small_wan, make_profile()) as patch:
        assert torch.equal(run(small_wan, frames), before)
    assert patch.report().corrected_calls == 0
    assert patch.report().untouched_calls == 4


def test_timesteps_per_token_as_in_ti2v(small_wan, run):
    profile = make_profile()
    per_token = torch.rand(2, 9 * 15, generator=torch.Generator().manual_seed(0)) * 1000
    expected = run(oracle_of(small_wan, profile, 3, 5), 9, timestep=per_token)
    with freeloc.patch(small_wan, profile):
        found = run(small_wan, 9, timestep=per_token)
    assert (found - expected).abs().max() <= 2e-5


def test_image_to_video_leaves_image_and_text_attention_alone(run):
    model = make_wan(image_dim=12, added_kv_proj_dim=48)
    profile = make_profile()
    changes = {
        "encoder_hidden_states": torch.randn(2, 512, 16, generator=torch.Generator().manual_seed(1)),
        "encoder_hidden_states_image": torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)),
    }
    expected = run(oracle_of(model, profile, 3, 5), 9, **changes)
    with freeloc.patch(model, profile) as patch:
        found = run(model, 9, **changes)
    assert (found - expected).abs().max() <= 2e-5
    assert patch.report().corrected_calls == 3  # layer 3 is left alone


def test_first_and_last_frame_to_video(run):
    model = make_wan(image_dim=12, added_kv_proj_dim=48, pos_embed_seq_len=2 * 5)
    profile = make_profile()
    changes = {
        "encoder_hidden_states": torch.randn(2, 512, 16, generator=torch.Generator().manual_seed(1)),
        "encoder_hidden_states_image": torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(2)),
    }
    expected = run(oracle_of(model, profile, 3, 5), 9, **changes)
    with freeloc.patch(model, profile):
        found = run(model, 9, **changes)
    assert (found - expected).abs().max() <= 2e-5


def test_vace_blocks_get_the_policy_of_the_layer_they_run_beside(run):
    model = make_wan(cls=WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=6)
    profile = make_profile()
    control = {
        "control_hidden_states": torch.randn(2, 6, 9, 6, 10, generator=torch.Generator().manual_seed(3)),
        "control_hidden_states_scale": torch.ones(2),
    }
    oracle = oracle_of(model, profile, 3, 5)
    for block, layer in zip(oracle.vace_blocks, (0, 2), strict=True):
        processor = copy.copy(oracle.blocks[layer].attn1.processor)
        block.attn1.set_processor(processor)
    expected = run(oracle, 9, **control)
    before = run(model, 9, **control)
    with freeloc.patch(model, profile) as patch:
        found = run(model, 9, **control)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-3
    beside = [(layer.path, layer.layer) for layer in patch.report().layers if "vace" in layer.path]
    assert beside == [("vace_blocks.0.attn1", 0), ("vace_blocks.1.attn1", 2)]


def test_fused_projections(small_wan, run):
    profile = make_profile()
    with freeloc.patch(small_wan, profile):
        expected = run(small_wan, 9)
    small_wan.fuse_qkv_projections()
    with freeloc.patch(small_wan, profile):
        assert (run(small_wan, 9) - expected).abs().max() <= 2e-5


def make_pipeline(**parts):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline, num_frames):
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    size = {"num_frames": num_frames, "height": 48, "width": 80, "num_inference_steps": 4}
    sampled = pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=embeds * 0, generator=generator, output_type="latent", **size
    )
    return sampled.frames


def test_the_real_pipeline_with_guidance(small_wan):
    profile = make_profile()
    expected = sample(make_pipeline(transformer=oracle_of(small_wan, profile, 3, 5)), num_frames=33)
    pipeline = make_pipeline(transformer=small_wan)
    before = sample(pipeline, num_frames=33)
    with freeloc.patch(pipeline, profile) as patch:
        found = sample(pipeline, num_frames=33)
    assert (found - expected).abs().max() <= 1e-4  # errors of 2e-5 add up over 4 steps and guidance 5
    assert (found - before).abs().max() > 1e-2
    assert patch.report().corrected_calls == 4 * 2 * 3  # steps, with and without the prompt, layers
    assert torch.equal(sample(pipeline, num_frames=33), before)


def test_both_transformers_of_a_two_stage_pipeline(small_wan):
    pipeline = make_pipeline(transformer=small_wan, transformer_2=make_wan(seed=1), boundary_ratio=0.9)
    with freeloc.patch(pipeline, make_profile()) as patch:
        sample(pipeline, num_frames=33)
    report = patch.report()
    assert [len(layers) for layers in report.transformers] == [4, 4]
    assert all(layer.calls[9] > 0 for layer in report.layers if layer.method != "none")
    first, second = str(report).split("transformer 1 of 2\n")[1].split("transformer 2 of 2\n")
    assert first.count("blocks.") == second.count("blocks.") == 3  # layer 3 is left alone
