"""Modular pipelines of diffusers: the same corrections as in its other pipelines, with guiders and offloading."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LayerSkipConfig,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import SmoothedEnergyGuidanceConfig
from diffusers.modular_pipelines.components_manager import custom_offload_with_hook
from diffusers.modular_pipelines.ltx.modular_blocks_ltx import LTXCoreDenoiseStep
from diffusers.modular_pipelines.wan import Wan22Blocks, WanBlocks
from diffusers.modular_pipelines.wan.modular_blocks_wan_vace import Wan22VaceBlocks
from freeloc_adapters.examples import ltx as ltx_example
from freeloc_adapters.examples import wan as wan_example

import freeloc
from freeloc.errors import AdapterError
from freeloc.testing import noise, random_model

SIZES = wan_example.SIZES
IMAGE = PIL.Image.fromarray(np.full((32, 48, 3), 128, np.uint8))
TEXT = torch.ones(1, 3, 16)


def modular(blocks, **components):
    """A modular pipeline without text encoder and decoder."""
    for name in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    pipe.update_components(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **components)
    return pipe


def small():
    return random_model(lambda: WanTransformer3DModel(**SIZES))


def sample(pipe, frames=9, **given):
    given = {"latents": noise(1, 4, frames, 4, 6), "num_inference_steps": 4} | given
    return pipe(prompt_embeds=TEXT, negative_prompt_embeds=-TEXT, output="latents", **given)


def profile_of(pipe):
    return freeloc.default_profile(pipe, "vrpr+tsa", trained_latent_frames=3)


def expected(pipe, guidance):
    """Corrected samples of a loop that is written out here, at one scale of classifier-free guidance."""
    latents, scheduler = noise(1, 4, 9, 4, 6), FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    model = pipe.transformer
    with torch.no_grad(), freeloc.patch(model, profile_of(pipe)):
        for time in scheduler.timesteps:
            with_text, without = (model(latents, time.expand(1), sign * TEXT).sample for sign in (1, -1))
            latents = scheduler.step(without + guidance * (with_text - without), time, latents, return_dict=False)[0]
    return latents


def test_every_call_of_the_loop_is_corrected_and_the_patch_leaves_no_trace():
    pipe = modular(WanBlocks(), transformer=small(), guider=ClassifierFreeGuidance(guidance_scale=3.0))
    before = sample(pipe)
    with freeloc.patch(pipe, profile_of(pipe)) as patch:
        found = sample(pipe)
    assert (found - before).abs().max() > 1e-2
    assert (found - expected(pipe, 3.0)).abs().max() < 1e-5
    assert patch.report().corrected_calls == 8 * SIZES["num_layers"]
    assert torch.equal(sample(pipe), before)


def skipping(layer):
    return LayerSkipConfig(indices=[layer], fqn="blocks")


GUIDERS = {
    "none": (lambda: ClassifierFreeGuidance(guidance_scale=1.0), 4, 0),
    "projected": (lambda: AdaptiveProjectedGuidance(guidance_scale=3.0), 8, 0),
    "skipped layers": (
        lambda: SkipLayerGuidance(
            skip_layer_config=skipping(1), skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
        ),
        11,
        3,
    ),
    "auto": (lambda: AutoGuidance(auto_guidance_config=skipping(1)), 8, 4),
    "smoothed": (
        lambda: SmoothedEnergyGuidance(seg_guidance_config=SmoothedEnergyGuidanceConfig(indices=[1], fqn="blocks")),
        11,
        0,
    ),
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_guiders(guider):
    make, passes, skipped = GUIDERS[guider]
    pipe = modular(WanBlocks(), transformer=small(), guider=make())
    before = sample(pipe)
    with freeloc.patch(pipe, profile_of(pipe)) as patch:
        found = sample(pipe)
    report = patch.report()
    assert report.corrected_calls == passes * SIZES["num_layers"] - skipped
    assert "WARNING" not in str(report)
    assert ("skipped by TransformerBlockSkipHook" in str(report)) == bool(skipped)
    assert (found - before).abs().max() > 1e-3
    assert torch.equal(sample(pipe), before)


@pytest.mark.parametrize("order", ["offload first", "patch first"])
def test_a_components_managers_offloading(order):
    pipe = modular(WanBlocks(), transformer=small())
    with freeloc.patch(pipe, profile_of(pipe)):
        wanted = sample(pipe)
    if order == "offload first":
        custom_offload_with_hook("transformer", pipe.transformer, torch.device("cpu"))
    with freeloc.patch(pipe, profile_of(pipe)):
        if order == "patch first":
            custom_offload_with_hook("transformer", pipe.transformer, torch.device("cpu"))
        assert torch.equal(sample(pipe), wanted)


def test_both_transformers_of_wan_2_2_are_patched():
    pipe = modular(Wan22Blocks(), transformer=small(), transformer_2=small())
    with freeloc.patch(pipe, profile_of(pipe)) as patch:
        sample(pipe)
    assert len(patch.report().models) == 2
    assert all(any(layer.calls for layer in model.layers) for model in patch.report().models)


def test_a_pipeline_without_its_weights_is_refused():
    with pytest.raises(AdapterError, match=r"no torch module in .*WanModularPipeline"):
        freeloc.patch(WanBlocks().init_pipeline())


def test_a_component_that_is_replaced_after_the_patch_is_not_patched_and_the_report_says_so():
    pipe = modular(WanBlocks(), transformer=small())
    with freeloc.patch(pipe, profile_of(pipe)) as patch:
        pipe.update_components(transformer=small())
        sample(pipe)
    assert "the patched model has not run yet" in str(patch.report())


def test_the_blocks_of_ltx():
    pipe = LTXCoreDenoiseStep().init_pipeline()
    shift = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **shift)
    pipe.update_components(transformer=ltx_example.ltx(), scheduler=scheduler)
    text, mask = torch.ones(1, 3, ltx_example.SIZES["caption_channels"]), torch.ones(1, 3, dtype=torch.long)

    def run(latent_frames):
        return pipe(
            prompt_embeds=text,
            negative_prompt_embeds=-text,
            prompt_attention_mask=mask,
            negative_prompt_attention_mask=mask,
            num_frames=8 * latent_frames - 7,
            height=64,
            width=96,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output="latents",
        )

    long, short = run(10), run(3)
    with freeloc.patch(pipe, profile_of(pipe)) as patch:
        assert (run(10) - long).abs().max() > 1e-2
        assert torch.equal(run(3), short)
    assert dict(patch.report().models[0].forwards) == {3: 4, 10: 4}


@pytest.fixture(scope="module")
def vace():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    sizes = SIZES | {"num_layers": 4, "in_channels": 16, "out_channels": 16}
    models = [WanVACETransformer3DModel(**sizes, vace_layers=[0, 2], vace_in_channels=96) for _ in range(2)]
    return modular(Wan22VaceBlocks(), vae=vae, transformer=models[0], transformer_2=models[1])


@pytest.mark.parametrize("references", [0, 1, 2])
def test_the_references_of_vace_are_read_from_the_state_of_the_blocks(vace, references):
    given = {
        "latents": None,
        "reference_images": [IMAGE] * references or None,
        "num_frames": 25,
        "height": 32,
        "width": 48,
    }
    profile = profile_of(vace)

    def run():
        return sample(vace, generator=torch.Generator().manual_seed(0), **given)

    with freeloc.patch(vace, profile, reference_frames=references):
        wanted = run()
    with freeloc.patch(vace, profile) as patch:
        assert torch.equal(run(), wanted)
    assert "not known outside a pipeline" not in str(patch.report())
    assert {frames for layer in patch.report().layers for frames in layer.calls} == {7}
