"""CogVideoX beyond the tests of all families: its pipelines, its variants, and the variant without RoPE."""

from dataclasses import replace

import pytest
import torch
from dense import oracle
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline
from families import FACTS
from families.cogvideox import spread_over
from freeloc_adapters.examples import cogvideox

import freeloc

KINDS = {"cogvideox": cogvideox.SIZES, "cogvideox-1.5": cogvideox.VERSION_15, "cogvideox-2b": cogvideox.WITHOUT_ROPE}
TRAINED = 4


def make(kind, policy="vrpr+tsa"):
    model = cogvideox.cogvideox(KINDS[kind])
    return model, freeloc.default_profile(model, policy, TRAINED)


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).sample


def oracle_of(model, facts, profile, frames, height, width):
    return oracle(model, facts, lambda layer, count: freeloc.frame_plan(profile, layer, count), frames, height, width)


def make_pipeline(transformer):
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    pipeline = CogVideoXPipeline(transformer=transformer, scheduler=CogVideoXDDIMScheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline, num_frames):
    embeds = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    size = {"num_frames": num_frames, "height": 48, "width": 64, "num_inference_steps": 4}
    sampled = pipeline(
        prompt_embeds=embeds,
        negative_prompt_embeds=embeds * 0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **size,
    )
    return sampled.frames


@pytest.mark.parametrize(
    ("kind", "policy", "num_frames", "latent_frames"),
    [
        ("cogvideox", "vrpr+tsa", 33, 9),
        ("cogvideox-1.5", "vrpr+tsa", 65, 18),  # 17, filled up to 18: 9 frames of tokens
        ("cogvideox-2b", "tsa", 33, 9),
    ],
)
def test_the_real_pipeline_with_guidance(kind, policy, num_frames, latent_frames):
    model, profile = make(kind, policy)
    pipeline = make_pipeline(model)
    before = sample(pipeline, num_frames)
    with oracle_of(model, FACTS[kind], profile, 9, 3, 4):
        expected = sample(pipeline, num_frames)
    with freeloc.patch(pipeline, profile) as patch:
        found = sample(pipeline, num_frames)
    assert found.shape == (2, latent_frames, 4, 6, 8)
    assert (found - expected).abs().max() <= 1e-4  # small errors add up over 4 steps and guidance 6
    assert (found - before).abs().max() > 1e-2
    assert patch.report().corrected_calls == 4 * 3  # steps, layers; with and without the prompt in one batch
    assert all(set(layer.calls) == {9} for layer in patch.report().layers)
    assert torch.equal(sample(pipeline, num_frames), before)


def test_fused_projections():
    model, profile = make("cogvideox")
    inputs = cogvideox.inputs(cogvideox.SIZES, 9, 2, 3, 2)
    with freeloc.patch(model, profile):
        expected = run(model, inputs)
    model.fuse_qkv_projections()
    assert all(type(block.attn1.processor).__name__.startswith("Fused") for block in model.transformer_blocks)
    with freeloc.patch(model, profile) as patch:
        assert (run(model, inputs) - expected).abs().max() <= 2e-5
    assert patch.report().corrected_calls == 3


def make_image_to_video():
    """5b-I2V: a learned embedding of one size of video is added to the tokens."""
    sizes = cogvideox.SIZES | {"use_learned_positional_embeddings": True}
    sizes |= {"sample_height": 4, "sample_width": 6, "sample_frames": 4 * (TRAINED - 1) + 1}
    model = cogvideox.cogvideox(sizes)
    learned = model.patch_embed.pos_embedding
    learned += torch.randn(learned.shape, generator=torch.Generator().manual_seed(0))
    return model, sizes


def test_image_to_video_with_learned_positions():
    model, sizes = make_image_to_video()
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=TRAINED)
    facts = replace(FACTS["cogvideox"], spatial=spread_over(2, 3))
    inputs = cogvideox.inputs(sizes, 9, 2, 3, 2)
    before = run(model, inputs)
    with oracle_of(model, facts, profile, 9, 2, 3):
        expected = run(model, inputs)
    with freeloc.patch(model, profile):
        found = run(model, inputs)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-2


def test_diffusers_extends_learned_positions_with_sinusoids():
    model, sizes = make_image_to_video()
    within, beyond = (cogvideox.inputs(sizes, frames, 2, 3, 2) for frames in (TRAINED, 9))
    before = run(model, within), run(model, beyond)
    model.patch_embed.pos_embedding.zero_()
    assert (run(model, within) - before[0]).abs().max() > 1e-2
    assert torch.equal(run(model, beyond), before[1])


class TestWithoutRope:
    @pytest.mark.parametrize("method", ["vrpr", "vrpr+tsa", "clip", "riflex"])
    def test_methods_that_change_positions_or_frequencies_are_refused(self, method):
        model, profile = make("cogvideox-2b")
        with pytest.raises(freeloc.errors.PatchError) as error:
            freeloc.patch(model, profile, method=method)
        assert str(error.value) == (
            "this model has no rotary embedding over time: its temporal positions are added to the tokens, where they "
            'cannot be re-encoded. Use a method that leaves positions alone, such as method="tsa"'
        )
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize("method", ["tsa", "sliding-window"])
    def test_methods_that_only_hide_frames_are_supported(self, method):
        model, profile = make("cogvideox-2b")
        inputs = cogvideox.inputs(cogvideox.WITHOUT_ROPE, 9, 2, 3, 2)
        before = run(model, inputs)
        with freeloc.patch(model, profile, method=method) as patch:
            assert (run(model, inputs) - before).abs().max() > 1e-2
        assert patch.report().corrected_calls == 3

    def test_the_first_frame_keeps_its_true_distance(self):
        model, profile = make("cogvideox-2b", "tsa")
        with freeloc.patch(model, profile) as patch:
            run(model, cogvideox.inputs(cogvideox.WITHOUT_ROPE, 9, 2, 3, 2))
        assert {layer.largest_after for layer in patch.report().layers} == {8}  # with RoPE it would be 3
