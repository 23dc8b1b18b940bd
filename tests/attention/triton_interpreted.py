"""The Triton kernel in Triton's own interpreter, on the CPU.

Not collected by itself: the interpreter must be chosen before Triton is imported, so test_triton.py runs this file in a
process of its own. To run it alone: TRITON_INTERPRET=1 pytest tests/attention/triton_interpreted.py
"""

import gc
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_unless
from random_calls import CHANGES, random_inputs, random_mask, random_plan
from subjects import EXAMPLES, Subject
from torch.utils._python_dispatch import TorchDispatchMode

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention import Backend, LayerPlan, LayerPlans, TokenLayout, reference, sdpa
from freeloc.attention.backends.triton import obstacle, tables
from freeloc.plans.frame_plan import relative_positions
from freeloc.plans.length import VideoLength
from freeloc.plans.vrpr import vrpr_plan
from freeloc.testing.backend_cases import CASES, FRAMES, ROPE
from freeloc.testing.backends import TOLERANCE

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("expected TRITON_INTERPRET=1, which must be set before Triton is imported; found it unset")

from freeloc.attention.backends.triton import trial
from freeloc.attention.backends.triton.launch import run
from freeloc.attention.backends.triton.tuning import Config

DTYPES = (torch.float32, torch.float16)
"""Not bfloat16, which the interpreter does not support: without an error, it multiplies the bits of such numbers."""

CASE = {
    case.name: replace(case, batch=1, heads=1 if isinstance(case.plan, FramePlan) and not case.per_head else case.heads)
    for case in CASES
}
"""As small as they can be: the interpreter is slow."""

TILES = Config(queries=16, keys=64, warps=4, stages=1)
LARGE_TILES = Config(queries=128, keys=64, warps=4, stages=1)


def assert_equals_the_reference(tensors, plan, layout, mask=None, scale=None, tiles=TILES):
    query = tensors[0]
    assert obstacle(*tensors, mask, DTYPES) == ""
    found = run(*tensors, plan, layout, mask, scale, tiles)
    assert (found.shape, found.dtype) == (query.shape, query.dtype)
    assert found.is_contiguous()
    exact = None if mask is None else mask if mask.dtype == torch.bool else mask.double()
    expected = reference.attend(*(tensor.double() for tensor in tensors), plan, layout, exact, scale)
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def assert_case(name, dtype=torch.float32, tiles=TILES, **changes):
    case = replace(CASE[name], **changes)
    *tensors, mask = case.tensors(dtype)
    assert_equals_the_reference(tensors, case.prepared(), case.layout, mask, case.scale, tiles)


QUICK = ("text on both sides", "mask of float keys", "VRPR and TSA", "decayed logits")


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in CASE if "pairs" not in name])
def test_all_calls_of_the_conformance_suite(name):
    assert_case(name, tiles=LARGE_TILES if name == "grid 13 x 11" else TILES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plans and frequencies of each head", "text on both sides"])
def test_half_precision(name):
    assert_case(name, torch.float16)


@pytest.mark.slow
def test_tiles_that_divide_neither_frames_nor_stripes_nor_text():
    assert_case("grid 13 x 11", tiles=Config(64, 64, 4, 1), text_first=3, text_last=70)


def test_blocks_at_the_edge_of_what_every_query_of_a_tile_sees():
    """With 110 tokens on each side, queries 64 to 127 all see keys 18 to 173: the block of 16 to 31 needs a mask."""
    layout = TokenLayout(2, 14, 15)
    plan = FramePlan(relative_positions(2), torch.ones(2, 2, dtype=torch.uint8), stripe=110 / 210)
    tensors = random_inputs(torch.Generator().manual_seed(2), layout, heads=1, head_dim=16)
    assert_equals_the_reference(tensors, LayerPlan.of(plan, None, 16), layout, tiles=Config(64, 16, 4, 1))


@pytest.mark.parametrize("scale", [pytest.param(-0.3, marks=pytest.mark.slow), 0.0])
@pytest.mark.parametrize(
    "name", [slow_unless("float" in name, name) for name in ("text first", "mask of bool keys", "mask of float keys")]
)
def test_scales_that_are_not_positive(name, scale):
    assert_case(name, scale=scale)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # reason: to infinity, of which a weight is 0
def test_masks_that_hide_by_the_smallest_number():
    """Some models add this instead of minus infinity; a query that sees nothing else then attends to all equally."""
    generator = torch.Generator().manual_seed(0)
    layout, plan = TokenLayout(3, 2, 3, text_last=4), LayerPlan.of(FramePlan.identity(3), ROPE, 24)
    mask = torch.zeros(1, 1, 1, layout.tokens)
    for hidden in (slice(-3, None), slice(None)):
        mask[..., hidden] = torch.finfo(torch.float32).min
        assert_equals_the_reference(random_inputs(generator, layout, head_dim=24), plan, layout, mask)


@pytest.mark.parametrize(
    "shape", [slow_unless(len(shape) in (1, 5), shape) for shape in [(29,), (1, 1), (1, 29), (2, 1, 29), (1, 2, 1, 29)]]
)
def test_masks_of_all_shapes(shape):
    generator = torch.Generator().manual_seed(1)
    layout, plan = TokenLayout(4, 2, 3, text_first=5), LayerPlan.of(vrpr_plan(4, 2), ROPE, 24)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[..., :1] = True
    assert_equals_the_reference(random_inputs(generator, layout, head_dim=24), plan, layout, mask)


@pytest.mark.parametrize(("labels", "kinds"), [(["wan"], 1), pytest.param(list(EXAMPLES), 20, marks=pytest.mark.slow)])
def test_a_layer_of_each_example(labels, kinds):
    """Plans, rotary embeddings, text and masks that adapters really hand over; each kind of layer once."""
    seen, refused = set(), {}

    def check(label, query, key, value, plan, layout, mask, scale):
        own = plan.groups[0].plan
        kind = (own.pairing, own.span, own.frequencies.shape, query.shape[1:], layout, scale, own.plan.largest_position)
        if (*kind, mask is None) not in seen:
            seen.add((*kind, mask is None))
            heads = 1 if own.frequencies.ndim == 1 else query.shape[1]
            tensors = [tensor[:1, :heads] for tensor in (query, key, value)]
            mask_of_one = None if mask is None else mask[:1]
            why = obstacle(*tensors, mask_of_one, DTYPES)
            if why:
                refused[label] = why
            else:
                assert_equals_the_reference(tensors, plan, layout, mask_of_one, scale)
        return sdpa.attend(query, key, value, plan, layout, mask, scale)

    for label in labels:
        subject = Subject(label)
        with subject.patch(backend=Backend("checked", partial(check, label))):
            subject.run(6)
    assert len(seen) >= kinds
    assert set(refused) == {"hunyuan-video-1.5", "skyreels-v2-causal"} & {*labels}
    assert all("supports masks of keys, found one of pairs" in why for why in refused.values())


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    frames=st.integers(1, 5),
    grid=st.sampled_from([(1, 1), (2, 3), (1, 17)]),
    texts=st.sampled_from([(0, 0), (1, 0), (0, 18), (2, 3)]),
    changes=st.sets(st.sampled_from(CHANGES)),
    mask=st.sampled_from(["none", "bool keys", "float keys"]),
    rope=st.sampled_from([ROPE, TemporalRope(channels=4, first=2, within=10, pairing="(two pair)")]),
    tiles=st.sampled_from([TILES, Config(16, 16, 4, 1)]),
)
def test_random_plans(seed, frames, grid, texts, changes, mask, rope, tiles):
    generator = torch.Generator().manual_seed(seed)
    layout = TokenLayout(frames, *grid, *texts)
    plans = [random_plan(generator, frames, changes=changes), random_plan(generator, frames)]
    prepared = LayerPlans(lambda layer, length: plans, ModelShape(1, 2, 20), rope, rope.frequencies(20))
    tensors = random_inputs(generator, layout, head_dim=20)
    own_mask = random_mask(generator, mask, 1, 2, layout)
    assert_equals_the_reference(tensors, prepared.at(0, VideoLength(frames)), layout, own_mask, tiles=tiles)


