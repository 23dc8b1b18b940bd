"""Cosmos 1.0, 2 and 2.5 of diffusers. Source: diffusers transformer_cosmos.py.

Its attention uses the active attention backend of diffusers, which must be a native one. Cosmos 1.0 also adds learned
embeddings of absolute positions, which are not changed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid


def _frequencies(model: Any) -> Tensor:
    exponents = torch.arange(0, model.rope.dim_t, 2, dtype=torch.float64) / model.rope.dim_t
    base: float = 10_000.0 * model.rope.t_ntk_factor
    frequencies: Tensor = base**-exponents
    return frequencies


def _positions_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    """If a frame rate is given, positions are frames at 24 frames per second."""
    return float(model.rope.base_fps / given["fps"]) if given.get("fps") is not None else 1.0


COSMOS = Adapter(
    name="cosmos",
    family="cosmos",
    classes=("diffusers.models.transformers.transformer_cosmos.CosmosTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1"),),
    grid=TokenGrid(),
    rope=TemporalRope(
        channels=lambda head_dim: head_dim - 4 * (head_dim // 6),
        pairing="(two pair)",
        within=lambda head_dim: head_dim,
        frequencies_from=_frequencies,
        step=_positions_per_frame,
        trained_step=1.0,
        unit="frames at 24 per second",
        tables="image_rotary_emb",
    ),
)

ADAPTERS = [COSMOS]
