"""Wan in musubi-tuner, for inference and training.

Source: kohya-ss/musubi-tuner, src/musubi_tuner/wan/modules/model.py, attention.py.
"""

from dataclasses import replace

from freeloc_adapters.wan import FLASH_ATTENTION, ORIGINAL, ROPE

from freeloc.adapter import AttentionSite, TokenGrid

# Its kernel gets queries, keys and values as one list.
KERNEL = replace(
    FLASH_ATTENTION,
    arguments=("qkv", *FLASH_ATTENTION.arguments[3:], "deterministic", "dtype", "version", "attn_mode", "split_attn"),
    query="qkv.0",
    key="qkv.1",
    value="qkv.2",
    also="",
)

WAN = replace(
    ORIGINAL,
    name="musubi-wan",
    classes=("musubi_tuner.wan.modules.model.WanModel",),
    sites=(AttentionSite("blocks.*.self_attn", kernel=KERNEL),),
    grid=TokenGrid(
        "grid_sizes",
        axes="sample (f h w)",
        of="attention",
        refused={"f_indices": "each sample has frames at times of its own"},
    ),
    # A table of all tokens for each sample. Samples of one size have the same.
    rope=replace(ROPE, tables="freqs", tables_from=lambda tables: tables[0]),
    rounding=1e-2,  # all its kernels round queries, keys and values to bfloat16, also in a float32 model
)

ADAPTERS = [WAN]
