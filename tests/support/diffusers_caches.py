"""Caches and layer skips of diffusers, each as a function that applies it to a model, and a run of a few steps.

`clock` is what the caches ask for the time step. It starts above the range in which FasterCache answers.
"""

from types import SimpleNamespace

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_layer_skip,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from diffusers.hooks import SeaCacheConfig, apply_first_block_cache, apply_sea_cache
from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

clock = SimpleNamespace(time=900)
STEPS = (900, 700, 500, 400, 300, 200)
LAST = len(STEPS)


def pyramid(model):
    options = {"spatial_attention_block_skip_range": 2, "temporal_attention_block_skip_range": 3}
    config = PyramidAttentionBroadcastConfig(**options, current_timestep_callback=lambda: clock.time)
    apply_pyramid_attention_broadcast(model, config)


def faster(model, **changes):
    options = {"is_guidance_distilled": True, "temporal_attention_block_skip_range": 2} | changes
    apply_faster_cache(model, FasterCacheConfig(**options, current_timestep_callback=lambda: clock.time))


def first_block(model):
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=10.0))


def magnitude(model):
    ratios = torch.ones(len(STEPS))
    options = {"threshold": 10.0, "retention_ratio": 0.0, "max_skip_steps": 2, "num_inference_steps": len(STEPS)}
    apply_mag_cache(model, MagCacheConfig(**options, mag_ratios=ratios))


def taylor(*paths):
    def apply(model):
        options = {"cache_interval": 2, "disable_cache_before_step": 1, "taylor_factors_dtype": torch.float32}
        apply_taylorseer_cache(model, TaylorSeerCacheConfig(**options, cache_identifiers=[*paths]))

    return apply


def taylor_lite(model):
    options = {"cache_interval": 2, "disable_cache_before_step": 1, "taylor_factors_dtype": torch.float32}
    apply_taylorseer_cache(model, TaylorSeerCacheConfig(**options, use_lite_mode=True))


def spectral(model):
    def vision(module, args, kwargs):
        return [each[(None,) * (4 - each.ndim)] for each in kwargs["hidden_states"]]

    apply_sea_cache(model, SeaCacheConfig(threshold=10.0, raw_vision_callback=vision))


def skip(index=0, **options):
    return lambda model: apply_layer_skip(model, LayerSkipConfig(indices=[index], **options))


def reset(model):
    HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()


def start(model):
    """Begin a run with empty caches, in which every step has the same context."""
    reset(model)
    _set_cache_context(model, CacheContext("cond"))


def sample(model, inputs, first=0, last=LAST):
    """The outputs of steps `first` to `last` - 1, with an input and a time step that change."""
    found = []
    for step in range(first, last):
        clock.time = STEPS[step]
        context = CacheContext("cond", step_index=step, num_inference_steps=len(STEPS), sigma=clock.time / 1000)
        _set_cache_context(model, context)
        with torch.no_grad():
            output = model(**inputs | {"hidden_states": inputs["hidden_states"] * (1 - step / 20)})
        found.append(output[0] if isinstance(output, tuple) else next(iter(output.values())))
    return torch.stack(found)
