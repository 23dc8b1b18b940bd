"""The tiny model: diffusers' WanTransformer3DModel and WanPipeline, small enough to sample on a CPU in seconds."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from freeloc.tiny.synthetic import EMBED_DIM, HEIGHT, WIDTH, prompt_embeds, to_video

WEIGHTS = Path(__file__).parent / "weights.safetensors"

TRAINED_FRAMES = 21
"""Latent frames of a training clip: as for Wan 2.1, so that its published settings apply."""

CONFIG = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 4,
    "attention_head_dim": 48,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": EMBED_DIM,
    "freq_dim": 128,
    "ffn_dim": 576,
    "num_layers": 8,
    "cross_attn_norm": True,
}


def new_transformer() -> WanTransformer3DModel:
    """The architecture with random weights: 8 layers, 4 heads of 48 channels, 35 tokens per frame."""
    return WanTransformer3DModel(**CONFIG)


def save_weights(state: dict[str, torch.Tensor], path: Path = WEIGHTS) -> None:
    """Write weights in float16: half the size, and no visible difference in the samples."""
    save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}, path)


def load_transformer(path: Path = WEIGHTS) -> WanTransformer3DModel:
    """The trained transformer, in float32, ready to sample."""
    transformer = new_transformer()
    transformer.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return transformer.eval().requires_grad_(False)


def load_pipeline(path: Path = WEIGHTS) -> WanPipeline:
    """diffusers' WanPipeline around the tiny transformer, without VAE and text encoder.

    Call it with ``prompt_embeds`` and ``output_type="latent"``. Its size arguments are those of a VAE with strides
    (4, 8, 8): see `pipeline_size`.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=load_transformer(path)
    )


def pipeline_size(latent_frames: int) -> dict[str, int]:
    """The pipeline's size arguments for a clip of `latent_frames`.

    >>> pipeline_size(81)
    {'num_frames': 321, 'height': 160, 'width': 224}
    """
    return {"num_frames": 4 * (latent_frames - 1) + 1, "height": 8 * HEIGHT, "width": 8 * WIDTH}


def long_frames(times: int) -> int:
    """Latent frames of a video of `times` trained lengths, where each continues from the last frame of the previous.

    >>> [long_frames(times) for times in (1, 2, 4)]
    [21, 41, 81]
    """
    return times * (TRAINED_FRAMES - 1) + 1


def noise(seeds: Iterable[int], latent_frames: int) -> Tensor:
    """Initial noise of one clip per seed, (clips, 3, latent_frames, height, width).

    >>> noise([3, 4], latent_frames=21).shape
    torch.Size([2, 3, 21, 20, 28])
    """
    shape = (1, 3, latent_frames, HEIGHT, WIDTH)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample(
    pipeline: WanPipeline,
    prompts: list[str],
    initial: Tensor,
    steps: int = 12,
    guidance: float = 3.0,
    title: str = "",
    after_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample videos (clips, 3, latent_frames, height, width) in 0..1 from prompts and noise.

    Args:
        pipeline: the pipeline of `load_pipeline`; it may be patched.
        prompts: one prompt per clip.
        initial: the initial noise: see `noise`.
        steps: number of denoising steps.
        guidance: scale of classifier-free guidance; 1 means no guidance, in half the time.
        title: title of the progress bar; without a title there is none.
        after_step: called after each denoising step with its number.
    """
    pipeline.set_progress_bar_config(desc=f"{title:>14}", disable=not title)
    latents = pipeline(
        prompt_embeds=prompt_embeds(prompts),
        negative_prompt_embeds=prompt_embeds([""] * len(prompts)),
        latents=initial,
        guidance_scale=guidance,
        num_inference_steps=steps,
        output_type="latent",
        callback_on_step_end=step_callback(after_step),
        **pipeline_size(initial.shape[2]),
    ).frames
    return to_video(latents)


def step_callback(after_step: Callable[[int], None] | None) -> Callable[..., dict[str, Any]] | None:
    """A function of the number of a step in the form of diffusers' ``callback_on_step_end``."""
    if after_step is None:
        return None

    def callback(pipeline: object, step: int, timestep: object, changed: dict[str, Any]) -> dict[str, Any]:
        after_step(step)
        return {}

    return callback
