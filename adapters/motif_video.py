"""Motif-Video of diffusers. Source: diffusers transformer_motif_video.py.

Its last single-stream blocks may be decoders: there the video is followed by a second stream of as many tokens, what
the blocks before made of it, which no RoPE turns. Tokens without a position are what text is elsewhere, and are treated
so: every token sees all of them, and they see every token.
"""

from freeloc_adapters.wan import NATIVE

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid

MOTIF_VIDEO = Adapter(
    name="motif-video",
    family="motif-video",
    classes=("diffusers.models.transformers.transformer_motif_video.MotifVideoTransformer3DModel",),
    sites=(
        AttentionSite("transformer_blocks.*.attn", text="last", while_running=NATIVE),
        AttentionSite("single_transformer_blocks.*.attn", text="last", while_running=NATIVE),
    ),
    grid=TokenGrid(patch=("config.patch_size_t", "config.patch_size", "config.patch_size")),
    rope=TemporalRope(channels="config.rope_axes_dim.0", theta="config.rope_theta"),
)

ADAPTERS = [MOTIF_VIDEO]
