"""Wan in kijai's custom nodes for ComfyUI, ComfyUI-WanVideoWrapper, of spring 2025.

Source: kijai/ComfyUI-WanVideoWrapper 721cd65 (March 2025), wanvideo/modules/model.py, attention.py. ComfyUI names the
package after its folder. Later versions hand rotated queries and keys to the attention module, without rotary tables,
and attend in methods of it (radial, split by prompt). Both are refused beyond the trained length.
"""

from dataclasses import replace

from freeloc_adapters.wan import FLASH_ATTENTION, ORIGINAL

from freeloc.adapter import AttentionSite, TokenGrid

KERNEL = replace(
    FLASH_ATTENTION,
    function="attention",
    arguments=(*FLASH_ATTENTION.arguments, "deterministic", "dtype", "attention_mode"),
    also="",
)

WAN = replace(
    ORIGINAL,
    name="wan-video-wrapper",
    classes=("*.wanvideo.modules.model.WanModel",),
    sites=(AttentionSite("blocks.*.self_attn", kernel=KERNEL),),
    # Where no attention module is called, the patch embedding still says that the video was too long.
    grid=TokenGrid("output", patch=(1, 1, 1), of="patch_embedding"),
    rounding=1e-2,  # its kernels round queries, keys and values to bfloat16
)

ADAPTERS = [WAN]
