"""EasyAnimate of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "text_embed_dim_t5": 10,
    "num_layers": 3,
    "mmdit_layers": 2,  # the third layer shares its projections between text and video
}


def easyanimate() -> nn.Module:
    """A small EasyAnimate with both kinds of layers."""
    from diffusers import EasyAnimateTransformer3DModel

    return random_model(lambda: EasyAnimateTransformer3DModel(**SIZES))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 12),
        "encoder_hidden_states_t5": noise(batch, 3, 10),
    }


EXAMPLES = [Example("easyanimate", easyanimate, inputs)]
