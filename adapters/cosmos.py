"""Cosmos 1.0, 2 and 2.5 of diffusers. Source: diffusers transformer_cosmos.py, controlnet_cosmos.py.

Its attention uses the active attention backend of diffusers, which must be a native one. Cosmos 1.0 also adds learned
embeddings of absolute positions, which are not changed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL
from torch import Tensor

from freeloc.adapter import Adapter, AttentionSite, Beside, TemporalRope, TokenGrid


def _frequencies(model: Any) -> Tensor:
    exponents = torch.arange(0, model.rope.dim_t, 2, dtype=torch.float64) / model.rope.dim_t
    base: float = 10_000.0 * model.rope.t_ntk_factor
    frequencies: Tensor = base**-exponents
    return frequencies


def _positions_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    """If a frame rate is given, positions are frames at 24 frames per second."""
    return float(model.rope.base_fps / given["fps"]) if given.get("fps") is not None else 1.0


def _largest_frames(model: Any, given: Mapping[str, Any]) -> int:
    """RoPE has one table for all axes; the learned embedding of Cosmos 1.0 has one for time."""
    learned, rows = model.learnable_pos_embed, int(max(model.rope.max_size))
    return rows if learned is None else min(len(learned.pos_emb_t), rows)


LARGEST = (_largest_frames, "max_size")
CONTROL = "block_controlnet_hidden_states"

COSMOS = Adapter(
    name="cosmos",
    family="cosmos",
    classes=("diffusers.models.transformers.transformer_cosmos.CosmosTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1"),),
    grid=TokenGrid(
        largest_frames=LARGEST,
        refused={
            CONTROL: "it is the output of a ControlNet, which this patch does not correct. Patch the pipeline, which "
            f"has both; or leave the ControlNet as it is: leave_uncorrected=['{CONTROL}']"
        },
    ),
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
    other_attention=("transformer_blocks.*.attn2",),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

# Its blocks run in parallel with every n-th block of the transformer, on the same positions.
CONTROLNET = replace(
    COSMOS,
    name="cosmos-controlnet",
    classes=("diffusers.models.controlnets.controlnet_cosmos.CosmosControlNetModel",),
    sites=(AttentionSite("control_blocks.*.attn1"),),
    grid=TokenGrid("controls_latents", largest_frames=LARGEST),
    other_attention=("control_blocks.*.attn2",),
    beside=Beside("cosmos", layers="config.controlnet_block_every_n", argument=CONTROL),
)

ADAPTERS = [COSMOS, CONTROLNET]
