"""LTX-Video and LTX-2 of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 20,
    "cross_attention_dim": 40,
    "num_layers": 2,
    "caption_channels": 12,
}


def ltx() -> nn.Module:
    """A small LTX-Video."""
    from diffusers import LTXVideoTransformer3DModel

    return random_model(lambda: LTXVideoTransformer3DModel(**SIZES))


def ltx_2(**changes: Any) -> nn.Module:
    """A small LTX-2."""
    from diffusers import LTX2VideoTransformer3DModel

    audio = {
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
    }
    return random_model(lambda: LTX2VideoTransformer3DModel(**SIZES, **audio, **changes))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size, at 25 frames per second."""
    return {
        "hidden_states": noise(batch, frames * height * width, 4),
        "encoder_hidden_states": noise(batch, 3, 12),
        "timestep": torch.full((batch,), 500),
        "encoder_attention_mask": torch.ones(batch, 3, dtype=torch.long),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def inputs_2(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size, at 25 frames per second, with sound."""
    given = inputs(frames, height, width, batch)
    del given["rope_interpolation_scale"]
    return given | {
        "timestep": torch.full((batch, frames * height * width), 500),
        "audio_timestep": torch.full((batch,), 500),
        "sigma": torch.full((batch,), 500),
        "fps": 25.0,
        "audio_hidden_states": noise(batch, 5, 4),
        "audio_encoder_hidden_states": noise(batch, 3, 12),
        "audio_num_frames": 5,
    }


# Both compute angles of up to 1.6e4 radians in float32.
LIKE_BOTH: dict[str, Any] = {"axes": "b (f h w) c", "tolerance": 2e-3}

EXAMPLES = [
    Example("ltx", ltx, inputs, **LIKE_BOTH),
    Example("ltx-2", ltx_2, inputs_2, **LIKE_BOTH),
    Example("ltx-2", lambda: ltx_2(rope_type="split"), inputs_2, name="ltx-2-split", **LIKE_BOTH),
]
