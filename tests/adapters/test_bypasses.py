"""Caches and layer skips of diffusers under a patch: equal to the oracle under the same cache, and counted."""

import dataclasses
import importlib
import pkgutil
from unittest import mock

import diffusers.hooks
import pytest
import torch
from dense import oracle
from diffusers.hooks import HookRegistry, ModelHook
from diffusers_caches import STEPS, faster, first_block, magnitude, pyramid, reset, sample, skip, spectral, taylor
from diffusers_caches import taylor_lite as lite
from families import FACTS
from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.examples import ltx
from lengths import plan_of_call
from marks import slow_unless
from test_families import EXAMPLES, WITHOUT_ROPE

import freeloc
from freeloc.adapter import Adapter
from freeloc.errors import LayoutError
from freeloc.registry import registry

CACHES = {
    "pyramid": pyramid,
    "faster": faster,
    "first block": first_block,
    "magnitude": magnitude,
    "taylor": taylor(r".*attn1?", r".*self_attention"),
    "taylor, lite": lite,
    "spectral": spectral,
    "skipped block": skip(),
}
EVERYWHERE = ["pyramid", "faster", "taylor", "taylor, lite"]
BLOCKS = ["first block", "magnitude", "spectral", "skipped block"]
"""Those that know only some classes of blocks."""
WITH_BLOCKS = ["wan", "cogvideox-1.5", "hunyuan-video", "ltx", "mochi", "motif-video"]


def profile_of(model, name):
    return freeloc.default_profile(model, "tsa" if name in WITHOUT_ROPE else "vrpr+tsa", trained_latent_frames=4)


def plan_of(profile, facts):
    return lambda layer, frames: plan_of_call(profile, layer, frames, facts.spacing, facts.references)


def really_ran(model, paths, run):
    """By path, how often the module was called and how often it computed attention, and the result of the run."""
    inside, called, computed = [], dict.fromkeys(paths, 0), dict.fromkeys(paths, 0)
    kernel = torch.nn.functional.scaled_dot_product_attention

    def attend(*args, **kwargs):
        if inside:
            computed[inside[-1]] += 1
        return kernel(*args, **kwargs)

    def enter(path):
        return lambda module, args: (inside.append(path), called.update({path: called[path] + 1}))[0]

    hooks = [model.get_submodule(path).register_forward_pre_hook(enter(path)) for path in paths]
    hooks += [model.get_submodule(path).register_forward_hook(lambda *_: inside.pop() and None) for path in paths]
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        result = run()
    for hook in hooks:
        hook.remove()
    return called, computed, result


PAIRS = [
    *(
        (name, cache)
        for cache in EVERYWHERE
        for name in EXAMPLES
        if "hidden_states" in EXAMPLES[name].inputs(4, 1, 1, 1)
    ),
    *((name, cache) for cache in BLOCKS for name in WITH_BLOCKS),
]


@pytest.mark.parametrize(("name", "cache"), [slow_unless(index % 8 == 0, *pair) for index, pair in enumerate(PAIRS)])
def test_a_cache_keeps_corrected_answers_and_the_report_counts_them(name, cache):
    model, facts, inputs = EXAMPLES[name].model(), FACTS[name], EXAMPLES[name].inputs(9, 2, 3, 1)
    profile = profile_of(model, name)
    cached_model = EXAMPLES[name].model()
    CACHES[cache](cached_model)
    called, computed, before = really_ran(cached_model, facts.paths(model), lambda: sample(cached_model, inputs))
    with oracle(model, facts, plan_of(profile, facts), 9, 2, 3):
        CACHES[cache](model)
        expected = sample(model, inputs)
    reset(cached_model)
    with freeloc.patch(cached_model, profile) as patch:
        found = sample(cached_model, inputs)
    assert (found - expected).abs().max() <= 3 * facts.tolerance
    assert (found - before).abs().max() > 1e-3
    report = patch.report()
    video = 9 - facts.references
    for layer in report.layers:
        assert layer.calls[video] == computed[layer.path]
        assert layer.cached[video] == called[layer.path] - computed[layer.path]
        assert sum(layer.skipped.values()) == len(STEPS) - called[layer.path]
        assert "" not in {by for _, by in layer.skipped}
    assert report.models[0].forwards == {video: len(STEPS)}
    assert "WARNING" not in str(report)


