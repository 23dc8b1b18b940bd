"""The parts of the backend sdpa: what is computed by blocks, and what replaces it where that cannot be."""

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_unless
from random_calls import ROPE, TOLERANCE, random_inputs, random_mask, random_plan
from torch._subclasses import FakeTensorMode
from torch.profiler import profile

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout, attend, attend_reference, parts
from freeloc.attention.backends import blocks, frames, sdpa
from freeloc.attention.backends.stripes import chunks_of
from freeloc.attention.parts import Part, attend_part, has_parts
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.sums import Sums
from freeloc.plans.baselines import riflex
from freeloc.plans.frame_plan import DENSE, STRIPED
from freeloc.plans.tsa import tsa_plan
from freeloc.plans.vrpr import vrpr_plan
from freeloc.testing import check_backend

NEVER = lambda *args, **kwargs: pytest.fail("computed by blocks")  # noqa: E731


@pytest.fixture
def without_parts(monkeypatch):
    """A PyTorch whose kernels give no log-sum-exp."""
    has_parts.cache_clear()
    monkeypatch.setattr(parts, "_is_right", lambda *call: False)
    monkeypatch.setattr(blocks, "attend_part", NEVER)
    yield
    has_parts.cache_clear()


def merged(parts):
    """Attention over the keys of all parts, (batch, heads, queries, head_dim)."""
    wide = torch.promote_types(parts[0].out.dtype, torch.float32)
    each = []
    for own in zip(*(zip(*part, strict=True) for part in parts), strict=True):  # for each element of the batch
        sums = Sums(torch.empty_like(own[0][0], dtype=wide)[:, None])
        for number, (out, lse) in enumerate(own):
            sums.add(slice(0, 1), 1, 1, Part(out[None, :, None], lse[None, :, None]), is_first=number == 0)
        each.append(sums.out[:, 0])
    return torch.stack(each)


class TestParts:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("bounds", [(0, 9), (0, 1, 9), (0, 4, 5, 9)])
    def test_parts_together_are_attention_over_all_keys(self, dtype, bounds):
        q, k, v = torch.randn(3, 2, 3, 9, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        bias = torch.randn(9, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
        pieces = [slice(*pair) for pair in itertools.pairwise(bounds)]
        found = merged([attend_part(q, k[:, :, at], v[:, :, at], bias[:, at]) for at in pieces])
        expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), bias.double())
        torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    def test_a_query_without_visible_keys_weighs_nothing_in_a_part_and_is_zero_in_all(self):
        q, k, v = torch.randn(3, 1, 2, 4, 16)
        hidden = torch.zeros(4, 4).index_fill_(0, torch.tensor([1, 2]), float("-inf"))
        blind, seen = attend_part(q, k, v, hidden), attend_part(q, k, v)
        assert blind.lse[0, :, 1:3].eq(float("-inf")).all()
        both = merged([blind, seen, blind])
        torch.testing.assert_close(both, seen.out)
        assert merged([blind, blind])[:, :, 1:3].eq(0).all()

    def test_what_is_found_under_a_mode_of_the_caller_is_true_without_it(self):
        has_parts.cache_clear()
        with FakeTensorMode():
            assert has_parts("cpu", torch.float32, 48)

    def test_a_device_without_such_kernels_has_none(self):
        assert has_parts("cpu", torch.float32, 64)
        assert not has_parts("mps", torch.float32, 64)

    @pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
    def test_a_kernel_that_was_renamed_or_changed_is_not_used(self, monkeypatch, error):
        def missing(*call, **options):
            raise error("no such kernel")

        monkeypatch.setattr(parts, "attend_part", missing)
        assert not has_parts.__wrapped__("cpu", torch.float32, 32)

    def test_a_kernel_that_gives_another_number_is_not_used(self, monkeypatch):
        own = attend_part
        in_base_2 = lambda *call, **options: (lambda part: Part(part.out, part.lse * 1.4427))(own(*call, **options))  # noqa: E731
        monkeypatch.setattr(parts, "attend_part", in_base_2)
        assert not has_parts.__wrapped__("cpu", torch.float32, 32)

    def test_out_of_memory_is_not_taken_for_a_missing_kernel(self, monkeypatch):
        def full(*call, **options):
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(parts, "attend_part", full)
        with pytest.raises(torch.OutOfMemoryError):
            has_parts.__wrapped__("cpu", torch.float32, 32)


class TestWithoutParts:
    def test_all_calls_equal_the_reference(self, without_parts):
        check_backend(sdpa.BACKEND, dtypes=[torch.float32])


