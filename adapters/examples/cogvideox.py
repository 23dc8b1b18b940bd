"""CogVideoX of diffusers: 5b, 1.5 and 2b."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.testing import Example, noise, random_model

SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 3,
    "max_text_seq_length": 5,
    "sample_height": 12,
    "sample_width": 16,
    "patch_size": 2,
    "patch_size_t": None,
    "use_rotary_positional_embeddings": True,
}
VERSION_15 = SIZES | {"patch_size_t": 2, "patch_bias": False}
WITHOUT_ROPE = SIZES | {"use_rotary_positional_embeddings": False}


def rotary_tables(sizes: dict[str, Any], frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The rotary tables of the pipeline for these numbers of latent frames, and of rows and columns of tokens."""
    from diffusers import CogVideoXPipeline

    transformer = SimpleNamespace(config=SimpleNamespace(**sizes))
    itself: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=transformer)
    make = CogVideoXPipeline._prepare_rotary_positional_embeddings
    tables: tuple[Tensor, Tensor] = make(itself, 16 * height, 16 * width, frames, torch.device("cpu"))
    return tables


def cogvideox(sizes: dict[str, Any]) -> nn.Module:
    """A small CogVideoX."""
    from diffusers import CogVideoXTransformer3DModel

    return random_model(lambda: CogVideoXTransformer3DModel(**sizes))


def inputs(sizes: dict[str, Any], frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    latent_frames = frames * (sizes["patch_size_t"] or 1)
    given = {
        "hidden_states": noise(batch, latent_frames, 4, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 12),
    }
    if not sizes["use_rotary_positional_embeddings"]:
        return given
    return given | {"image_rotary_emb": rotary_tables(sizes, latent_frames, height, width)}


EXAMPLES = [
    Example("cogvideox", lambda: cogvideox(SIZES), lambda *grid: inputs(SIZES, *grid)),
    Example("cogvideox", lambda: cogvideox(VERSION_15), lambda *grid: inputs(VERSION_15, *grid), name="cogvideox-1.5"),
    Example(
        "cogvideox", lambda: cogvideox(WITHOUT_ROPE), lambda *grid: inputs(WITHOUT_ROPE, *grid), name="cogvideox-2b"
    ),
]
