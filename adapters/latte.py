"""Latte in diffusers.

Source: diffusers latte_transformer_3d.py.

It has no rotary embedding, but adds sinusoids over time to the tokens. So it supports only methods that do not change
positions, such as TSA. It requires exactly `video_length` frames, 16 as released. The sinusoids are not weights, so for
longer videos load it with ``LatteTransformer3DModel.from_pretrained(..., video_length=64)``.
"""

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL

from freeloc.adapter import Adapter, AttentionSite, TokenGrid

DIFFUSERS = Adapter(
    name="latte",
    family="latte",
    classes=("diffusers.models.transformers.latte_transformer_3d.LatteTransformer3DModel",),
    sites=(AttentionSite("temporal_transformer_blocks.*.attn1", tokens="f"),),
    grid=TokenGrid(
        patch=(1, "config.patch_size", "config.patch_size"), largest_frames=("temp_pos_embed.shape.1", "video_length")
    ),
    rope=None,
    other_attention=("transformer_blocks",),  # within one frame, and to the text
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [DIFFUSERS]
