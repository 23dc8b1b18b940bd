"""HunyuanVideo and HunyuanVideo 1.5 of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 12,
    "rope_axes_dim": (8, 8, 8),
}


def _text_mask(batch: int, tokens: int) -> torch.Tensor:
    """A mask with fewer valid text tokens in each sample than in the one before."""
    return torch.arange(tokens) < torch.tensor([[tokens - 2 * sample] for sample in range(batch)])


def video(**changes: Any) -> nn.Module:
    """A small HunyuanVideo."""
    from diffusers import HunyuanVideoTransformer3DModel

    sizes = SIZES | {"num_single_layers": 2, "pooled_projection_dim": 8, "guidance_embeds": False}
    return random_model(lambda: HunyuanVideoTransformer3DModel(**sizes | changes))


def video_inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 5, 12),
        "encoder_attention_mask": _text_mask(batch, 5),
        "pooled_projections": noise(batch, 8),
    }


def video_15() -> nn.Module:
    """A small HunyuanVideo 1.5."""
    from diffusers import HunyuanVideo15Transformer3DModel

    sizes = SIZES | {"in_channels": 4, "text_embed_2_dim": 8, "image_embed_dim": 8, "task_type": "t2v"}
    return random_model(lambda: HunyuanVideo15Transformer3DModel(**sizes))


def video_15_inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, 4, frames, height, width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 5, 12),
        "encoder_attention_mask": _text_mask(batch, 5).float(),
        "encoder_hidden_states_2": noise(batch, 3, 8),
        "encoder_attention_mask_2": _text_mask(batch, 3).float(),
        "image_embeds": torch.zeros(batch, 4, 8),
    }


EXAMPLES = [
    Example("hunyuan-video", video, video_inputs),
    Example(
        "hunyuan-video", lambda: video(image_condition_type="token_replace"), video_inputs, name="hunyuan-video-i2v"
    ),
    Example("hunyuan-video-1.5", video_15, video_15_inputs),
]
