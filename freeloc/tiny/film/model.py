"""The second tiny model: diffusers' CogVideoXTransformer3DModel and CogVideoXPipeline, trained on a film."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors.torch import load_file, save_file
from torch import Tensor

from freeloc.tiny.film.footage import SIZE
from freeloc.tiny.model import step_callback

WEIGHTS = Path(__file__).parent / "weights.safetensors"

TRAINED_FRAMES = 13
"""Latent frames of a training clip: as for CogVideoX."""

PATCH = 4

CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "num_layers": 6,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": PATCH,
    "sample_height": SIZE,
    "sample_width": SIZE,
    "sample_frames": 4 * (TRAINED_FRAMES - 1) + 1,
    "time_embed_dim": 128,
    "text_embed_dim": 8,
    "max_text_seq_length": 1,
    "use_rotary_positional_embeddings": True,
}


def new_transformer() -> CogVideoXTransformer3DModel:
    """The architecture with random weights: 6 layers, 3 heads of 64 channels, 36 tokens per frame, one of text."""
    return CogVideoXTransformer3DModel(**CONFIG)


def scheduler() -> CogVideoXDDIMScheduler:
    """The noise schedule of CogVideoX-5b: v-prediction (arXiv 2202.00512), without signal at the last step."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def save_weights(state: dict[str, Tensor], path: Path = WEIGHTS) -> None:
    """Write weights in float16."""
    save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}, path)


def load_transformer(path: Path = WEIGHTS) -> CogVideoXTransformer3DModel:
    """The trained transformer, in float32, ready to sample."""
    transformer = new_transformer()
    transformer.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return transformer.eval().requires_grad_(False)


def load_pipeline(path: Path = WEIGHTS) -> CogVideoXPipeline:
    """diffusers' CogVideoXPipeline around the tiny transformer, without VAE and text encoder."""
    return CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=load_transformer(path), scheduler=scheduler()
    )


def no_text(clips: int) -> Tensor:
    """The text that the model knows: none, as one token (clips, 1, 8)."""
    return torch.ones(clips, 1, 8)


def rotary_tables(latent_frames: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines as CogVideoXPipeline makes them, (tokens, head_dim) each."""
    side = SIZE // PATCH
    cosines, sines = get_3d_rotary_pos_embed(
        embed_dim=CONFIG["attention_head_dim"],
        crops_coords=((0, 0), (side, side)),
        grid_size=(side, side),
        temporal_size=latent_frames,
    )
    return cosines, sines


def noise(seeds: Iterable[int], latent_frames: int) -> Tensor:
    """Initial noise of one clip per seed, (clips, latent_frames, 3, height, width)."""
    shape = (1, latent_frames, 3, SIZE, SIZE)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def to_latents(video: Tensor) -> Tensor:
    """Latents (clips, latent_frames, 3, height, width) of videos (clips, 3, latent_frames, height, width) in 0..1."""
    return video.movedim(2, 1) * 2 - 1


def to_video(latents: Tensor) -> Tensor:
    """The inverse of `to_latents`, clamped to 0..1."""
    return (latents.movedim(1, 2) * 0.5 + 0.5).clamp(0, 1)


def sample(
    pipeline: CogVideoXPipeline, initial: Tensor, steps: int = 20, after_step: Callable[[int], None] | None = None
) -> Tensor:
    """Sample videos (clips, 3, latent_frames, height, width) in 0..1 from noise.

    Args:
        pipeline: the pipeline of `load_pipeline`; it may be patched.
        initial: the initial noise: see `noise`.
        steps: number of denoising steps.
        after_step: called after each denoising step with its number.
    """
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = pipeline(
        prompt_embeds=no_text(len(initial)),
        latents=initial,
        guidance_scale=1.0,
        num_inference_steps=steps,
        num_frames=4 * (initial.shape[1] - 1) + 1,
        height=8 * SIZE,
        width=8 * SIZE,
        output_type="latent",
        callback_on_step_end=step_callback(after_step),
    ).frames
    return to_video(latents)
