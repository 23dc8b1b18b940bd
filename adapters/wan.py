"""Wan 2.1 and 2.2: diffusers' port (text, image, first-last-frame, TI2V-5B, VACE) and the original repository.

Sources: diffusers transformer_wan.py, transformer_wan_vace.py; Wan-Video/Wan2.1 wan/modules/model.py.
"""

from dataclasses import replace

from freeloc_adapters.diffusers_hooks import BYPASSES

from freeloc.adapter import (
    Adapter,
    AttentionSite,
    ContextParallel,
    Kernel,
    References,
    Refusal,
    TemporalRope,
    TokenGrid,
)

# Heads of 128 channels are split 44 / 42 / 42 for time, height and width. In general, time has the remainder.
ROPE = TemporalRope(channels=lambda head_dim: head_dim - 4 * (head_dim // 6), tables="rotary_emb")

# The model may use any attention backend of diffusers. Only PyTorch's own function can be intercepted.
NATIVE = {"processor._attention_backend": "diffusers.models.attention_dispatch:AttentionBackendName.NATIVE"}

# Attributes of processors, set by `enable_parallelism` of diffusers and by cache-dit.
CONTEXT_PARALLEL = ContextParallel(
    ulysses=("processor._parallel_config.context_parallel_config._ulysses_mesh", "processor._cp_config._ulysses_mesh"),
    ring=("processor._parallel_config.context_parallel_config._ring_mesh", "processor._cp_config._ring_mesh"),
)

# Each row of the tables is one position on any axis.
ROWS = ("rope.freqs_cos.shape.0", "rope_max_seq_len")

DIFFUSERS = Adapter(
    name="wan",
    family="wan",
    classes=("diffusers.models.transformers.transformer_wan.WanTransformer3DModel",),
    sites=(AttentionSite("blocks.*.attn1", while_running=NATIVE),),
    grid=TokenGrid(largest_frames=ROWS),
    rope=ROPE,
    other_attention=("blocks.*.attn2",),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

# Reference images come before the video. Their number is in no argument of the transformer: it is a variable of the
# pipeline, or in the state that the blocks of a modular pipeline share.
IMAGES = References(caller=("num_reference_images", "state.num_reference_images"))

VACE = replace(
    DIFFUSERS,
    name="wan-vace",
    grid=TokenGrid(references=IMAGES, largest_frames=ROWS),
    classes=("diffusers.models.transformers.transformer_wan_vace.WanVACETransformer3DModel",),
    sites=(
        *DIFFUSERS.sites,
        AttentionSite("vace_blocks.*.attn1", layers="config.vace_layers", while_running=NATIVE),
    ),
    other_attention=("blocks.*.attn2", "vace_blocks.*.attn2"),
)

FLASH_ATTENTION = Kernel(
    function="flash_attention",
    layout="b l h d",
    arguments=(
        *("q", "k", "v", "q_lens", "k_lens", "dropout_p", "softmax_scale", "q_scale", "causal", "window_size"),
        *("deterministic", "dtype", "version"),
    ),
    query="q",
    key="k",
    value="v",
    scale="softmax_scale",
    valid_keys="k_lens",
    neutral={"q_lens": None, "dropout_p": 0.0, "q_scale": None, "causal": False, "window_size": (-1, -1)},
    also="wan.distributed.ulysses:flash_attention",  # of its own sequence parallelism: a process has some heads
)

ORIGINAL = Adapter(
    name="wan-original",
    family="wan",
    classes=("wan.modules.model.WanModel",),
    sites=(AttentionSite("blocks.*.self_attn", kernel=FLASH_ATTENTION),),
    grid=TokenGrid(
        "grid_sizes", axes="sample (f h w)", of="attention", largest_frames=("freqs.shape.0", "table freqs")
    ),
    rope=replace(ROPE, tables="freqs", table_rows="position"),
    heads="num_heads",
    head_dim="blocks.0.self_attn.head_dim",
    other_attention=("blocks.*.cross_attn",),
)

ORIGINAL_VACE = replace(
    ORIGINAL,
    name="wan-original-vace",
    grid=replace(ORIGINAL.grid, references=References()),
    classes=("wan.modules.vace_model.VaceWanModel",),
    sites=(
        *ORIGINAL.sites,
        AttentionSite("vace_blocks.*.self_attn", layers="vace_layers", kernel=FLASH_ATTENTION),
    ),
    other_attention=("blocks.*.cross_attn", "vace_blocks.*.cross_attn"),
)

# The picture of the character is the first latent frame, at position 0.
ORIGINAL_ANIMATE = replace(
    ORIGINAL,
    name="wan-original-animate",
    family="wan-animate",
    grid=replace(ORIGINAL.grid, references=References(frames=1)),
    classes=("wan.modules.animate.model_animate.WanAnimateModel",),
)

S2V = Refusal(
    "wan-original-s2v",
    ("wan.modules.s2v.model_s2v.WanModel_S2V",),
    "the reference image, at the position of frame 30, and earlier frames, pooled and at positions before the video, "
    "are in its sequence. It generates long videos itself, clip by clip; to correct attention, use Wan",
)

ADAPTERS = [DIFFUSERS, VACE, ORIGINAL, ORIGINAL_VACE, ORIGINAL_ANIMATE, S2V]
