"""Allegro of diffusers."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "cross_attention_dim": 48,
    "caption_channels": 12,
    "sample_height": 8,
    "sample_width": 12,
}
ROPE = {"interpolation_scale_t": 2.2, "interpolation_scale_h": 2.0, "interpolation_scale_w": 2.0}


def allegro() -> nn.Module:
    """A small Allegro."""
    from diffusers import AllegroTransformer3DModel

    return random_model(lambda: AllegroTransformer3DModel(**SIZES, **ROPE))


def rotary_tables(frames: int, height: int, width: int, batch: int) -> Any:
    """The rotary tables of the pipeline for these numbers of latent frames, and of rows and columns of tokens."""
    from diffusers import AllegroPipeline

    config = SimpleNamespace(patch_size=2, **SIZES, **ROPE)
    itself: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=SimpleNamespace(config=config))
    make = AllegroPipeline._prepare_rotary_positional_embeddings
    return make(itself, batch, 16 * height, 16 * width, frames, torch.device("cpu"))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 12),
        "encoder_attention_mask": torch.arange(5) < torch.tensor([[5 - 2 * sample] for sample in range(batch)]),
        "image_rotary_emb": rotary_tables(frames, height, width, batch),
    }


EXAMPLES = [Example("allegro", allegro, inputs)]