@pytest.mark.parametrize("name", ["wan", "cogvideox-1.5", "hunyuan-video", "mochi"])
def test_skipped_layers_are_not_counted_at_the_trained_length(name):
    model, paths = EXAMPLES[name].model(), FACTS[name].paths(EXAMPLES[name].model())
    skip(0, fqn=paths[0].partition(".")[0])(model)
    with freeloc.patch(model, profile_of(model, name)) as patch:
        sample(model, EXAMPLES[name].inputs(4, 2, 3, 1), last=1)
    report = patch.report()
    assert [sum(layer.untouched.values()) for layer in report.layers] == [0, *[1] * (len(paths) - 1)]
    assert not any(layer.skipped for layer in report.layers)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # reason: raised inside the cache, by diffusers
def test_a_cache_that_leaves_out_the_unconditional_half_of_a_batch():
    name = "cogvideox-1.5"
    model, inputs, facts = EXAMPLES[name].model(), EXAMPLES[name].inputs(9, 2, 3, 2), FACTS[name]
    profile = profile_of(model, name)
    with oracle(model, facts, plan_of(profile, facts), 9, 2, 3):
        faster(model, is_guidance_distilled=False, tensor_format="BFCHW")
        expected = sample(model, inputs)
    model = EXAMPLES[name].model()
    faster(model, is_guidance_distilled=False, tensor_format="BFCHW")
    with freeloc.patch(model, profile) as patch:
        found = sample(model, inputs)
    assert (found - expected).abs().max() <= 1e-4
    for layer in patch.report().layers:
        assert layer.calls[9] + layer.cached[9] == len(STEPS)
        assert layer.cached[9] > 0


def test_perturbed_attention_of_ltx_2_is_counted():
    model, inputs = ltx.ltx_2(perturbed_attn=True), ltx.inputs_2(9, 2, 3, 1)
    with freeloc.patch(model, profile_of(model, "ltx-2")) as patch:
        sample(model, inputs | {"spatio_temporal_guidance_blocks": [1]}, last=1)
    reason = "9 latent frames, which computed no attention (all_perturbed)"
    assert [layer.untouched for layer in patch.report().layers] == [{}, {reason: 1}]


@pytest.mark.parametrize(
    "options", [{}, {"skip_attention": False, "skip_attention_scores": True}], ids=["all", "scores"]
)
def test_attention_left_out_on_purpose(options):
    """Latte is the only family whose attention these hooks of diffusers 0.42 know."""
    model, inputs = EXAMPLES["latte"].model(), EXAMPLES["latte"].inputs(9, 2, 3, 1)
    profile, facts = profile_of(model, "latte"), FACTS["latte"]
    skipping = skip(1, fqn="temporal_transformer_blocks", skip_ff=False, **options)
    rest = [index for index in range(3) if index != 1]
    others = dataclasses.replace(
        facts, paths=lambda model: [facts.paths(model)[index] for index in rest], layers=tuple(rest)
    )
    with oracle(model, others, plan_of(profile, facts), 9, 2, 3):
        skipping(model)
        expected = sample(model, inputs)
    model = EXAMPLES["latte"].model()
    skipping(model)
    with freeloc.patch(model, profile) as patch:
        assert (sample(model, inputs) - expected).abs().max() <= 1e-4
    layer = patch.report().layers[1]
    assert not layer.calls
    reason = "9 latent frames, of which AttentionProcessorSkipHook left out the attention"
    assert layer.untouched == {reason: len(STEPS)}
    assert f"not corrected: {len(STEPS)} calls, {reason}" in str(patch.report())


