"""Mochi of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "num_layers": 2,
    "pooled_projection_dim": 12,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
}


def mochi() -> nn.Module:
    """A small Mochi, whose frequencies differ by axis and by head."""
    from diffusers import MochiTransformer3DModel

    model = random_model(lambda: MochiTransformer3DModel(**SIZES))
    axis, head, pair = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(12), indexing="ij")
    model.get_parameter("pos_frequencies").copy_((1 + axis + 2 * head) * 10 ** (-pair / 4 - axis))
    return model


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size, with fewer valid text tokens in each sample."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 16),
        "encoder_attention_mask": torch.arange(5) < torch.tensor([[5 - 2 * sample] for sample in range(batch)]),
    }


EXAMPLES = [Example("mochi", mochi, inputs)]
