"""The adapter of the original HunyuanVideo repository, on a double of it, end to end against dense logits."""

import contextlib
import itertools
import sys
from unittest import mock

import hunyuan_double
import pytest
import torch
from conftest import make_profile
from dense import Facts, axis_by_axis, dense_attention, frequencies, interleaved

import freeloc

POLICIES = ["vrpr", "tsa", "vrpr+tsa", "mixed"]
TEMPORAL, SPATIAL = axis_by_axis(*[frequencies(8, 256.0)] * 3)
FACTS = Facts(lambda model: [], interleaved(24), TEMPORAL, SPATIAL)
PADDED = (5, 2)


@pytest.fixture(autouse=True)
def models():
    """The double in place, and the file of the blocks."""
    names = hunyuan_double.install()
    yield sys.modules["hyvideo.modules.models"]
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model():
    return hunyuan_double.model()


def profile_of(policy):
    layers = None if policy == "mixed" else {policy: [0, 1, 2, 3]}
    return make_profile(layers, adapter="hunyuan-video")


def run(model, frames, height=2, width=3, batch=2, text=PADDED, **changes):
    with torch.no_grad():
        return model(**hunyuan_double.inputs(frames, height, width, batch, text) | changes)["x"]


@contextlib.contextmanager
def oracle(profile, frames, height=2, width=3):
    """Inside the block, the model does not rotate, and attention is computed from dense logits, block after block."""
    models, layer = sys.modules["hyvideo.modules.models"], itertools.count()

    def attention(q, k, v, cu_seqlens_kv, batch_size, **lengths):
        plan = freeloc.frame_plan(profile, next(layer), frames)
        out = torch.zeros_like(q)
        ends = cu_seqlens_kv.tolist()
        for sample in range(batch_size):
            valid = ends[2 * sample + 1] - ends[2 * sample]
            heads = (tensor[sample : sample + 1].transpose(1, 2) for tensor in (q, k, v))
            video, padding = zip(*(tensor.tensor_split([valid], dim=2) for tensor in heads), strict=True)
            seen = dense_attention(*video, plan, height, width, FACTS, None, None)
            own = (padding[0] @ padding[1].mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ padding[2]
            out[sample] = torch.cat([seen, own], dim=2)[0].transpose(0, 1)
        return out.flatten(2)

    with (
        mock.patch.object(models, "attention", attention),
        mock.patch.object(models, "apply_rotary_emb", lambda q, k, *rest, **named: (q, k)),
    ):
        yield


def compare(model, policy, frames, height=2, width=3, **inputs):
    """Largest differences from the oracle, and from the model as it was."""
    profile = profile_of(policy)
    before = run(model, frames, height, width, **inputs)
    with oracle(profile, frames, height, width):
        expected = run(model, frames, height, width, **inputs)
    with freeloc.patch(model, profile):
        found = run(model, frames, height, width, **inputs)
    return (found - expected).abs().max().item(), (found - before).abs().max().item()


def test_the_adapter_is_found_from_the_model_alone(model):
    adapter = freeloc.discovery.find_adapter(model)
    assert adapter.name == "hunyuan-video-original"
    shape = adapter.shape(model)
    assert (shape.layers, shape.heads, shape.head_dim) == (4, 2, 24)
    paths = [(layer, path) for _, layer, path, _ in adapter.places(model)]
    assert paths == [(0, "double_blocks.0"), (1, "double_blocks.1"), (2, "single_blocks.0"), (3, "single_blocks.1")]


@pytest.mark.parametrize("frames", [3, 9])
def test_the_oracle_itself_is_the_model_where_nothing_is_corrected(model, frames):
    assert compare(model, "none", frames)[0] <= 2e-5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [3, 4, 6, 9, 16])
def test_equals_the_oracle_at_1x_to_4x(model, policy, frames):
    error, change = compare(model, policy, frames)
    assert error <= 2e-5
    if frames > 8:
        assert change > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3)])
def test_any_grid(model, height, width):
    assert compare(model, "mixed", 9, height, width)[0] <= 2e-5


@pytest.mark.parametrize("text", [(1,), (5,), (1, 5), (4, 4), (3, 1, 6)])
def test_any_length_of_the_text(model, text):
    error, change = compare(model, "mixed", 9, batch=len(text), text=text)
    assert error <= 2e-5
    assert change > 1e-3


@pytest.mark.parametrize("patched", [False, True])
def test_padded_text_is_a_segment_of_its_own(model, patched):
    inputs = hunyuan_double.inputs(9, 2, 3, batch=2, text=PADDED)
    padding = inputs["text_mask"] == 0
    other = torch.where(padding[..., None], 100.0, inputs["text_states"])
    with freeloc.patch(model, profile_of("mixed")) if patched else contextlib.nullcontext():
        assert torch.equal(run(model, 9, text_states=other), run(model, 9))


