"""Caches, skipped layers and perturbed guidance.

Those of diffusers, cache-dit and para-attn, over six denoising steps. The oracle runs under the same cache.
"""

from typing import Any

import diffusers_caches as caches
import torch
from diffusers_caches import STEPS, reset, sample

from .cell import LONG, ORDERS, Apply, Case, Cell, Exact, Fails, Refused, difference

WITH_BLOCKS = ("wan", "hunyuan-video", "cogvideox-1.5")
"""Models whose blocks these caches know."""


def steps(model: Any, case: Case) -> Any:
    torch.manual_seed(0)  # for those that drop something at random
    return sample(model, case.inputs(batch=1))


def without_cache(case: Case) -> Any:
    """Of the oracle, on a model of its own: diffusers would not tell its context to a cache that comes later."""
    model = case.new_model()
    with case.oracle(model):
        return steps(model, case)


def cached(apply: Apply, corrects: bool = True) -> Any:
    """The oracle and the patched model, both under the cache; and the report says what was left out.

    Args:
        corrects: whether the cache answers for attention that is corrected.
    """

    def body(case: Case) -> Exact:
        twin = case.new_model()
        apply(twin)
        plain = steps(twin, case)
        if not case.is_patched:
            return Exact(0.0, 0.0)
        uncached = without_cache(case)
        oracle_model = case.new_model()
        with case.oracle(oracle_model):
            apply(oracle_model)
            expected = steps(oracle_model, case)
        patch = None if case.order == "before" else case.patch()
        apply(case.model)
        with patch or case.patch() as patch:
            found = steps(case.model, case)
            report = patch.report()
            layers = [layer for layer in report.layers if layer.method != "none"]
            answered = sum(sum(layer.cached.values()) + sum(layer.skipped.values()) for layer in layers)
            assert "WARNING" not in str(report)
        changed = difference(uncached, expected)
        assert bool(answered) == (changed > 1e-4 and corrects), (answered, changed)
        result = Exact(difference(found, expected), difference(plain, expected), f"the cache itself: {changed:.0e}")
        reset(case.model)
        assert difference(steps(case.model, case), plain) <= 1e-4  # after the patch, and a reset of the cache
        return result

    return body


def text_cache(model: Any) -> None:
    from diffusers.hooks import TextKVCacheConfig, apply_text_kv_cache

    apply_text_kv_cache(model, TextKVCacheConfig())


def cross_only(model: Any) -> None:
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2, current_timestep_callback=lambda: caches.clock.time
    )
    apply_pyramid_attention_broadcast(model, config)


def filled_before(apply: Apply) -> Any:
    """A run is interrupted, and the cache is not reset."""

    def body(case: Case) -> Exact:
        apply(case.model)
        sample(case.model, case.inputs(batch=1), 0, 3)
        with case.patch():
            sample(case.model, case.inputs(batch=1), 3)
        return Exact(0.0, 0.0)

    return body


def other_lengths(case: Case) -> Exact:
    """One cache, which is reset; videos of two lengths in turn."""
    caches.first_block(case.model)
    results = []
    with case.patch():
        for frames in (9, 12, 9):
            reset(case.model)
            twin = case.new_model()
            with case.oracle(twin, frames):
                caches.first_block(twin)
                expected = sample(twin, case.inputs(frames, 1))
            plain_twin = case.new_model()
            caches.first_block(plain_twin)
            plain = sample(plain_twin, case.inputs(frames, 1))
            found = sample(case.model, case.inputs(frames, 1))
            results.append(Exact(difference(found, expected), difference(plain, expected)))
    return max(results)


def compiled_and_cached(model: Any) -> None:
    caches.first_block(model)
    model.compile_repeated_blocks(backend="eager")


def perturbed(blocks: list[int], mask: list[float] | None = None) -> Any:
    """LTX-2's own perturbed attention: in these blocks values take the place of attention."""

    def body(case: Case) -> Exact:
        from freeloc_adapters.examples import ltx

        model = ltx.ltx_2(perturbed_attn=True)
        batch = 1 if mask is None else len(mask)
        changes: dict[str, Any] = {"spatio_temporal_guidance_blocks": blocks}
        if mask is not None:
            changes["perturbation_mask"] = torch.tensor(mask)[:, None, None]
        given = case.inputs(batch=batch) | changes
        with torch.no_grad():
            first = model(**given)[0]
            with case.patch(model) as patch:
                found = model(**given)[0]
                report = patch.report()
            expected = _perturbed_by_oracle(case, model, given, blocks, mask)
        if mask is None:
            assert any("all_perturbed" in reason for layer in report.layers for reason in layer.untouched)
        return Exact(difference(found, expected), difference(first, expected))

    return body


