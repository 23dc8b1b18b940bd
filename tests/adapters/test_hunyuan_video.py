"""The real HunyuanVideo pipelines of diffusers with small random parts, end to end against the oracle of dense.py."""

import pytest
import torch
from conftest import make_profile
from dense import oracle
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
)
from families import FACTS
from freeloc_adapters.examples import hunyuan_video

import freeloc
from freeloc.testing import noise, random_model

FRAMES, HEIGHT, WIDTH = 9, 2, 3  # latent frames, rows and columns of tokens in 33 frames of 32 x 48 pixels
NO_TEXT_ENCODERS = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
VALID = torch.arange(5) < torch.tensor([[5], [3]])


def video():
    vae = random_model(
        lambda: AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        )
    )
    transformer = hunyuan_video.video(guidance_embeds=True)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return HunyuanVideoPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **NO_TEXT_ENCODERS)


def video_15():
    vae = random_model(
        lambda: AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
    )
    sizes = hunyuan_video.SIZES | {"in_channels": 2 * 4 + 1, "num_layers": 4, "patch_size": 1}
    sizes |= {"text_embed_2_dim": 8, "image_embed_dim": 8, "task_type": "t2v"}
    transformer = random_model(lambda: HunyuanVideo15Transformer3DModel(**sizes))
    guider, scheduler = ClassifierFreeGuidance(guidance_scale=2.0), FlowMatchEulerDiscreteScheduler(shift=7.0)
    return HunyuanVideo15Pipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, guider=guider, **NO_TEXT_ENCODERS
    )


def prompts(name):
    """Two prompts, the second shorter."""
    if name == "hunyuan-video":
        return {"prompt_embeds": noise(2, 5, 12), "prompt_attention_mask": VALID, "pooled_prompt_embeds": noise(2, 8)}
    first = {"prompt_embeds": noise(2, 5, 12), "prompt_embeds_mask": VALID}
    return first | {"prompt_embeds_2": noise(2, 3, 8), "prompt_embeds_mask_2": VALID[:, 2:]}


def sample(pipeline, name, output):
    negative = {f"negative_{key}": value.roll(1, 0) for key, value in prompts(name).items()}
    size = {"num_frames": 33, "height": 32, "width": 48, "num_inference_steps": 4}
    guidance = {"true_cfg_scale": 2.0} if name == "hunyuan-video" else {}
    generator = torch.Generator().manual_seed(0)
    return pipeline(**prompts(name), **negative, **size, **guidance, generator=generator, output_type=output).frames


# The VAE of 1.5 decodes no batch of two in diffusers 0.42.1.
@pytest.mark.parametrize(
    ("name", "output"),
    [
        pytest.param("hunyuan-video", "latent", marks=pytest.mark.slow),
        ("hunyuan-video", "pt"),
        pytest.param("hunyuan-video-1.5", "latent", marks=pytest.mark.slow),
    ],
)
def test_the_real_pipeline_with_guidance(name, output):
    pipeline = {"hunyuan-video": video, "hunyuan-video-1.5": video_15}[name]()
    pipeline.set_progress_bar_config(disable=True)
    profile = make_profile(adapter=name)

    def plan(layer, frames):
        return freeloc.frame_plan(profile, layer, frames)

    with oracle(pipeline.transformer, FACTS[name], plan, FRAMES, HEIGHT, WIDTH):
        expected = sample(pipeline, name, output)
    before = sample(pipeline, name, output)
    with freeloc.patch(pipeline, profile) as patch:
        found = sample(pipeline, name, output)
    assert output == "latent" or found.shape == (2, 33, 3, 32, 48)
    assert (found - expected).abs().max() <= 1e-4  # errors of 2e-5 add up over 4 steps and guidance
    assert (found - before).abs().max() > 1e-3
    assert patch.report().corrected_calls == 4 * 2 * 3  # steps, prompt and negative prompt, layers
    assert torch.equal(sample(pipeline, name, output), before)