def test_a_model_in_a_pipelines_call(model):
    inputs = hunyuan_double.inputs(9, 2, 3, batch=2)
    first = inputs.pop("x"), inputs.pop("t")
    with freeloc.patch(model, profile_of("mixed")), torch.no_grad():
        assert torch.equal(model(*first, **inputs, guidance=None, return_dict=True)["x"], run(model, 9))


def test_the_three_modes_of_the_kernel_agree_on_valid_tokens(models):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 11, 2, 24, generator=generator)
    text_mask = torch.arange(5) < torch.tensor([[5], [2]])
    ends = models.get_cu_seqlens(text_mask, 6)
    assert ends.tolist() == [0, 11, 11, 19, 22]
    flash = models.attention(q, k, v, "flash", 0, None, False, ends, ends, 11, 11, 2)
    mask = torch.cat([torch.ones(2, 6, dtype=torch.bool), text_mask], dim=1)
    for mode in ("torch", "vanilla"):
        other = models.attention(q, k, v, mode=mode, attn_mask=mask[:, None, None, :])
        assert (other - flash)[mask].abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("argument", "value", "found"),
    [("mode", "torch", "torch"), ("mode", "vanilla", "vanilla"), ("drop_rate", 0.5, "0.5"), ("causal", True, "True")],
)
def test_unsupported_attention_is_refused(model, models, argument, value, found):
    kernel = models.attention

    def other(block, q, k, v, img_len, sizes):
        return models.attention(q, k, v, **{argument: value}, cu_seqlens_kv=sizes[1], batch_size=sizes[4])

    with (
        mock.patch.object(hunyuan_double, "attention_of", other),
        pytest.raises(freeloc.errors.LayoutError, match=rf"double_blocks\.0: expected {argument}=.* found {found}"),
        freeloc.patch(model, profile_of("mixed")),
    ):
        run(model, 9)
    assert models.attention is kernel


def test_sequence_parallelism_is_an_error(model, monkeypatch):
    monkeypatch.setattr(model.single_blocks[0], "hybrid_seq_parallel_attn", lambda q, k, v: v)
    with (
        pytest.raises(freeloc.errors.LayoutError, match=r"single_blocks\.0 .* made no call of attention"),
        freeloc.patch(model, profile_of("vrpr")),
    ):
        run(model, 9)


def test_the_token_refiner_keeps_the_kernel(model, models, monkeypatch):
    refiner, calls = sys.modules["hyvideo.modules.token_refiner"], []

    def watch(where):
        def watched(q, *rest, **named):
            calls.append((where, q.shape[1], named.get("mode", "flash")))
            return hunyuan_double.attention(q, *rest, **named)

        return watched

    monkeypatch.setattr(refiner, "attention", watch("refiner"))
    monkeypatch.setattr(models, "attention", watch("block"))
    with freeloc.patch(model, profile_of("mixed")) as patch:
        run(model, 9)
    assert calls == [("refiner", 5, "torch"), ("block", 59, "flash")]  # layer 3 is left alone
    assert patch.report().corrected_calls == 3 * 2  # layers, samples
    calls.clear()
    run(model, 9)
    assert calls == [("refiner", 5, "torch"), *[("block", 59, "flash")] * 4]


@pytest.mark.parametrize("frames", [1, 4])
def test_within_the_trained_length_the_models_own_kernel_runs(model, frames):
    before = run(model, frames)
    with freeloc.patch(model, profile_of("mixed")) as patch:
        assert torch.equal(run(model, frames), before)
    assert patch.report().corrected_calls == 0


def test_half_precision(model):
    model, profile = hunyuan_double.model().bfloat16(), profile_of("mixed")
    names = ("x", "text_states", "text_states_2")
    half = {name: hunyuan_double.inputs(9, 2, 3, batch=2)[name].bfloat16() for name in names}
    with freeloc.patch(model, profile):
        found = run(model, 9, **half)
    with oracle(profile, 9):
        expected = run(model.float(), 9, **{name: value.float() for name, value in half.items()})
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 3e-2 * expected.abs().max()


@pytest.mark.parametrize("where", ["double_blocks.1.img_attn_proj", "single_blocks.0.linear1", "final_layer"])
def test_an_exception_restores_the_kernel(model, models, where):
    before, kernel = run(model, 9), models.attention
    handle = model.get_submodule(where).register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError), freeloc.patch(model, profile_of("vrpr")):
        run(model, 9)
    handle.remove()
    assert models.attention is kernel
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(run(model, 9), before)
