"""The backend triton at the size of a layer of Wan: equal to sdpa, chosen by auto, without waiting, in a CUDA graph."""

import pytest
import torch

import freeloc
from freeloc import FramePlan, attend_layer
from freeloc.adapter import TemporalRope
from freeloc.attention import LayerPlan, TokenLayout, reference, triton
from freeloc.attention.backends.base import choose
from freeloc.attention.backends.triton import tuning
from freeloc.errors import LayoutError
from freeloc.plans.vrpr import vrpr_plan
from freeloc.profile.planning import policy_plan
from freeloc.registry import registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false"),
    pytest.mark.filterwarnings("default"),  # reason: the machine with the GPU may have any version of torch
]
DTYPES = [torch.float16, torch.bfloat16]
FRAMES, HEIGHT, WIDTH, HEADS = 41, 30, 52, 2
ROPE = TemporalRope(channels=lambda head_dim: head_dim - 4 * (head_dim // 6))
"""Wan's: 44 of 128 channels for time."""
METHODS = ("vrpr", "tsa", "vrpr+tsa", "sliding-window", "balanced", "none")
PLANS = {method: policy_plan(freeloc.load_profile("wan2.1"), method, FRAMES) for method in METHODS}
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.fixture(autouse=True)
def _supported():
    """The tests are skipped where the backend says why it cannot run."""
    call = tensors(torch.bfloat16, tokens=6, head_dim=16)
    why = triton.BACKEND.can(*call, LayerPlan.of(FramePlan.identity(1), None, 16), TokenLayout(1, 2, 3), None)
    if why:
        pytest.skip(f"the backend triton {why}")


def tensors(dtype, tokens=FRAMES * HEIGHT * WIDTH, heads=HEADS, head_dim=128):
    """(batch, heads, tokens, head_dim), as views of (batch, tokens, heads, head_dim), as models have them."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (3, 1, tokens, heads, head_dim)
    return torch.randn(shape, generator=generator, device="cuda", dtype=dtype).transpose(2, 3).unbind()


def attend(plan, query, key, value, backend="triton", **changes):
    call = {"grid": (FRAMES, HEIGHT, WIDTH), "rope": ROPE, "backend": backend} | changes
    return attend_layer(plan, 0, query, key, value, **call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PLANS)
def test_a_layer_of_wan_equals_sdpa_in_float32(name, dtype):
    call = tensors(dtype)
    found = attend(PLANS[name], *call).float()
    expected = attend(PLANS[name], *(tensor.float() for tensor in call), backend="sdpa")
    error = (found - expected).abs() - TOLERANCE[dtype] * (1 + expected.abs())
    assert error.max() <= 0


def test_text_and_padding_at_that_size():
    query, key, value = tensors(torch.bfloat16, FRAMES * HEIGHT * WIDTH + 226 + 77)
    mask = torch.ones(1, 1, 1, query.shape[2], dtype=torch.bool, device="cuda")
    mask[..., -50:] = False
    call = {"text_first": 226, "text_last": 77, "mask": mask}
    found = attend(PLANS["vrpr+tsa"], query, key, value, **call).float()
    expected = attend(PLANS["vrpr+tsa"], query.float(), key.float(), value.float(), "sdpa", **call)
    torch.testing.assert_close(found, expected, atol=1.5e-2, rtol=1.5e-2)


@pytest.mark.parametrize("width", [1, 4, 52])
@pytest.mark.parametrize("head_dim", [64, 72, 96])
def test_small_frames_and_other_heads_equal_the_reference(width, head_dim):
    layout = TokenLayout(9, 15, width)
    plan = LayerPlan.of(vrpr_plan(9, 4), ROPE, head_dim)
    call = tensors(torch.float16, layout.tokens, head_dim=head_dim)
    found = triton.BACKEND.compute(*call, plan, layout, None, None).double()
    expected = reference.attend(*(tensor.double() for tensor in call), plan, layout)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_auto_takes_it():
    call = tensors(torch.bfloat16)
    plan, layout = LayerPlan.of(PLANS["tsa"], ROPE, 128), TokenLayout(FRAMES, HEIGHT, WIDTH)
    backends = [registry().backends.get(name) for name in ("sdpa", "triton")]
    ordered = sorted(backends, key=lambda backend: -backend.priority)
    assert choose(ordered, *call, plan, layout, None).name == "triton"
    assert torch.equal(attend(PLANS["tsa"], *call, backend="auto"), attend(PLANS["tsa"], *call))


def test_the_same_bits_every_time():
    call = tensors(torch.bfloat16)
    first = attend(PLANS["vrpr+tsa"], *call)
    for _ in range(3):
        assert torch.equal(attend(PLANS["vrpr+tsa"], *call), first)


@pytest.mark.parametrize("name", PLANS)
def test_memory_beyond_the_output_is_at_most_a_copy_of_the_keys(name):
    query, key, value = tensors(torch.bfloat16)
    attend(PLANS[name], query, key, value)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = attend(PLANS[name], query, key, value)
    size = out.numel() * out.element_size()
    assert torch.cuda.max_memory_allocated() - before <= 2 * size + 2**20


def test_a_steady_call_does_not_wait_for_the_gpu():
    call = tensors(torch.bfloat16)
    mask = torch.ones(1, 1, 1, call[0].shape[2], dtype=torch.bool, device="cuda")
    attend(PLANS["vrpr+tsa"], *call, mask=mask)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            call[0].sum().item()  # else this would show nothing
        attend(PLANS["vrpr+tsa"], *call, mask=mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_in_a_cuda_graph():
    static = [tensor.clone() for tensor in tensors(torch.bfloat16)]
    attend(PLANS["vrpr+tsa"], *static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attend(PLANS["vrpr+tsa"], *static)
    other = [tensor.flip(2) for tensor in static]
    expected = attend(PLANS["vrpr+tsa"], *other)
    for tensor, new in zip(static, other, strict=True):
        tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, expected)


def test_tile_sizes_are_timed_once_and_not_at_all_for_deterministic_algorithms(monkeypatch):
    monkeypatch.setattr(tuning, "_chosen", {})
    call, possible = tensors(torch.bfloat16), tuning.candidates(HEIGHT * WIDTH, 128)
    attend(PLANS["tsa"], *call)
    (timed,) = tuning._chosen.values()
    assert timed in possible
    attend(PLANS["tsa"], *call)
    assert len(tuning._chosen) == 1
    tuning._chosen.clear()
    torch.use_deterministic_algorithms(True)
    try:
        attend(PLANS["tsa"], *call)
    finally:
        torch.use_deterministic_algorithms(False)
    assert list(tuning._chosen.values()) == possible[:1]


def test_gradients_go_another_way():
    query, key, value = tensors(torch.bfloat16, 9 * 6, head_dim=24)
    query.requires_grad_()
    plan, grid = vrpr_plan(9, 4), (9, 2, 3)
    attend(plan, query, key, value, "auto", grid=grid).sum().backward()
    assert query.grad.isfinite().all()
    with pytest.raises(LayoutError, match="triton has no backward, found tensors that require gradients"):
        attend(plan, query, key, value, grid=grid)
