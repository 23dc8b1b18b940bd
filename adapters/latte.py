"""Latte in diffusers.

Source: diffusers latte_transformer_3d.py.

It has no rotary embedding: it adds sinusoids over time to the tokens, so only methods that leave positions alone, such
as TSA, can be applied. It takes exactly `video_length` frames, 16 as released. The sinusoids are not among its weights,
so a longer one is ``LatteTransformer3DModel.from_pretrained(..., video_length=64)``.
"""

from freeloc.adapter import Adapter, AttentionSite, TokenGrid

DIFFUSERS = Adapter(
    name="latte",
    family="latte",
    classes=("diffusers.models.transformers.latte_transformer_3d.LatteTransformer3DModel",),
    sites=(AttentionSite("temporal_transformer_blocks.*.attn1", tokens="f"),),
    grid=TokenGrid(patch=(1, "config.patch_size", "config.patch_size")),
    rope=None,
)

ADAPTERS = [DIFFUSERS]