@pytest.mark.parametrize(
    ("name", "cache", "steps", "hook"),
    [
        ("wan", "pyramid", 1, "PyramidAttentionBroadcastHook"),
        ("latte", "pyramid", 1, "PyramidAttentionBroadcastHook"),
        ("cogvideox", "faster", 3, "FasterCacheBlockHook"),
        ("hunyuan-video", "taylor", 1, "TaylorSeerCacheHook"),
        ("ltx-2", "taylor, lite", 1, "TaylorSeerCacheHook"),
        ("wan", "first block", 1, "FBCBlockHook"),
        ("mochi", "magnitude", 1, "MagCacheHeadHook"),
        ("cogvideox-1.5", "spectral", 1, "SeaCacheLeaderBlockHook"),
    ],
)
def test_a_cache_that_was_filled_before_the_patch_is_refused(name, cache, steps, hook):
    model, inputs = EXAMPLES[name].model(), EXAMPLES[name].inputs(9, 2, 3, 1)
    CACHES[cache](model)
    sample(model, inputs, 0, steps)
    with freeloc.patch(model, profile_of(model, name)) as patch:
        with pytest.raises(LayoutError, match=rf"\({hook}\) that no corrected call at 9 latent frames .*Reset"):
            sample(model, inputs, steps, steps + 1)
        reset(model)
        sample(model, inputs)
    assert patch.report().corrected_calls


@pytest.mark.parametrize("name", ["wan", "hunyuan-video", "ltx"])
def test_at_the_trained_length_a_cache_is_left_alone(name):
    """Also one that was filled before the patch: no correction is due."""
    model, inputs = EXAMPLES[name].model(), EXAMPLES[name].inputs(4, 2, 3, 1)
    pyramid(model)
    expected = sample(model, inputs)
    reset(model)
    sample(model, inputs, 0, 3)
    with freeloc.patch(model, profile_of(model, name)) as patch:
        sample(model, inputs, 3)
        reset(model)
        assert torch.equal(sample(model, inputs), expected)
    assert "WARNING" not in str(patch.report())


def test_a_hook_that_no_adapter_describes_is_named():
    model, inputs = EXAMPLES["wan"].model(), EXAMPLES["wan"].inputs(9, 2, 3, 1)

    class ForgetfulHook(ModelHook):
        def new_forward(self, module, hidden_states, *args, **kwargs):
            return hidden_states

    HookRegistry.check_if_exists_or_initialize(model.blocks[1].attn1).register_hook(ForgetfulHook(), "forgetful")
    expected = r"blocks.1.attn1 \(WanAttention\) made no call of .*does not describe: ForgetfulHook.*Adapter.bypasses"
    with freeloc.patch(model, profile_of(model, "wan")), pytest.raises(LayoutError, match=expected):
        sample(model, inputs)


def hooks_of_diffusers():
    """All classes of hooks that replace what a module computes."""
    for file in pkgutil.iter_modules(diffusers.hooks.__path__):
        module = importlib.import_module(f"diffusers.hooks.{file.name}")
        for name, cls in vars(module).items():
            if isinstance(cls, type) and cls.__module__ == module.__name__ and hasattr(cls, "new_forward"):
                yield f"{module.__name__}.{name}"


ALWAYS_RUN = {
    "diffusers.hooks.faster_cache.FasterCacheDenoiserHook",
    "diffusers.hooks.first_block_cache.FBCHeadBlockHook",
    "diffusers.hooks.layerwise_casting.PeftInputAutocastDisableHook",
    "diffusers.hooks.text_kv_cache.TextKVCacheBlockHook",
    "diffusers.hooks.text_kv_cache.TextKVCacheTransformerHook",
}
NO_ATTENTION = {"diffusers.hooks.layer_skip.FeedForwardSkipHook", "diffusers.hooks.sea_cache.SeaCachePostNormHook"}


def test_every_hook_of_diffusers_is_known():
    """A new one must be looked at: does it answer without running attention?"""
    assert {*hooks_of_diffusers()} == {*BYPASSES.caches, *BYPASSES.skips} | ALWAYS_RUN | NO_ATTENTION


def test_every_adapter_of_a_model_of_diffusers_knows_them():
    for _, _, adapter in registry().adapters.things():
        if isinstance(adapter, Adapter) and adapter.classes[0].startswith("diffusers."):
            assert adapter.bypasses is BYPASSES, adapter.name
