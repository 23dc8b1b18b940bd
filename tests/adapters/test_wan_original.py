"""The adapters of the original Wan repository, on a double of it, end to end against dense logits."""

import copy
import functools
import sys
import threading

import pytest
import torch
import wan_double
from conftest import make_profile
from oracle import wan_logits

import freeloc

BATCHES = {
    "one": [(9, 3, 5)],
    "one size": [(6, 3, 5), (6, 3, 5)],
    "two sizes": [(9, 3, 5), (13, 2, 3)],
    "one of them short": [(3, 3, 5), (16, 1, 2)],
}


@pytest.fixture(autouse=True)
def kernel():
    """The double in place, and its kernel."""
    names = wan_double.install()
    yield wan_double.flash_attention
    for name in names:
        del sys.modules[name]


def make_model(cls=wan_double.WanModel):
    torch.manual_seed(0)
    model = cls().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if ".q." in name or ".k." in name:
            parameter.mul_(4)
    return model


def run(model, grids, padding=0):
    generator = torch.Generator().manual_seed(1)
    videos = [torch.randn(4, f, 2 * h, 2 * w, generator=generator, dtype=torch.float32) for f, h, w in grids]
    dtype = model.head.weight.dtype
    return model([video.to(dtype) for video in videos], max(f * h * w for f, h, w in grids) + padding)


def error(one, other):
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(one, other, strict=True))


def oracle_of(model, profile):
    """A copy that computes dense logits from un-rotated queries and keys."""

    def forward(self, x, seq_lens, grid_sizes, freqs, layer):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        out = torch.zeros_like(q)
        for sample, (frames, height, width) in enumerate(grid_sizes.tolist()):
            plan, length = freeloc.frame_plan(profile, layer, frames), frames * height * width
            at = (slice(sample, sample + 1), slice(0, length))
            logits = wan_logits(q[at], k[at], plan, height, width)
            logits = logits.masked_fill(~plan.token_mask(height * width), float("-inf"))
            out[at] = (logits.softmax(dim=-1) @ v[at].transpose(1, 2).double()).transpose(1, 2).to(x.dtype)
        return self.o(out.flatten(2))

    copied = copy.deepcopy(model)
    blocks = list(enumerate(copied.blocks))
    blocks += list(zip(getattr(copied, "vace_layers", ()), getattr(copied, "vace_blocks", ()), strict=True))
    for layer, block in blocks:
        block.self_attn.forward = functools.partial(forward, block.self_attn, layer=layer)
    return copied


MODELS = pytest.mark.parametrize("cls", [wan_double.WanModel, wan_double.VaceWanModel], ids=["plain", "vace"])


@MODELS
def test_the_adapter_is_found_from_the_model_alone(cls):
    name = {"WanModel": "wan-original", "VaceWanModel": "wan-original-vace"}[cls.__name__]
    assert freeloc.discovery.find_adapter(make_model(cls)).name == name


@MODELS
@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_the_oracle(cls, batch, padding, kernel):
    model, profile = make_model(cls), make_profile()
    before = run(model, BATCHES[batch], padding)
    expected = run(oracle_of(model, profile), BATCHES[batch], padding)
    with freeloc.patch(model, profile):
        found = run(model, BATCHES[batch], padding)
    assert error(found, expected) <= 2e-5
    assert error(before, expected) > 1e-3
    assert sys.modules["wan.modules.model"].flash_attention is kernel
    assert error(run(model, BATCHES[batch], padding), before) == 0


@MODELS
@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa"])
def test_each_policy_on_every_layer(cls, policy):
    model, profile = make_model(cls), make_profile({policy: [0, 1, 2, 3]})
    before = run(model, BATCHES["two sizes"], padding=7)
    expected = run(oracle_of(model, profile), BATCHES["two sizes"], padding=7)
    with freeloc.patch(model, profile):
        found = run(model, BATCHES["two sizes"], padding=7)
    assert error(found, expected) <= 2e-5
    assert error(before, expected) > 1e-3


def test_vace_blocks_get_the_policy_of_the_layer_they_run_beside():
    model = make_model(wan_double.VaceWanModel)
    with freeloc.patch(model, make_profile()) as patch:
        run(model, BATCHES["one"])
    beside = [(layer.path, layer.layer, layer.method) for layer in patch.report().layers if "vace" in layer.path]
    assert beside == [("vace_blocks.0.self_attn", 0, "vrpr"), ("vace_blocks.1.self_attn", 2, "vrpr+tsa")]


