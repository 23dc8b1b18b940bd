"""Motif-Video of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model


def motif_video(**changes: Any) -> nn.Module:
    """A small Motif-Video."""
    from diffusers import MotifVideoTransformer3DModel

    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 1,
        "num_single_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 12,
        "rope_axes_dim": (8, 8, 8),
        "enable_text_cross_attention_dual": True,
        "enable_text_cross_attention_single": True,
    }
    return random_model(lambda: MotifVideoTransformer3DModel(**sizes | changes))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    valid = torch.tensor([[5 - 2 * sample] for sample in range(batch)])
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 12),
        "encoder_attention_mask": (torch.arange(5) < valid).long(),
    }


EXAMPLES = [Example("motif-video", motif_video, inputs)]
