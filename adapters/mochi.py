"""Mochi 1 in diffusers.

Sources: diffusers transformer_mochi.py, MochiAttnProcessor2_0.
"""

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid

# Learned frequencies (3, heads, pairs) for time, height and width: all three rotate all pairs of a head.
DIFFUSERS = Adapter(
    name="mochi",
    family="mochi",
    classes=("diffusers.models.transformers.transformer_mochi.MochiTransformer3DModel",),
    sites=(
        AttentionSite(
            "transformer_blocks.*.attn1", text="last", text_tokens="encoder_hidden_states", text_mask="attention_mask"
        ),
    ),
    grid=TokenGrid(patch=(1, "config.patch_size", "config.patch_size")),
    rope=TemporalRope(
        channels=lambda head_dim: head_dim,
        frequencies_from=lambda model: model.pos_frequencies[0],
        tables="image_rotary_emb",
    ),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [DIFFUSERS]
