"""freeloc in the attention of SGLang's diffusion engine, which calls `register` in each of its processes."""

import logging
import os

VARIABLE = "FREELOC_PROFILE"
"""The environment variable that turns it on: ``auto`` for the profile that fits, or a profile's name or file."""

WAN = "sglang.multimodal_gen.runtime.models.dits.wanvideo.WanTransformer3DModel"
LAYER = "sglang.multimodal_gen.runtime.layers.attention.layer.USPAttention"

logger = logging.getLogger("sglang.multimodal_gen.freeloc")


def register() -> None:
    """Register hooks on SGLang's Wan and its attention, if the environment variable is set."""
    if not os.environ.get(VARIABLE):
        logger.info("freeloc is installed, and off: %s=auto turns it on", VARIABLE)
        return
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

    from sglang_freeloc import hooks

    for target, hook, kind in (
        ("sglang.multimodal_gen.runtime.models.dits.base.BaseDiT.__init__", hooks.require_known, HookType.BEFORE),
        (f"{WAN}.__init__", hooks.number_layers, HookType.AFTER),
        (f"{WAN}.forward", hooks.note_grid, HookType.AROUND),
        (f"{LAYER}.forward", hooks.attention, HookType.AROUND),
        (f"{LAYER}.forward_qk_filled", hooks.not_filled, HookType.AROUND),
    ):
        HookRegistry.register(target, hook, kind)
