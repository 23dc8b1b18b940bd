"""Latte of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "cross_attention_dim": 32,
    "caption_channels": 12,
    "sample_size": 8,
    "patch_size": 2,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "video_length": 32,
}


def _cut_positions(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Use the positions of a model that was built for the number of frames of this call."""
    model.temp_pos_embed = model.all_positions[:, : kwargs["hidden_states"].shape[2]]


def latte() -> nn.Module:
    """A small Latte, which supports any number of frames up to 32."""
    from diffusers import LatteTransformer3DModel

    model = random_model(lambda: LatteTransformer3DModel(**SIZES))
    model.all_positions = model.temp_pos_embed
    model.register_forward_pre_hook(_cut_positions, with_kwargs=True)
    return model


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 12),
    }


EXAMPLES = [Example("latte", latte, inputs)]
