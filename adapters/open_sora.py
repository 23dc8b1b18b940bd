"""Open-Sora 2.0 (MMDiT) and 1.2 (STDiT3), the original repository.

Sources: hpcaitech/Open-Sora, main: opensora/models/mmdit/model.py, layers.py, math.py; tag v1.2.0:
opensora/models/stdit/stdit3.py, opensora/models/layers/blocks.py.
"""

from freeloc.adapter import MATMUL, Adapter, AttentionSite, Kernel, TemporalRope, TokenGrid

# The function that `attention` of the same file calls once it has rotated queries and keys.
FLASH_ATTENTION = Kernel(
    function="opensora.models.mmdit.math:flash_attn_func",
    layout="b l h d",
    arguments=("q", "k", "v"),
    query="q",
    key="k",
    value="v",
)

OPEN_SORA_2 = Adapter(
    name="open-sora-2",
    family="open-sora-2",
    classes=("opensora.models.mmdit.model.MMDiTModel",),
    sites=(
        AttentionSite("double_blocks.*", kernel=FLASH_ATTENTION, text="first", text_tokens="txt"),
        AttentionSite(
            "single_blocks.*", kernel=FLASH_ATTENTION, text="first", text_tokens="transformer.txt", joint=True
        ),
    ),
    # Coordinates count patches, from 0.
    grid=TokenGrid("img_ids", axes="sample token (f h w)", patch=(1, 1, 1)),
    # Released models: heads of 128 channels, 16 / 56 / 56 for time, height and width, paired (i, i + 64).
    rope=TemporalRope(
        channels="config.axes_dim.0",
        pairing="config.use_liger_rope",
        within=lambda head_dim: head_dim,
        theta="config.theta",
        tables="pe",
    ),
    heads="num_heads",
    head_dim="pe_embedder.dim",
)

OPEN_SORA_12 = Adapter(
    name="open-sora-1.2",
    family="open-sora-1.2",
    classes=("opensora.models.stdit.stdit3.STDiT3",),
    sites=(
        AttentionSite(
            "temporal_blocks.*.attn",
            kernel=MATMUL,
            tokens="f",
            while_running={"enable_flash_attn": "builtins:False"},
        ),
    ),
    grid=TokenGrid("x", patch="patch_size"),
    # The frequencies are a parameter, so they are rounded in a half-precision model.
    rope=TemporalRope(channels=lambda head_dim: head_dim, frequencies_from=lambda model: model.rope.freqs),
    heads="num_heads",
    head_dim="temporal_blocks.0.attn.head_dim",
    other_attention=("spatial_blocks.*.attn",),  # within one frame
)

ADAPTERS = [OPEN_SORA_2, OPEN_SORA_12]