@pytest.mark.parametrize("plan", [tsa_plan(9, 4), vrpr_plan(9, 4), riflex(9, 4)], ids=["tsa", "vrpr", "riflex"])
def test_gradients_equal_those_of_the_reference(plan):
    layout = TokenLayout(9, 2, 3, text_last=2)
    tensors = [tensor.requires_grad_() for tensor in random_inputs(torch.Generator().manual_seed(5), layout)]
    weights = torch.randn_like(tensors[0])
    found = torch.autograd.grad((attend(*tensors, PreparedPlan(plan, ROPE, 12), layout) * weights).sum(), tensors)
    expected = torch.autograd.grad((attend_reference(*tensors, plan, ROPE, layout) * weights).sum(), tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("texts", [(0, 0), (2, 0), (2, 3)])
def test_long_ranges_of_keys_are_computed_in_pieces(texts, monkeypatch):
    monkeypatch.setattr(frames, "CACHED_KEYS", 16)
    layout, plan = TokenLayout(9, 2, 3, *texts), vrpr_plan(9, 4)
    tensors = random_inputs(torch.Generator().manual_seed(8), layout)
    found = attend(*tensors, PreparedPlan(plan, ROPE, 12), layout)
    torch.testing.assert_close(found, attend_reference(*tensors, plan, ROPE, layout), atol=2e-5, rtol=2e-5)


def test_a_part_of_which_a_mask_hides_all_keys_has_no_weight():
    query, key, value = random_inputs(torch.Generator().manual_seed(9), TokenLayout(2, 2, 2))
    hidden = torch.full((8, 4), float("-inf"), dtype=query.dtype)
    seen = attend_part(query, key[:, :, :4], value[:, :, :4])
    both = merged([seen, attend_part(query, key[:, :, 4:], value[:, :, 4:], hidden)])
    torch.testing.assert_close(both, seen.out)


@given(st.integers(1, 400), st.floats(0.001, 1))
def test_chunks_cover_every_token_of_a_frame_and_windows_every_key_of_a_stripe(tokens, share):
    reach = FramePlan.identity(1).stripe_tokens(tokens) if share == 1 else max(1, round(share * tokens))
    chunks = chunks_of(tokens, reach)
    assert (len(chunks.starts) - 1) * chunks.tokens < tokens <= len(chunks.starts) * chunks.tokens
    for index, start in enumerate(chunks.starts):
        first, last = index * chunks.tokens, min((index + 1) * chunks.tokens, tokens) - 1
        assert 0 <= start <= max(0, first - reach + 1)
        assert min(tokens, last + reach) <= start + chunks.window <= tokens


@pytest.mark.parametrize("kind", ["none", "bool keys", "float keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 9, 40])
def test_half_precision_of_every_tier_equals_the_reference(frames, dtype, kind):
    generator, layout = torch.Generator().manual_seed(7), TokenLayout(frames, 4, 5, 2, 3)
    tsa = tsa_plan(frames, 9)
    plan = FramePlan(vrpr_plan(frames, 9).positions, tsa.visibility, tsa.stripe)
    tensors = random_inputs(generator, layout, 2, 2, 64, dtype)
    mask = random_mask(generator, kind, 2, 2, layout, dtype)
    rope = TemporalRope(channels=24)
    found = attend(*tensors, PreparedPlan(plan, rope, 64), layout, mask)
    expected = attend_reference(*tensors, plan, rope, layout, mask)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(attend(*tensors, PreparedPlan(plan, rope, 64), layout, mask), found)  # the same bits


def test_a_thousand_frames_of_one_token():
    layout, plan = TokenLayout(1000, 1, 1), tsa_plan(1000, 21)
    tensors = random_inputs(torch.Generator().manual_seed(2), layout, heads=1, head_dim=24)
    rope = TemporalRope(channels=8)
    found = attend(*tensors, PreparedPlan(plan, rope, 24), layout)
    torch.testing.assert_close(found, attend_reference(*tensors, plan, rope, layout), atol=2e-5, rtol=2e-5)


def peak_bytes(run):
    """The most memory of torch's allocator at once, beyond what there was before."""
    with profile(profile_memory=True) as profiled:
        kept = run()
    del kept
    changes = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [slow_unless(name == "vrpr", name) for name in ("vrpr", "tsa", "both")])
def test_memory_beyond_the_output_is_less_than_that_of_keys_and_values(name, dtype):
    layout, rope = TokenLayout(161, 5, 8), TemporalRope(channels=44)
    vrpr, tsa = vrpr_plan(161, 21), tsa_plan(161, 21)
    plans = {"vrpr": vrpr, "tsa": tsa, "both": FramePlan(vrpr.positions, tsa.visibility, tsa.stripe)}
    tensors = random_inputs(torch.Generator(), layout, heads=2, head_dim=128, dtype=dtype)
    call = functools.partial(attend, *tensors, PreparedPlan(plans[name], rope, 128), layout)
    call()  # what is kept from call to call is made here
    size = tensors[0].numel() * tensors[0].element_size()
    of_kernel = 2**20  # what PyTorch's kernel takes for its own tiles, at any length
    assert 0.2 * size < peak_bytes(call) - size <= 2 * size + of_kernel


@pytest.mark.parametrize("kinds", [{DENSE}, {STRIPED, DENSE}])
def test_ones_attended_to_give_ones(kinds):
    """Weights of all parts together sum to one in every row."""
    layout = TokenLayout(12, 3, 7, text_first=1)
    plan = random_plan(torch.Generator().manual_seed(4), 12, stripe=0.2)
    assert kinds <= set(plan.visibility.unique().tolist())
    query, key, _ = random_inputs(torch.Generator().manual_seed(6), layout)
    found = attend(query, key, torch.ones_like(key), PreparedPlan(plan, ROPE, 12), layout)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-5, rtol=0)
