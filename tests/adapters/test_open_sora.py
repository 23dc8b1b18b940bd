"""The adapters of Open-Sora 2.0 and 1.2, on doubles of the original repository, end to end against dense logits."""

import contextlib
import copy
import functools
import itertools
import sys
from types import SimpleNamespace
from unittest import mock

import opensora_double
import pytest
import torch
from conftest import make_profile
from dense import Facts, axis_by_axis, dense_attention, frequencies, half_split, interleaved

import freeloc

POLICIES = ["vrpr", "tsa", "vrpr+tsa", "mixed"]
TEMPORAL, SPATIAL = axis_by_axis(*[frequencies(8, 10_000.0)] * 3)
PAIRS = {"open-sora-2": half_split(24), "open-sora-2-interleaved": interleaved(24), "open-sora-1.2": interleaved(24)}
EXAMPLES = {example.label: example for example in opensora_double.EXAMPLES}
TWO = ["open-sora-2", "open-sora-2-interleaved"]

every_model = pytest.mark.parametrize("name", list(EXAMPLES))
both_ropes = pytest.mark.parametrize("name", TWO)


@pytest.fixture(autouse=True)
def math():
    """The doubles in place, and the file in which the kernel of 2.0 is."""
    names = opensora_double.install()
    yield sys.modules["opensora.models.mmdit.math"]
    for name in names:
        sys.modules.pop(name, None)


@functools.cache
def model_of(name):
    return EXAMPLES[name].model()


def profile_of(name, policy):
    layers = None if policy == "mixed" else {policy: [0, 1, 2, 3]}
    return make_profile(layers, adapter=EXAMPLES[name].adapter)


def run(name, frames, height=2, width=3, batch=2, model=None, **changes):
    with torch.no_grad():
        return (model or model_of(name))(**EXAMPLES[name].inputs(frames, height, width, batch) | changes)


@contextlib.contextmanager
def oracle(name, plan, frames, height=2, width=3):
    """Inside the block, nothing is rotated, and attention is computed from dense logits, layer after layer."""
    with _oracle_12(model_of(name), plan) if name not in TWO else _oracle_2(name, plan, frames, height, width):
        yield


@contextlib.contextmanager
def _oracle_2(name, plan, frames, height, width):
    math, layer = sys.modules["opensora.models.mmdit.math"], itertools.count()
    facts = Facts(lambda model: [], PAIRS[name], TEMPORAL, SPATIAL, text="first")

    def kernel(q, k, v):
        heads = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return dense_attention(*heads, plan(next(layer), frames), height, width, facts, None, None).transpose(1, 2)

    def still(q, k, *tables):
        return q, k

    with (
        mock.patch.object(math, "flash_attn_func", kernel),
        mock.patch.object(math, "apply_rope", still),
        mock.patch.object(math, "LigerRopeFunction", SimpleNamespace(apply=still)),
    ):
        yield


@contextlib.contextmanager
def _oracle_12(model, plan):
    facts = Facts(
        lambda model: [],
        PAIRS["open-sora-1.2"],
        frequencies(24, 10_000.0) * model.rope.freqs[0],  # that is 1, unless a test scales them all
        lambda height, width: torch.zeros(1, 12, dtype=torch.float64),
    )

    def forward(self, layer, x):
        out = dense_attention(*self.heads(x), plan(layer, x.shape[1]), 1, 1, facts, None, None)
        return self.proj(out.transpose(1, 2).flatten(2))

    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(model.temporal_blocks):
            dense = functools.partial(forward, block.attn, layer)
            stack.enter_context(mock.patch.object(block.attn, "forward", dense))
        yield


def compare(name, policy, frames, height=2, width=3, **inputs):
    """Largest differences from the oracle, and from the model as it was; and the report."""
    profile = profile_of(name, policy)
    before = run(name, frames, height, width, **inputs)
    with oracle(name, lambda layer, count: freeloc.frame_plan(profile, layer, count), frames, height, width):
        expected = run(name, frames, height, width, **inputs)
    with freeloc.patch(model_of(name), profile) as patch:
        found = run(name, frames, height, width, **inputs)
    return (found - expected).abs().max().item(), (found - before).abs().max().item(), patch.report()


@every_model
def test_the_adapter_is_found_from_the_model_alone(name):
    adapter = freeloc.discovery.find_adapter(model_of(name))
    assert adapter.name == EXAMPLES[name].adapter
    shape = adapter.shape(model_of(name))
    assert (shape.layers, shape.heads, shape.head_dim) == (4, 2, 24)
    assert adapter.rope_of(model_of(name)).pairing == ("(two pair)" if name == "open-sora-2" else "(pair two)")


@every_model
@pytest.mark.parametrize("frames", [3, 9])
def test_the_oracle_itself_is_the_model_where_nothing_is_corrected(name, frames):
    assert compare(name, "none", frames)[0] <= 2e-5


@every_model
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [3, 4, 6, 9, 16])
def test_equals_the_oracle_at_1x_to_4x(name, policy, frames):
    error, change, _ = compare(name, policy, frames)
    assert error <= 2e-5
    if frames > 8:
        assert change > 1e-3


@every_model
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3)])
def test_any_grid(name, height, width):
    assert compare(name, "mixed", 9, height, width)[0] <= 2e-5


@both_ropes
@pytest.mark.parametrize("text", [1, 8])
def test_any_length_of_the_text(name, text):
    changes = {"txt": torch.randn(2, text, 12), "txt_ids": torch.zeros(2, text, 3)}
    error, change, _ = compare(name, "mixed", 9, **changes)
    assert error <= 2e-5
    assert change > 1e-3


