"""Wan and Wan VACE of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
}


def wan() -> nn.Module:
    """A small Wan."""
    from diffusers import WanTransformer3DModel

    return random_model(lambda: WanTransformer3DModel(**SIZES))


def vace() -> nn.Module:
    """A small Wan VACE, with two blocks in parallel with the first and the third."""
    from diffusers import WanVACETransformer3DModel

    return random_model(lambda: WanVACETransformer3DModel(**SIZES, vace_layers=[0, 2], vace_in_channels=6))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 3, 16),
    }


def vace_inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    control = noise(batch, 6, frames, 2 * height, 2 * width)
    return inputs(frames, height, width, batch) | {
        "control_hidden_states": control,
        "control_hidden_states_scale": torch.ones(2),
    }


EXAMPLES = [Example("wan", wan, inputs), Example("wan-vace", vace, vace_inputs)]
