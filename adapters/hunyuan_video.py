"""HunyuanVideo and HunyuanVideo 1.5: diffusers' ports and the original repository.

Sources: diffusers transformer_hunyuan_video.py, transformer_hunyuan_video15.py; Tencent/HunyuanVideo
hyvideo/modules/models.py, attenion.py; Tencent-Hunyuan/HunyuanVideo-1.5 hyvideo/models/transformers.
"""

from dataclasses import replace
from typing import Any

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL

from freeloc.adapter import Adapter, AttentionSite, Kernel, TemporalRope, TokenGrid

NATIVE = {"processor._attention_backend": "diffusers.models.attention_dispatch:AttentionBackendName.NATIVE"}

# Released models: heads of 128 channels, split 16 / 56 / 56 for time, height and width.
ROPE = TemporalRope(channels="config.rope_axes_dim.0", theta="config.rope_theta", tables="image_rotary_emb")

TEXT: Any = {"text": "last", "text_tokens": "encoder_hidden_states"}

DIFFUSERS = Adapter(
    name="hunyuan-video",
    family="hunyuan-video",
    classes=("diffusers.models.transformers.transformer_hunyuan_video.HunyuanVideoTransformer3DModel",),
    sites=(
        AttentionSite("transformer_blocks.*.attn", **TEXT, while_running=NATIVE),
        AttentionSite("single_transformer_blocks.*.attn", **TEXT, while_running=NATIVE),
    ),
    grid=TokenGrid(patch=("config.patch_size_t", "config.patch_size", "config.patch_size")),
    rope=ROPE,
    other_attention=("context_embedder",),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

HUNYUAN_15 = replace(
    DIFFUSERS,
    name="hunyuan-video-1.5",
    family="hunyuan-video-1.5",
    classes=("diffusers.models.transformers.transformer_hunyuan_video15.HunyuanVideo15Transformer3DModel",),
    sites=DIFFUSERS.sites[:1],
)

ATTENTION = Kernel(
    function="attention",
    layout="b l h d",
    output="b l (h d)",
    arguments=(
        *("q", "k", "v", "mode", "drop_rate", "attn_mask", "causal"),
        *("cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv", "batch_size"),
    ),
    query="q",
    key="k",
    value="v",
    segments="cu_seqlens_kv",
    # The blocks call it in this mode only. Other modes use attn_mask instead of the segments.
    neutral={"mode": "flash", "drop_rate": 0, "attn_mask": None, "causal": False},
)

ORIGINAL = Adapter(
    name="hunyuan-video-original",
    family="hunyuan-video",
    classes=("hyvideo.modules.models.HYVideoDiffusionTransformer",),
    sites=(
        AttentionSite("double_blocks.*", kernel=ATTENTION, text="last", text_tokens="txt"),
        AttentionSite("single_blocks.*", kernel=ATTENTION, text="last", text_tokens="txt_len", joint=True),
    ),
    grid=TokenGrid("x", patch="patch_size"),
    rope=TemporalRope(channels="rope_dim_list.0", theta=256.0, tables="freqs_cis"),
    heads="heads_num",
    head_dim="double_blocks.0.img_attn_q_norm.weight.shape.0",
)

# Its function gets pairs of video and text. Of its modes, these attend to everything that the mask shows.
DENSE_MODES = ("torch", "flash", "flash2", "flash3")
PARALLEL_ATTENTION = tuple(
    Kernel(
        function="parallel_attention",
        layout="b l h d",
        output="b l (h d)",
        arguments=(*("q", "k", "v", "img_q_len", "img_kv_len", "attn_mode", "text_mask", "attn_param", "block_idx"),),
        query=("q.0", "q.1"),
        key=("k.0", "k.1"),
        value=("v.0", "v.1"),
        mask="text_mask",
        mask_axes="b t",
        required={"attn_mode": mode},
    )
    for mode in DENSE_MODES
)

ORIGINAL_15 = replace(
    ORIGINAL,
    name="hunyuan-video-1.5-original",
    family="hunyuan-video-1.5",
    classes=("hyvideo.models.transformers.hunyuanvideo_1_5_transformer.HunyuanVideo_1_5_DiffusionTransformer",),
    sites=(
        AttentionSite("double_blocks.*", kernel=PARALLEL_ATTENTION, text="last", text_tokens="txt"),
        AttentionSite("single_blocks.*", kernel=PARALLEL_ATTENTION, text="last", text_tokens="txt_len", joint=True),
    ),
    grid=TokenGrid(patch="patch_size"),
    rope=TemporalRope(channels="rope_dim_list.0", theta="rope_theta", tables="freqs_cis"),
)

ADAPTERS = [DIFFUSERS, HUNYUAN_15, ORIGINAL, ORIGINAL_15]