@both_ropes
def test_coordinates_in_half_precision_as_the_sampler_makes_them(name):
    ids = EXAMPLES[name].inputs(16, 2, 3, 2)["img_ids"].bfloat16()
    assert compare(name, "mixed", 16, img_ids=ids)[0] <= 2e-5


@every_model
@pytest.mark.parametrize("frames", [1, 4])
def test_within_the_trained_length_the_models_own_kernel_runs(name, frames):
    before = run(name, frames)
    with freeloc.patch(model_of(name), profile_of(name, "mixed")) as patch:
        assert torch.equal(run(name, frames), before)
    assert patch.report().corrected_calls == 0


@both_ropes
def test_half_precision(name):
    model = EXAMPLES[name].model().bfloat16()
    inputs = EXAMPLES[name].inputs(9, 2, 3, 2)
    half = {key: inputs[key].bfloat16() for key in ("img", "txt", "timesteps", "y_vec")}
    profile = profile_of(name, "mixed")
    with freeloc.patch(model, profile):
        found = run(name, 9, model=model, **half)
    with oracle(name, lambda layer, count: freeloc.frame_plan(profile, layer, count), 9):
        expected = run(name, 9, model=model.float(), **{key: value.float() for key, value in half.items()})
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 3e-2 * expected.abs().max()


@both_ropes
def test_the_kernel_runs_in_layers_that_are_left_alone_and_is_restored(name, math, monkeypatch):
    calls = []

    def watched(q, k, v):
        calls.append(q.shape[1])
        return opensora_double.flash_attn_func(q, k, v)

    monkeypatch.setattr(math, "flash_attn_func", watched)
    with freeloc.patch(model_of(name), profile_of(name, "mixed")) as patch:
        run(name, 9)
        assert math.flash_attn_func is watched
    assert calls == [9 * 2 * 3 + 5]  # layer 3
    assert patch.report().corrected_calls == 3
    run(name, 9)
    assert len(calls) == 1 + 4


@both_ropes
@pytest.mark.parametrize("where", ["double_blocks.1.img_attn.proj", "single_blocks.0.linear2", "final_layer"])
def test_an_exception_restores_the_kernel(name, math, where):
    model, before, kernel = model_of(name), run(name, 9), math.flash_attn_func
    handle = model.get_submodule(where).register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError), freeloc.patch(model, profile_of(name, "vrpr")):
        run(name, 9)
    handle.remove()
    assert math.flash_attn_func is kernel
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(run(name, 9), before)


def test_a_copy_of_a_model_whose_forward_is_on_the_instance():
    copied = copy.deepcopy(model_of("open-sora-2"))
    with freeloc.patch(copied, profile_of("open-sora-2", "mixed")) as patch:
        found = run("open-sora-2", 9, model=copied)
        untouched = run("open-sora-2", 9)
    assert patch.report().corrected_calls == 3
    assert (found - untouched).abs().max() > 1e-3


def test_sites_of_12_are_the_temporal_blocks_and_one_token_is_one_frame():
    error, _, report = compare("open-sora-1.2", "tsa", 16)
    assert error <= 2e-5
    assert [layer.path for layer in report.layers] == [f"temporal_blocks.{index}.attn" for index in range(4)]
    profile, model = profile_of("open-sora-1.2", "tsa"), model_of("open-sora-1.2")
    density = freeloc.frame_plan(profile, 0, 16).density(tokens_per_frame=1)
    assert [layer.attended for layer in report.layers] == [density] * 4
    with freeloc.patch(model, profile):
        assert not any(module._forward_hooks for module in model.spatial_blocks.modules())


@pytest.mark.parametrize(("height", "width"), [(5, 7), (3, 3)])
def test_latents_of_12_that_do_not_fill_their_last_patch(height, width):
    changes = {"x": torch.randn(1, 4, 9, height, width)}
    error, change, _ = compare("open-sora-1.2", "mixed", 9, **changes)
    assert error <= 2e-5
    assert change > 1e-3


def test_frequencies_of_12_are_those_of_the_model(monkeypatch):
    monkeypatch.setattr(model_of("open-sora-1.2").rope.freqs, "data", model_of("open-sora-1.2").rope.freqs * 0.9)
    error, change, _ = compare("open-sora-1.2", "vrpr", 9)
    assert error <= 2e-5
    assert change > 1e-3


def test_the_fast_kernel_of_12_is_off_in_corrected_calls_only(monkeypatch):
    lengths = []

    def watched(q, k, v, softmax_scale):
        lengths.append(q.shape[:2])
        return opensora_double.flash_attn(q, k, v, softmax_scale)

    model, profile = opensora_double.stdit(enable_flash_attn=True), profile_of("open-sora-1.2", "mixed")
    monkeypatch.setattr(sys.modules["opensora.models.layers.blocks"], "flash_attn", watched)
    before = run("open-sora-1.2", 9, 1, 1, batch=1, model=model)
    assert lengths == [(1, 9)] * 4  # the temporal blocks: one place in the frame, nine frames
    lengths.clear()
    with freeloc.patch(model, profile) as patch:
        found = run("open-sora-1.2", 9, 1, 1, batch=1, model=model)
        assert all(block.attn.enable_flash_attn for block in model.temporal_blocks)
    assert lengths == [(1, 9)]  # layer 3
    assert patch.report().corrected_calls == 3
    with oracle("open-sora-1.2", lambda layer, count: freeloc.frame_plan(profile, layer, count), 9):
        expected = run("open-sora-1.2", 9, 1, 1, batch=1)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-3