def _perturbed_by_oracle(case: Case, model: Any, given: Any, blocks: list[int], mask: Any) -> torch.Tensor:
    """The oracle without perturbation in the blocks that keep their attention, on a model of these weights."""
    import dataclasses

    layers = [layer for layer in range(len(model.transformer_blocks)) if mask is not None or layer not in blocks]
    paths = [f"transformer_blocks.{layer}.attn1" for layer in layers]
    facts = dataclasses.replace(case.facts, paths=lambda model: paths, layers=layers)
    from dense import oracle

    with oracle(model, facts, case.plan, LONG, 2, 3):
        return model(**given)[0]


def cache_dit_steps(case: Case) -> Exact:
    """DBCache over six steps; the reference is the patched model that cache-dit runs, in the other order."""
    import cache_dit

    def enable(model: Any) -> None:
        options = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 2, "enable_separate_cfg": False}
        config = cache_dit.DBCacheConfig(**options, residual_diff_threshold=10.0, num_inference_steps=len(STEPS))
        cache_dit.enable_cache(model, cache_config=config)

    plain_twin = case.new_model()
    enable(plain_twin)
    plain = steps(plain_twin, case)
    uncached, twin = without_cache(case), case.new_model()
    with case.oracle(twin):
        enable(twin)
        expected = steps(twin, case)
    assert difference(uncached, expected) > 1e-3
    patch = None if case.order == "before" else case.patch()
    enable(case.model)
    with patch or case.patch() as patch:
        found = steps(case.model, case)
        assert sum(sum(layer.skipped.values()) for layer in patch.report().layers)
    cache_dit.disable_cache(case.model)
    return Exact(difference(found, expected), difference(plain, expected))


def para_attn(case: Case) -> Exact:
    from para_attn.first_block_cache.diffusers_adapters import apply_cache_on_transformer

    apply_cache_on_transformer(case.model)
    with case.patch():
        return case.exact(case.run())


EVERYWHERE: dict[str, Apply] = {
    "PyramidAttentionBroadcast": caches.pyramid,
    "FasterCache": caches.faster,
    "TaylorSeer": caches.taylor(r".*attn1?", r".*self_attention"),
    "TaylorSeer, lite": caches.taylor_lite,
}
BLOCKS: dict[str, Apply] = {
    "FirstBlockCache": caches.first_block,
    "MagCache": caches.magnitude,
    "SeaCache": caches.spectral,
    "a skipped block (LayerSkipConfig)": caches.skip(),
}
STALE = Refused("LayoutError: .*that no corrected call at 9 latent frames .*Reset")
NO_PROCESSOR = Fails("not registered")
ONCE: dict[str, Any] = {"tolerance": 1e-4}

CELLS = [
    *[
        Cell(name, cached(apply), orders=ORDERS, **ONCE, quick=("wan",) if apply is caches.first_block else ())
        for name, apply in EVERYWHERE.items()
    ],
    *[
        Cell(name, cached(apply), WITH_BLOCKS, ORDERS, **ONCE, quick=("wan",) if name == "FirstBlockCache" else ())
        for name, apply in BLOCKS.items()
    ],
    Cell("FirstBlockCache and compile_repeated_blocks", cached(compiled_and_cached), ("wan",), ORDERS, **ONCE),
    Cell("TextKVCache", cached(text_cache), ("wan",), ORDERS, **ONCE),
    Cell("PyramidAttentionBroadcast of cross-attention", cached(cross_only, False), ("wan",), ORDERS, **ONCE),
    *[
        Cell(
            f"skipped attention, {name}",
            cached(caches.skip(**options)),
            WITH_BLOCKS[::2],
            expects=NO_PROCESSOR,
        )
        for name, options in {
            "whole": {"skip_ff": False},
            "scores": {"skip_attention": False, "skip_attention_scores": True},
        }.items()
    ],
    Cell(
        "LayerSkipConfig(dropout=0.5)",
        cached(caches.skip(dropout=0.5), False),
        WITH_BLOCKS[::2],
        but={"cogvideox-1.5": Fails("must be Tensor, not tuple")},
        **ONCE,
    ),
    Cell("FirstBlockCache filled before the patch", filled_before(caches.first_block), WITH_BLOCKS, expects=STALE),
    Cell("PyramidAttentionBroadcast filled before the patch", filled_before(caches.pyramid), expects=STALE),
    Cell("FirstBlockCache, two lengths in turn", other_lengths, ("wan",), **ONCE),
    Cell("LTX-2's perturbed attention in block 0", perturbed([0]), ("ltx-2",)),
    Cell("LTX-2's perturbed attention of one sample", perturbed([0], [0.0, 1.0]), ("ltx-2",)),
    Cell("cache-dit DBCache", cache_dit_steps, ("wan",), ORDERS, needs=("cache-dit",), **ONCE),
    Cell(
        "para-attn apply_cache_on_transformer",
        para_attn,
        ("hunyuan-video",),
        needs=("para-attn",),
        expects=Fails("has no attribute|NoneType"),
    ),
]
