"""The hooks of diffusers that may answer for an attention module or for a block, for all adapters of its models.

Source: diffusers hooks/. Smoothed energy guidance and the cache of text keys are not here: attention runs under them.
"""

from freeloc.adapter import Bypasses

BYPASSES = Bypasses(
    hooks="_diffusers_hook.hooks",
    caches=(
        "diffusers.hooks.pyramid_attention_broadcast.PyramidAttentionBroadcastHook",
        "diffusers.hooks.faster_cache.FasterCacheBlockHook",
        "diffusers.hooks.taylorseer_cache.TaylorSeerCacheHook",
        "diffusers.hooks.first_block_cache.FBCBlockHook",
        "diffusers.hooks.mag_cache.MagCacheHeadHook",
        "diffusers.hooks.mag_cache.MagCacheBlockHook",
        "diffusers.hooks.sea_cache.SeaCacheLeaderBlockHook",
        "diffusers.hooks.sea_cache.SeaCacheBlockHook",
    ),
    # Guidance with skipped layers or with perturbed attention: some passes leave out attention on purpose.
    skips=(
        "diffusers.hooks.layer_skip.AttentionProcessorSkipHook",
        "diffusers.hooks.layer_skip.TransformerBlockSkipHook",
    ),
)
