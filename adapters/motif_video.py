"""Motif-Video of diffusers. Source: diffusers transformer_motif_video.py.

Its last single-stream blocks may be decoders. There, a second stream of as many tokens follows the video: the output of
the previous blocks, without RoPE. These tokens have no position, so they are treated like text: every token attends to
all of them, and they attend to every token.
"""

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.hunyuan_video import TEXT
from freeloc_adapters.wan import CONTEXT_PARALLEL, NATIVE

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid

MOTIF_VIDEO = Adapter(
    name="motif-video",
    family="motif-video",
    classes=("diffusers.models.transformers.transformer_motif_video.MotifVideoTransformer3DModel",),
    sites=(
        AttentionSite("transformer_blocks.*.attn", **TEXT, while_running=NATIVE),
        AttentionSite("single_transformer_blocks.*.attn", **TEXT, while_running=NATIVE),
    ),
    grid=TokenGrid(patch=("config.patch_size_t", "config.patch_size", "config.patch_size")),
    rope=TemporalRope(channels="config.rope_axes_dim.0", theta="config.rope_theta", tables="image_rotary_emb"),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [MOTIF_VIDEO]
