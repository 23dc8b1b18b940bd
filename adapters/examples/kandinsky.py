"""Kandinsky 5 and 6 of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 12,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": 48,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (8, 8, 8),
    "visual_cond": False,
}


def kandinsky_5() -> nn.Module:
    """A small Kandinsky 5."""
    from diffusers import Kandinsky5Transformer3DModel

    return random_model(lambda: Kandinsky5Transformer3DModel(**SIZES))


def kandinsky_6() -> nn.Module:
    """A small Kandinsky 6, with rotated attention between video and audio."""
    from diffusers import Kandinsky6Transformer3DModel

    changes = {"in_audio_dim": 4, "out_audio_dim": 4, "ca_rope": True, "scale_factor": (1.5, 2.0, 2.0)}
    return random_model(lambda: Kandinsky6Transformer3DModel(**SIZES, **changes))


def inputs_5(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    return {
        "hidden_states": noise(batch, frames, 2 * height, 2 * width, 4),
        "encoder_hidden_states": noise(batch, 3, 12),
        "timestep": torch.full((batch,), 500.0),
        "pooled_projections": noise(batch, 8),
        "visual_rope_pos": (torch.arange(frames), torch.arange(height), torch.arange(width)),
        "text_rope_pos": torch.arange(3),
        "scale_factor": (1.5, 2.0, 2.0),
    }


def inputs_6(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size, with sound."""
    given = inputs_5(frames, height, width, batch)
    names = ("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections")
    return {name: given[name] for name in names} | {"audio_hidden_states": noise(batch, 5, 4)}


EXAMPLES = [
    Example("kandinsky5", kandinsky_5, inputs_5, tolerance=1e-2),  # it rounds to bfloat16
    Example("kandinsky6", kandinsky_6, inputs_6),
]
