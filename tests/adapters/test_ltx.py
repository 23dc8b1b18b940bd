"""LTX-Video and LTX-2: the real pipeline, positions that are no grid, and blocks that skip their attention."""

import pytest
import torch
from dense import oracle
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline
from families import FACTS
from freeloc_adapters.examples import ltx
from lengths import plan_of_call
from test_families import run

import freeloc


def profile_of(model, policy):
    return freeloc.default_profile(model, policy, trained_latent_frames=4)


def oracle_of(model, name, profile, frames, height, width):
    def plan(layer, count):
        return plan_of_call(profile, layer, count, FACTS[name].spacing)

    return oracle(model, FACTS[name], plan, frames, height, width)


def make_pipeline(transformer):
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "transformer": transformer}
    pipeline = LTXPipeline(vae=None, text_encoder=None, tokenizer=None, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline, num_frames):
    prompt = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 3)
    return pipeline(
        prompt_embeds=prompt,
        prompt_attention_mask=mask,
        negative_prompt_embeds=prompt * 0,
        negative_prompt_attention_mask=mask,
        num_frames=num_frames,
        height=64,
        width=96,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def test_the_real_pipeline_with_guidance():
    model = ltx.ltx()
    pipeline, profile = make_pipeline(model), profile_of(model, "vrpr+tsa")
    before = sample(pipeline, num_frames=65)
    with oracle_of(model, "ltx", profile, frames=9, height=2, width=3):
        expected = sample(pipeline, num_frames=65)
    with freeloc.patch(pipeline, profile) as patch:
        found = sample(pipeline, num_frames=65)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-2
    assert patch.report().corrected_calls == 4 * 2  # steps, both guidance directions in one batch, layers
    assert torch.equal(sample(pipeline, num_frames=65), before)


def test_the_step_follows_the_frame_rate():
    model, inputs = ltx.ltx(), ltx.inputs(9, 2, 3, 1)
    profile, runs = profile_of(model, "vrpr"), []
    for rate in (25, 12):
        with freeloc.patch(model, profile):
            runs.append(run(model, inputs | {"rope_interpolation_scale": (torch.tensor(8 / rate), 32, 32)}))
    with oracle_of(model, "ltx", profile, frames=9, height=2, width=3):
        expected = run(model, inputs)
    assert (runs[0] - expected).abs().max() <= 2e-5
    assert (runs[1] - expected).abs().max() > 1e-3


def coordinates_of(frames, rate=25, height=2, width=3):
    """Seconds and pixels of each token, as the pipelines with conditions make them."""
    axes = torch.arange(frames) * 8 / rate, torch.arange(height) * 32.0, torch.arange(width) * 32.0
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[None]


def without_sizes(inputs):
    return {name: value for name, value in inputs.items() if name not in ("num_frames", "height", "width")}


def test_coordinates_that_are_a_grid_stand_for_its_sizes():
    model, inputs = ltx.ltx(), ltx.inputs(9, 2, 3, 1)
    profile = profile_of(model, "vrpr+tsa")
    with oracle_of(model, "ltx", profile, frames=9, height=2, width=3):
        expected = run(model, inputs)
    given = without_sizes(inputs) | {"rope_interpolation_scale": None, "video_coords": coordinates_of(9)}
    with freeloc.patch(model, profile):
        assert (run(model, given) - expected).abs().max() <= 1e-4  # coordinates in float32 are rounded


@pytest.mark.parametrize("frames", [3, 9])
def test_conditions_among_the_coordinates_run_at_the_trained_length_and_are_refused_beyond_it(frames):
    model, inputs = ltx.ltx(), ltx.inputs(frames, 2, 3, 1)
    keyframe, video = coordinates_of(1)[:, :, :4], coordinates_of(frames)
    given = without_sizes(inputs) | {
        "rope_interpolation_scale": None,
        "video_coords": torch.cat([keyframe, video], dim=2),
        "hidden_states": torch.cat([torch.ones(1, 4, 4), inputs["hidden_states"]], dim=1),
    }
    before = run(model, given)
    with freeloc.patch(model, profile_of(model, "vrpr")) as patch:
        if frames == 9:
            with pytest.raises(freeloc.errors.LayoutError, match=r"video_coords is not a grid .* keyframes"):
                run(model, given)
        else:
            assert torch.equal(run(model, given), before)
            assert patch.report().untouched_calls == 2


@pytest.mark.parametrize("name", ["interleaved", "split"])
def test_ltx_2_with_the_coordinates_that_its_pipelines_pass(name):
    model, inputs = ltx.ltx_2(rope_type=name), ltx.inputs_2(9, 2, 3, 2)
    coordinates = model.rope.prepare_video_coords(2, 9, 2, 3, torch.device("cpu"), fps=25.0)
    facts = "ltx-2-split" if name == "split" else "ltx-2"
    profile = profile_of(model, "vrpr+tsa")
    with oracle_of(model, facts, profile, frames=9, height=2, width=3):
        expected = run(model, inputs)
    with freeloc.patch(model, profile):
        assert (run(model, inputs | {"video_coords": coordinates}) - expected).abs().max() <= 2e-5


def test_ltx_2_with_reference_tokens_at_the_end_is_refused():
    model, inputs = ltx.ltx_2(), ltx.inputs_2(9, 2, 3, 1)
    coordinates = model.rope.prepare_video_coords(1, 9, 2, 3, torch.device("cpu"), fps=25.0)
    coordinates = torch.cat([coordinates, coordinates[:, :, :6]], dim=2)
    more = {"hidden_states": torch.zeros(1, 60, 4), "timestep": torch.full((1, 60), 500), "video_coords": coordinates}
    with (
        freeloc.patch(model, profile_of(model, "vrpr")),
        pytest.raises(freeloc.errors.LayoutError, match="video_coords is not a grid"),
    ):
        run(model, inputs | more)


def test_ltx_2_with_more_tokens_than_coordinates_say_is_refused():
    model, inputs = ltx.ltx_2(), ltx.inputs_2(9, 2, 3, 1)
    with (
        freeloc.patch(model, profile_of(model, "vrpr")),
        pytest.raises(freeloc.errors.LayoutError, match="expected 48 tokens, 8 latent frames of 2 x 3 = 48, found 54"),
    ):
        run(model, inputs | {"num_frames": 8, "video_coords": None, "hidden_states": inputs["hidden_states"]})


def test_ltx_2_without_sizes_at_the_trained_length():
    """As its pipelines with a duration call it."""
    model, inputs = ltx.ltx_2(), ltx.inputs_2(3, 2, 3, 1)
    coordinates = model.rope.prepare_video_coords(1, 3, 2, 3, torch.device("cpu"), fps=25.0)
    given = without_sizes(inputs) | {"video_coords": coordinates}
    before = run(model, given)
    with freeloc.patch(model, profile_of(model, "vrpr")):
        assert torch.equal(run(model, given), before)


def test_ltx_2_blocks_whose_attention_guidance_skips_are_left_alone():
    model, inputs = ltx.ltx_2(perturbed_attn=True), ltx.inputs_2(9, 2, 3, 1)
    with freeloc.patch(model, profile_of(model, "vrpr")) as patch:
        skipped = run(model, inputs | {"spatio_temporal_guidance_blocks": [1]})
        assert patch.report().corrected_calls == 1
        assert (run(model, inputs) - skipped).abs().max() > 1e-3
    assert patch.report().corrected_calls == 3