def test_the_same_bits_twice():
    case = CASE["VRPR and TSA"]
    tensors = case.tensors(torch.float16)[:3]
    first, second = (run(*tensors, case.prepared(), case.layout, None, None, TILES) for _ in range(2))
    assert torch.equal(first, second)


class Operators(TorchDispatchMode):
    """The operators of PyTorch that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_a_second_call_waits_for_no_tensor():
    """On a GPU, each of these operators would wait for it. The other ones are the interpreter's own."""
    case = CASE["mask of bool keys"]
    *tensors, mask = case.tensors(torch.float32)
    plan, waiting, found = case.prepared(), {"_local_scalar_dense", "nonzero", "_to_copy", "_unique2"}, []
    for _ in range(2):
        with Operators() as operators:
            run(*tensors, plan, case.layout, mask, None, TILES)
        found.append(operators.names & waiting)
    assert found == [waiting, set()]


@pytest.mark.slow
def test_tables_are_freed_with_their_plan():
    gc.collect()
    before = len(tables._tables), len(tables._segments)
    plan = LayerPlan.of(vrpr_plan(FRAMES, 4), ROPE, 24)
    layout = TokenLayout(FRAMES, 1, 2)
    run(*torch.randn(3, 1, 2, layout.tokens, 24), plan, layout, None, None, TILES)
    assert (len(tables._tables), len(tables._segments)) == (before[0] + 1, before[1] + 1)
    del plan
    assert (len(tables._tables), len(tables._segments)) == before


class TestTrial:
    """What `can` asks before the first call on a card."""

    @pytest.fixture(autouse=True)
    def anew(self):
        yield
        trial.what_is_wrong.cache_clear()

    def found(self):
        return trial.what_is_wrong(torch.device("cpu"), torch.float32, 24)

    @pytest.mark.slow
    def test_a_right_kernel_passes(self):
        assert self.found() == ""

    @pytest.mark.slow
    def test_a_kernel_that_is_wrong_in_one_token_does_not(self, monkeypatch):
        def wrong(*call):
            out = run(*call)
            out[0, 0, -1] *= 1.01
            return out

        monkeypatch.setattr(trial, "run", wrong)
        assert "differs from the reference by" in self.found()

    def test_an_error_of_the_compiler_is_the_reason(self, monkeypatch):
        def broken(*call):
            raise KeyError("sm_999")

        monkeypatch.setattr(trial, "run", broken)
        assert self.found() == "cannot be compiled or run here: KeyError: 'sm_999'"

    def test_out_of_memory_surfaces_as_itself(self, monkeypatch):
        def full(*call):
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(trial, "run", full)
        with pytest.raises(torch.OutOfMemoryError):
            self.found()