def test_cross_attention_keeps_the_kernel(monkeypatch):
    keys = []

    def watched(q, k, *rest, **named):
        keys.append(k.shape[1])
        return wan_double.flash_attention(q, k, *rest, **named)

    monkeypatch.setattr(sys.modules["wan.modules.model"], "flash_attention", watched)
    model = make_model()
    with freeloc.patch(model, make_profile(), method="vrpr"):
        run(model, BATCHES["one"])
        assert keys == [5] * 4
        freeloc.unpatch(model)
        run(model, BATCHES["one"])
    assert keys == [5] * 4 + [135, 5] * 4


def test_threads_share_the_kernels_name_but_not_the_correction(kernel):
    models = [make_model() for _ in range(3)]
    policies = ["vrpr", "tsa", "direct"]
    expected = []
    for model, policy in zip(models, policies, strict=True):
        with freeloc.patch(model, make_profile(), method=policy):
            expected.append(run(model, BATCHES["one"]))
    found = {policy: [] for policy in policies}

    def work(model, policy):
        with freeloc.patch(model, make_profile(), method=policy):
            found[policy].extend(run(model, BATCHES["one"]) for _ in range(8))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, policies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(outs) for outs in found.values()] == [8, 8, 8]
    assert all(error(out, own) == 0 for own, policy in zip(expected, policies, strict=True) for out in found[policy])
    assert sys.modules["wan.modules.model"].flash_attention is kernel


def test_a_short_sample_beside_a_long_one_counts_as_left_alone():
    with freeloc.patch(model := make_model(), make_profile()) as patch:
        run(model, BATCHES["one of them short"])
    assert [dict(layer.calls) for layer in patch.report().layers] == [{16: 1}] * 3 + [{}]
    assert patch.report().untouched_calls == 3 + 2
    (model_report,) = patch.report().models
    assert len(model_report.forwards) == 2
    assert set(model_report.forwards.values()) == {1}  # one for each size


@MODELS
@pytest.mark.parametrize("grids", [[(4, 3, 5)], [(1, 2, 2), (4, 3, 5)]])
def test_within_the_trained_length_the_models_own_kernel_runs(cls, grids):
    model = make_model(cls)
    before = run(model, grids, padding=3)
    with freeloc.patch(model, make_profile()) as patch:
        assert error(run(model, grids, padding=3), before) == 0
    assert patch.report().corrected_calls == 0


def test_half_precision_weights_beside_rotated_float32(kernel):
    model = make_model().bfloat16()
    profile = make_profile()
    expected = run(oracle_of(model.float(), profile), BATCHES["two sizes"], padding=3)
    with freeloc.patch(model.bfloat16(), profile):
        found = run(model, BATCHES["two sizes"], padding=3)
    assert found[0].dtype == torch.bfloat16
    assert error(found, expected) <= 3e-2 * max(video.abs().max() for video in expected)


@pytest.mark.parametrize("where", ["blocks.2.self_attn.o", "blocks.2.self_attn.q", "blocks.1.ffn", "head"])
def test_an_exception_restores_the_kernel(where, kernel):
    model = make_model()
    before = run(model, BATCHES["one"])
    handle = model.get_submodule(where).register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError), freeloc.patch(model, make_profile()):
        run(model, BATCHES["one"])
    handle.remove()
    assert sys.modules["wan.modules.model"].flash_attention is kernel
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert error(run(model, BATCHES["one"]), before) == 0


def test_a_local_window_is_refused():
    model = make_model()

    def forward(self, x, seq_lens, grid_sizes, freqs):
        q = self.heads(self.q(x))
        return sys.modules["wan.modules.model"].flash_attention(q, q, q, k_lens=seq_lens, window_size=(5, 5))

    model.blocks[0].self_attn.forward = functools.partial(forward, model.blocks[0].self_attn)
    with (
        pytest.raises(
            freeloc.errors.LayoutError, match=r"expected window_size=\(-1, -1\) in its attention, found \(5, 5\)"
        ),
        freeloc.patch(model, make_profile()),
    ):
        run(model, BATCHES["one"])


def test_a_file_without_the_kernel_is_an_adapter_error():
    model = make_model()
    del sys.modules["wan.modules.model"].flash_attention
    with (
        pytest.raises(freeloc.errors.AdapterError, match=r"wan\.modules\.model has no function 'flash_attention'"),
        freeloc.patch(model, make_profile()),
    ):
        run(model, BATCHES["one"])


@pytest.mark.parametrize("sizes", [[[0, 3, 5]], []])
def test_invalid_sizes(sizes):
    model = make_model()
    table = torch.tensor(sizes).reshape(-1, 3)
    with (
        pytest.raises(
            freeloc.errors.LayoutError, match=r"expected grid_sizes \(latent frames, height, width\) >= 1, found"
        ),
        freeloc.patch(model, make_profile()),
    ):
        model.blocks[0].self_attn(torch.zeros(1, 30, 48), torch.tensor([30]), table, model.freqs)
