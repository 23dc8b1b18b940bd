"""EasyAnimate 5.1 in diffusers.

Source: diffusers transformer_easyanimate.py.
"""

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid

# As in CogVideoX: heads of 64 channels are split 16 / 24 / 24, temporal positions are 0, 1, 2 ...
DIFFUSERS = Adapter(
    name="easyanimate",
    family="easyanimate",
    classes=("diffusers.models.transformers.transformer_easyanimate.EasyAnimateTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1", text="first", text_tokens="encoder_hidden_states"),),
    grid=TokenGrid(patch=(1, "config.patch_size", "config.patch_size")),
    rope=TemporalRope(channels=lambda head_dim: head_dim // 4, tables="image_rotary_emb"),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [DIFFUSERS]
