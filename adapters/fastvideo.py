"""Wan in FastVideo, with its attention backend TORCH_SDPA, on one or several devices.

Source: fastvideo 0.2.1, fastvideo/models/dits/wanvideo.py, fastvideo/attention/layer.py. The attention module gets
queries and keys before they are rotated, and the tokens of its device; after exchanging them for heads it rotates them.
"""

from dataclasses import replace

from freeloc_adapters.wan import ROPE

from freeloc.adapter import Adapter, AttentionSite, TokenGrid

WAN = Adapter(
    name="fastvideo-wan",
    family="wan",
    classes=("fastvideo.models.dits.wanvideo.WanTransformer3DModel",),
    sites=(AttentionSite("blocks.*.attn1"),),
    grid=TokenGrid(patch="patch_size"),
    rope=replace(ROPE, tables="freqs_cis"),
    heads="num_attention_heads",
    head_dim="blocks.0.attn1.head_size",
)

ADAPTERS = [WAN]
"""Others, such as the causal one, are classes of their own, which are not described."""
