"""LTX-2 in Lightricks' own package, ltx-core.

Its positions are seconds, in an attribute of the argument `video`, with the start and the end of each patch. RoPE is
that of diffusers' port, see ltx.py. Source: Lightricks/LTX-2, packages/ltx-core/src/ltx_core/model/transformer.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter import Adapter, AttentionSite, Kernel, TemporalRope, TokenGrid
from freeloc.adapter.reader import times_apart

# Without a mask. With one (keyframes with strengths of their own), another attribute is called, which is refused.
ATTENTION = Kernel(
    function=".attention_function",
    layout="b l (h d)",
    arguments=("q", "k", "v", "heads"),
    query="q",
    key="k",
    value="v",
    heads="heads",
)


def _frequencies(model: Any) -> Tensor:
    """By head. The pairs are: some that never rotate, then time, row and column alternately."""
    heads, channels = int(model.num_attention_heads), int(model.inner_dim)
    dtype = torch.float64 if model.double_precision_rope else torch.float32
    exponents = torch.linspace(0, 1, channels // 6, dtype=dtype)
    waves = float(model.positional_embedding_theta) ** exponents * (math.pi / 2)
    found = torch.zeros(channels // 2, dtype=torch.float32)
    found[channels % 6 // 2 :: 3] = 2 * waves.float()  # the model computes and uses them in float32
    return found.view(heads, -1) / float(model.positional_embedding_max_pos[0])


def _seconds_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    return times_apart(given["video"].positions)


LTX_CORE = Adapter(
    name="ltx-core",
    family="ltx-2",
    classes=("ltx_core.model.transformer.model.LTXModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1", kernel=ATTENTION, idle="all_perturbed"),),
    grid=TokenGrid("video.positions", patch=(1, 1, 1), coordinates="video.positions"),
    rope=TemporalRope(
        lambda head_dim: head_dim,
        pairing="rope_type.value=split",
        frequencies_from=_frequencies,
        step=_seconds_per_frame,
        trained_step=8 / 24,  # 8 video frames in a latent frame, at 24 per second, as in the pipelines
        unit="seconds",
        tables="pe",
    ),
    heads="num_attention_heads",
    head_dim="transformer_blocks.0.attn1.dim_head",
    rounding=1e-3,  # it computes angles in float32
    other_attention=(
        "transformer_blocks.*.attn2",
        "transformer_blocks.*.audio_attn1",
        "transformer_blocks.*.audio_attn2",
        "transformer_blocks.*.audio_to_video_attn",
        "transformer_blocks.*.video_to_audio_attn",
    ),
)

ADAPTERS = [LTX_CORE]
