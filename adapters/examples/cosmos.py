"""Cosmos of diffusers."""

from typing import Any

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model


def cosmos(**changes: Any) -> nn.Module:
    """A small Cosmos 1.0."""
    from diffusers import CosmosTransformer3DModel

    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "adaln_lora_dim": 8,
        "max_size": (32, 32, 32),
        "concat_padding_mask": False,
    }
    return random_model(lambda: CosmosTransformer3DModel(**sizes | changes))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size, at 30 frames per second."""
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch, 1, frames, 1, 1), 0.5),
        "encoder_hidden_states": noise(batch, 3, 16),
        "fps": 30,
    }


EXAMPLES = [
    Example(
        "cosmos",
        cosmos,
        inputs,
        expected_failures={
            "check_scores_depend_on_distance_only": "Cosmos 1.0 adds learned embeddings of absolute positions",
            "check_our_rotation_is_the_models_own": "Cosmos 1.0 adds learned embeddings of absolute positions",
        },
    ),
    Example(
        "cosmos",
        lambda: cosmos(extra_pos_embed_type=None, rope_scale=(20 / 24, 2.0, 2.0)),
        lambda *sizes: inputs(*sizes) | {"fps": None},
        name="cosmos-2",
    ),
]
