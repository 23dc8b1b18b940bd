"""Kandinsky 5 and 6 of diffusers. Source: diffusers transformer_kandinsky.py, transformer_kandinsky6.py.

Released models: heads of 64 or 128 channels, split 16 / 24 / 24 or 32 / 48 / 48. Kandinsky 5 rounds rotated queries and
keys to bfloat16 in every dtype of the model. In Kandinsky 6, attention between video and audio is not changed.
"""

from collections.abc import Mapping
from typing import Any

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL, NATIVE

from freeloc.adapter import Adapter, AttentionSite, References, TemporalRope, TokenGrid


def _largest_frames(model: Any, given: Mapping[str, Any]) -> int:
    """The rows of the table, or the frames of this call if the caller has placed them all within it."""
    rows, positions = len(model.visual_rope_embeddings.args_0), given["visual_rope_pos"][0]
    return max(rows, len(positions) if len(positions) > rows and int(positions.max()) < rows else 0)


KANDINSKY_5 = Adapter(
    name="kandinsky5",
    family="kandinsky5",
    classes=("diffusers.models.transformers.transformer_kandinsky.Kandinsky5Transformer3DModel",),
    sites=(AttentionSite("visual_transformer_blocks.*.self_attention", while_running=NATIVE),),
    grid=TokenGrid(
        axes="b f h w c",
        largest_frames=(_largest_frames, "table visual_rope_embeddings.args_0"),
        refused={
            "sparse_params": "NABLA is another sparse attention, over tokens in blocks of 8 x 8. Use a checkpoint "
            "with attention_type 'regular'"
        },
    ),
    rope=TemporalRope(
        channels="config.axes_dims.0", step=lambda model, given: 1 / given["scale_factor"][0], tables="rotary_emb"
    ),
    heads="visual_transformer_blocks.0.self_attention.num_heads",
    head_dim="visual_transformer_blocks.0.self_attention.query_norm.normalized_shape.0",
    other_attention=("text_transformer_blocks", "visual_transformer_blocks.*.cross_attention"),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

KANDINSKY_6 = Adapter(
    name="kandinsky6",
    family="kandinsky6",
    classes=("diffusers.models.transformers.transformer_kandinsky6.Kandinsky6Transformer3DModel",),
    sites=(AttentionSite("visual_transformer_blocks.*.video_dec_block.self_attention", while_running=NATIVE),),
    grid=TokenGrid(
        axes="b f h w c",
        largest_frames=("visual_rope_embeddings.angles_0.shape.0", "table visual_rope_embeddings.angles_0"),
        references=References(place="last", frames=lambda given: int(given.get("visual_rope_pos") is not None)),
        refused={
            "visual_rope_pos": "a reference frame may follow the last one, at the time of the first. Generate "
            "without an image"
        },
    ),
    rope=TemporalRope(
        channels="config.axes_dims.0", step=lambda model, given: 1 / model.scale_factor[0], tables="rotary_emb"
    ),
    heads="visual_transformer_blocks.0.video_dec_block.self_attention.num_heads",
    head_dim="visual_transformer_blocks.0.video_dec_block.self_attention.query_norm.normalized_shape.0",
    other_attention=(
        "video_text_transformer_blocks",
        "audio_text_transformer_blocks",
        "visual_transformer_blocks.*.video_dec_block.cross_attention",
        "visual_transformer_blocks.*.audio_dec_block",
        "visual_transformer_blocks.*.va_cross_attention",
        "visual_transformer_blocks.*.av_cross_attention",
    ),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [KANDINSKY_5, KANDINSKY_6]
