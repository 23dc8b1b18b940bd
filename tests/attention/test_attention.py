"""The engine against dense logits: the same numbers, every pair once, and no table of all pairs on the way."""

import functools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout, attend, attend_reference
from freeloc.attention.backends.sdpa import SMALLEST_CHUNK, rotate
from freeloc.attention.prepared import PreparedPlan
from freeloc.errors import AdapterError, LayoutError
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, relative_positions
from freeloc.plans.tsa import TsaSettings, tsa_plan, tsa_visibility
from freeloc.plans.vrpr import vrpr_plan, vrpr_positions

PAIRINGS = ("(pair two)", "(two pair)")
MASKS = ("none", "bool keys", "bool pairs", "float keys", "float pairs")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
ROPE = TemporalRope(channels=4, first=2)
THIN = TsaSettings(dense_frames=1, striped_frames=3, stripe=0.3)


def random_plan(generator, frames, stripe=0.3, own_frame=DENSE, changes=()):
    """Fractional positions far outside the trained range; `own_frame` None leaves the diagonal to chance."""
    positions = 80 * torch.rand(frames, frames, generator=generator, dtype=torch.float64) - 40
    rounded = torch.rand(frames, frames, generator=generator) < 0.3
    positions = torch.where(rounded, positions.round(), positions)
    visibility = torch.randint(0, 3, (frames, frames), generator=generator, dtype=torch.uint8)
    if own_frame is not None:
        visibility.fill_diagonal_(own_frame)
    blind = (visibility == NONE).all(dim=1)
    visibility[blind, 0] = STRIPED
    possible = {
        "frequencies": lambda frequencies: frequencies.flip(0) * 1.7,
        "logit_scale": 1.9,
        "decay": 2 * torch.rand(frames, frames, generator=generator, dtype=torch.float64),
    }
    return FramePlan(positions, visibility, stripe, **{name: possible[name] for name in changes})


def random_inputs(generator, layout, batch=1, heads=2, head_dim=12, dtype=torch.float32):
    return torch.randn(3, batch, heads, layout.tokens, head_dim, generator=generator).to(dtype).unbind()


def random_mask(generator, kind, batch, heads, layout, dtype=torch.float32):
    """A model's mask in which every query keeps a key of its own frame."""
    tokens = layout.tokens
    if kind == "none":
        return None
    shape = {
        "bool keys": (batch, 1, 1, tokens),
        "bool pairs": (1, 1, tokens, tokens),
        "float keys": (batch, 1, 1, tokens),
        "float pairs": (batch, heads, tokens, tokens),
    }[kind]
    kept = torch.rand(shape, generator=generator) < 0.6
    if shape[-2] == 1:
        kept[..., layout.video.start : layout.video.stop : layout.tokens_per_frame] = True
    else:
        kept |= torch.eye(tokens, dtype=torch.bool)
    if "bool" in kind:
        return kept
    return torch.randn(shape, generator=generator).to(dtype).masked_fill(~kept, -math.inf)


def assert_attends_as_the_reference(tensors, plan, rope, layout, mask=None, scale=None):
    query, key, value = tensors
    tables = PreparedPlan(plan, rope, query.shape[-1])
    found = attend(query, key, value, tables, layout, mask, scale)
    expected = attend_reference(query, key, value, plan, rope, layout, mask, scale)
    assert found.dtype == query.dtype
    assert found.is_contiguous()
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@st.composite
def layouts(draw):
    text_first, text_last = draw(st.sampled_from([(0, 0), (3, 0), (0, 5), (2, 1)]))
    return TokenLayout(
        frames=draw(st.integers(1, 7)),
        height=draw(st.sampled_from([1, 3, 5])),
        width=draw(st.sampled_from([1, 2, 7])),
        text_first=text_first,
        text_last=text_last,
    )


@st.composite
def ropes(draw):
    """A head size and a rope that covers all or some of its channels."""
    head_dim = draw(st.sampled_from([8, 12, 24]))
    channels = 2 * draw(st.integers(1, head_dim // 2))
    first = draw(st.integers(0, head_dim - channels))
    theta = draw(st.sampled_from([10_000.0, 256.0]))
    within = channels + 2 * draw(st.integers(0, (head_dim - first - channels) // 2))
    return head_dim, TemporalRope(channels, first, draw(st.sampled_from(PAIRINGS)), theta, within)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    layout=layouts(),
    rope=ropes(),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    stripe=st.floats(0.05, 1),
    scale=st.none() | st.floats(0.05, 1.5),
    changes=st.sets(st.sampled_from(["frequencies", "logit_scale", "decay"])),
)
def test_any_plan_is_attended_as_the_reference_does(
    dtype, kind, seed, layout, rope, batch, heads, stripe, scale, changes
):
    generator = torch.Generator().manual_seed(seed)
    head_dim, rope = rope
    plan = random_plan(generator, layout.frames, stripe, changes=changes)
    tensors = random_inputs(generator, layout, batch, heads, head_dim, dtype)
    mask = random_mask(generator, kind, batch, heads, layout, dtype)
    assert_attends_as_the_reference(tensors, plan, rope, layout, mask, scale)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), layout=layouts(), own_frame=st.sampled_from([None, STRIPED, NONE]))
def test_frames_that_do_not_see_themselves_whole_are_attended_as_the_reference_does(seed, layout, own_frame):
    generator = torch.Generator().manual_seed(seed)
    plan = random_plan(generator, layout.frames, own_frame=own_frame)
    assert_attends_as_the_reference(random_inputs(generator, layout), plan, ROPE, layout)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_accuracy_at_long_distances(dtype, kind, pairing):
    # Keys turn by up to 55 radians here: angles in half precision would miss by a tenth of a radian.
    generator = torch.Generator().manual_seed(3)
    layout = TokenLayout(frames=60, height=1, width=3, text_last=2)
    plan = FramePlan(vrpr_positions(60, 5), tsa_visibility(60, 5, TsaSettings(dense_frames=20, striped_frames=40)))
    rope = TemporalRope(channels=8, pairing=pairing, theta=10.0)
    tensors = random_inputs(generator, layout, dtype=dtype)
    mask = random_mask(generator, kind, 1, 2, layout, dtype)
    assert_attends_as_the_reference(tensors, plan, rope, layout, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decayed_logits_of_half_precision_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(21)
    layout = TokenLayout(frames=5, height=3, width=5, text_last=2)
    plan = random_plan(generator, 5, changes=["decay"])
    query, key, value = random_inputs(generator, layout, head_dim=64, dtype=dtype)
    large = (400 * query, 20 * key, value)  # products beyond float16, logits of reasonable size
    tables = PreparedPlan(plan, ROPE, 64)
    found = attend(*large, tables, layout, scale=1 / 8000)
    expected = attend_reference(*large, plan, ROPE, layout, scale=1 / 8000)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_turned_keys_of_half_precision_are_rounded_once(dtype, pairing):
    generator = torch.Generator().manual_seed(18)
    tables = PreparedPlan(random_plan(generator, 9), TemporalRope(12, pairing=pairing), 12)
    keys = torch.randn(1, 2, 9, 50, 12, generator=generator).to(dtype)
    frames = torch.arange(9)
    turns = tables.rotations(4, frames, keys)
    assert turns.dtype == torch.complex64
    found = rotate(keys, turns, tables.span, pairing)
    exact = rotate(keys.double(), tables.rotations(4, frames, keys.double()), tables.span, pairing)
    # Where float32 and float64 fall on different sides of a tie, one rounding differs.
    assert (found != exact.to(dtype)).double().mean() < 0.01


@pytest.mark.parametrize("kind", MASKS)
def test_permuted_views_are_attended_as_the_reference_does(kind):
    generator = torch.Generator().manual_seed(4)
    layout = TokenLayout(frames=6, height=3, width=5, text_first=2)
    plan = random_plan(generator, 6)
    stored = torch.randn(3, 2, layout.tokens, 3, 12, generator=generator)  # b l h d
    tensors = [tensor.transpose(1, 2) for tensor in stored]
    assert not tensors[0].is_contiguous()
    assert_attends_as_the_reference(tensors, plan, ROPE, layout, random_mask(generator, kind, 2, 3, layout))
    # A view of one row for all heads cannot be written to: the engine must not try.
    broadcast = [tensor[:, :1].expand(-1, 3, -1, -1) for tensor in tensors]
    assert_attends_as_the_reference(broadcast, plan, ROPE, layout)


def test_inputs_stay_as_they_are():
    generator = torch.Generator().manual_seed(5)
    layout = TokenLayout(frames=5, height=2, width=3, text_first=1, text_last=1)
    plan = random_plan(generator, 5)
    tensors = random_inputs(generator, layout)
    mask = random_mask(generator, "float pairs", 1, 2, layout)
    before = [tensor.clone() for tensor in (*tensors, mask, plan.positions, plan.visibility)]
    attend(*tensors, PreparedPlan(plan, ROPE, 12), layout, mask)
    for tensor, copy in zip((*tensors, mask, plan.positions, plan.visibility), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    ("height", "width", "stripe", "texts"),
    [
        (10, 15, 0.125, (0, 0)),
        (10, 15, 0.125, (3, 2)),
        (15, 20, 0.5, (0, 2)),
        (1, 257, 0.01, (1, 0)),
        (11, 13, 1.0, (0, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["none", "bool keys", "float pairs"])
def test_stripes_in_frames_of_several_chunks_are_attended_as_the_reference_does(height, width, stripe, texts, kind):
    assert height * width > SMALLEST_CHUNK
    generator = torch.Generator().manual_seed(6)
    layout = TokenLayout(3, height, width, *texts)
    plan = random_plan(generator, 3, stripe)
    plan.visibility[0, 1:] = STRIPED
    decay = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    mask = random_mask(generator, kind, 1, 1, layout)
    for each in (None, decay):
        plan = FramePlan(plan.positions, plan.visibility, stripe, decay=each)
        assert_attends_as_the_reference(random_inputs(generator, layout, heads=1), plan, ROPE, layout, mask)


def turned(x, position, rope):
    """Channels of x as RoPE has them at a position, one pair of channels at a time."""
    first, stop = rope.span(x.shape[-1])
    pairs, block = rope.channels // 2, (stop - first) // 2
    out = x.clone()
    for pair in range(pairs):
        a, b = (2 * pair, 2 * pair + 1) if rope.pairing == "(pair two)" else (pair, block + pair)
        angle = position * rope.theta ** (-pair / pairs)
        one, other = x[..., first + a], x[..., first + b]
        out[..., first + a] = one * math.cos(angle) - other * math.sin(angle)
        out[..., first + b] = one * math.sin(angle) + other * math.cos(angle)
    return out


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(("channels", "within"), [(4, None), (10, None), (4, 8), (2, 10)])
def test_each_pair_stands_where_the_plan_puts_it(pairing, channels, within):
    """From un-rotated queries and keys, by a rotation of its own: the reference shares `rotate` with the engine."""
    generator = torch.Generator().manual_seed(7)
    frames, n, head_dim = 5, 6, 12
    layout = TokenLayout(frames, 2, 3)
    rope = TemporalRope(channels, first=2, pairing=pairing, theta=100.0, within=within)
    plan = random_plan(generator, frames)
    query, key, value = random_inputs(generator, layout, batch=2, head_dim=head_dim, dtype=torch.float64)
    of_frame = [slice(frame * n, (frame + 1) * n) for frame in range(frames)]
    logits = torch.empty(2, 2, layout.tokens, layout.tokens, dtype=torch.float64)
    for i in range(frames):
        for j in range(frames):
            placed = turned(query[:, :, of_frame[i]], plan.positions[i, j].item(), rope)
            logits[:, :, of_frame[i], of_frame[j]] = placed @ key[:, :, of_frame[j]].mT
    hidden = ~plan.token_mask(n)
    expected = (logits * head_dim**-0.5).masked_fill(hidden, -math.inf).softmax(-1) @ value
    rotated = [
        torch.cat([turned(tensor[:, :, of_frame[frame]], frame, rope) for frame in range(frames)], dim=2)
        for tensor in (query, key)
    ]
    for found in (
        attend(*rotated, value, PreparedPlan(plan, rope, head_dim), layout),
        attend_reference(*rotated, value, plan, rope, layout),
    ):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def weights_without_preference(plan, layout):
    """Attention weights where all logits are 0: values are one-hot, so an output row is a row of weights."""
    tokens = layout.tokens
    query = torch.zeros(1, 1, tokens, tokens, dtype=torch.float64)
    key = torch.randn(1, 1, tokens, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    value = torch.eye(tokens, dtype=torch.float64)[None, None]
    return attend(query, key, value, PreparedPlan(plan, ROPE, tokens), layout)[0, 0]


@pytest.mark.parametrize("texts", [(0, 0), (2, 3)])
def test_every_pair_counts_exactly_once_where_all_are_visible(texts):
    layout = TokenLayout(6, 3, 3, *texts)
    weights = weights_without_preference(vrpr_plan(6, 2), layout)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / layout.tokens), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("grid", "frames"), [((3, 3), 7), ((10, 15), 3)])
@pytest.mark.parametrize("texts", [(0, 0), (2, 3)])
def test_every_visible_pair_counts_exactly_once_and_no_other(grid, frames, texts):
    layout = TokenLayout(frames, *grid, *texts)
    plan = random_plan(torch.Generator().manual_seed(9), frames)
    assert set(plan.visibility.flatten().tolist()) == {NONE, STRIPED, DENSE}
    visible = torch.ones(layout.tokens, layout.tokens, dtype=torch.float64)
    visible[layout.video, layout.video] = plan.token_mask(layout.tokens_per_frame).double()
    weights = weights_without_preference(plan, layout)
    torch.testing.assert_close(weights, visible / visible.sum(-1, keepdim=True), atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_identity_plan_is_ordinary_attention(kind, scale):
    generator = torch.Generator().manual_seed(10)
    layout = TokenLayout(5, 3, 5, text_first=1, text_last=4)
    query, key, value = random_inputs(generator, layout, batch=2)
    mask = random_mask(generator, kind, 2, 2, layout)
    found = attend(query, key, value, PreparedPlan(FramePlan.identity(5), ROPE, 12), layout, mask, scale)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_heads_with_frequencies_of_their_own_are_turned_each_by_its_own(pairing):
    generator = torch.Generator().manual_seed(11)
    layout, rope = TokenLayout(6, 2, 3, text_last=2), TemporalRope(12, pairing=pairing)
    tensors = random_inputs(generator, layout, batch=2, heads=3)
    frequencies = torch.rand(3, 6, generator=generator, dtype=torch.float64) * (torch.arange(6) % 3 == 0)
    plan = random_plan(generator, 6)
    found = attend(*tensors, PreparedPlan(plan, rope, 12, frequencies), layout)
    expected = attend_reference(*tensors, plan, rope, layout, frequencies=frequencies)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    for head in range(3):
        alone = [tensor[:, head : head + 1] for tensor in tensors]
        by_itself = attend(*alone, PreparedPlan(plan, rope, 12, frequencies[head]), layout)
        torch.testing.assert_close(found[:, head : head + 1], by_itself, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("changes", [(), ("decay",)])
def test_queries_that_a_mask_lets_see_nothing_get_nothing(changes):
    """HunyuanVideo 1.5 masks the rows of padded text too."""
    generator = torch.Generator().manual_seed(12)
    layout = TokenLayout(4, 2, 3, text_last=3)
    mask = torch.ones(1, 1, layout.tokens, layout.tokens, dtype=torch.bool)
    mask[..., -2:, :] = mask[..., :, -2:] = mask[..., 7, :] = False
    tensors, plan = random_inputs(generator, layout), random_plan(generator, 4, changes=changes)
    found = attend(*tensors, PreparedPlan(plan, ROPE, 12), layout, mask)
    assert not found[:, :, [7, -2, -1]].any()
    torch.testing.assert_close(found, attend_reference(*tensors, plan, ROPE, layout, mask), atol=2e-5, rtol=2e-5)


def test_text_sees_everything_at_true_positions_and_is_seen_by_every_frame():
    generator = torch.Generator().manual_seed(11)
    layout = TokenLayout(6, 2, 3, text_first=2, text_last=3)
    plan = FramePlan(random_plan(generator, 6).positions, torch.eye(6, dtype=torch.uint8) * DENSE)
    query, key, value = random_inputs(generator, layout)
    tables = PreparedPlan(plan, ROPE, 12)
    found = attend(query, key, value, tables, layout)
    text = [0, 1, *range(layout.video.stop, layout.tokens)]
    ordinary = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found[:, :, text], ordinary[:, :, text], atol=2e-6, rtol=2e-6)
    for token in text:
        moved = value.clone()
        moved[:, :, token] += 1
        assert ((attend(query, key, moved, tables, layout) - found).abs().amax(-1) > 1e-6).all()


def test_one_set_of_tables_serves_every_precision_and_grid():
    generator = torch.Generator().manual_seed(12)
    plan = random_plan(generator, 4)
    tables = PreparedPlan(plan, ROPE, 12)
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float32):
        for grid in ((2, 3), (1, 5)):
            layout = TokenLayout(4, *grid)
            query, key, value = random_inputs(generator, layout, dtype=dtype)
            found = attend(query, key, value, tables, layout)
            expected = attend_reference(query, key, value, plan, ROPE, layout)
            torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_tables_first_used_in_inference_mode_serve_training():
    generator = torch.Generator().manual_seed(13)
    layout = TokenLayout(5, 2, 2)
    query, key, value = random_inputs(generator, layout)
    with torch.inference_mode():
        tables = PreparedPlan(vrpr_plan(5, 2), ROPE, 12)
        found = attend(query, key, value, tables, layout)
    key.requires_grad_()
    again = attend(query, key, value, tables, layout)
    again.sum().backward()
    assert torch.equal(found, again.detach())
    assert key.grad.abs().max() > 0


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize("kind", ["none", "bool keys", "float keys"])
@pytest.mark.parametrize("text_last", [0, 5])
def test_no_table_of_all_pairs_is_ever_made(kind, text_last):
    generator = torch.Generator().manual_seed(14)
    layout = TokenLayout(60, 3, 4, text_last=text_last)
    plan = tsa_plan(60, 9, TsaSettings(dense_frames=3, striped_frames=8))
    assert plan.density(layout.tokens_per_frame) < 0.2
    query, key, value = random_inputs(generator, layout, heads=1)
    mask = random_mask(generator, kind, 1, 1, layout)
    tables = PreparedPlan(plan, ROPE, 12)
    with torch.no_grad(), Largest() as fast:
        attend(query, key, value, tables, layout, mask)
    with torch.no_grad(), Largest() as slow:
        attend_reference(query, key, value, plan, ROPE, layout, mask)
    assert slow.elements >= layout.tokens**2
    assert fast.elements <= layout.tokens**2 / 40


def test_striped_frames_cost_little_more_than_the_pairs_they_keep(monkeypatch):
    layout = TokenLayout(frames=3, height=20, width=50, text_last=4)
    striped = torch.full((3, 3), STRIPED, dtype=torch.uint8)
    plan = FramePlan(relative_positions(3), striped, stripe=0.02)
    calls = []
    own = F.scaled_dot_product_attention

    def counted(query, key, *args, **kwargs):
        calls.append(query.shape[2] * key.shape[2])
        return own(query, key, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    query, key, value = random_inputs(torch.Generator().manual_seed(19), layout, heads=1)
    attend(query, key, value, PreparedPlan(plan, ROPE, 12), layout)
    # One call for the text, eight chunks of up to 128 tokens per frame; each sees its own tokens and 19 on both sides.
    assert len(calls) == 1 + 3 * 8
    assert max(calls[1:]) == 128 * (3 * (128 + 2 * 19) + 4)


def test_frames_whose_visible_pairs_stand_at_true_positions_are_not_turned():
    plan = tsa_plan(12, 5, TsaSettings(dense_frames=2, striped_frames=4, sink_frames=1))
    # Only the sink, clamped to 4 frames away, is turned; hidden pairs are clamped too.
    assert PreparedPlan(plan, ROPE, 12).rotated == [frame > 4 for frame in range(12)]


@pytest.mark.parametrize(
    ("queries", "keys", "found"),
    [(31, 31, "31 queries and 31 keys"), (33, 30, "33 queries and 30 keys"), (0, 33, "0 queries and 33 keys")],
)
@pytest.mark.parametrize("reference", [False, True])
def test_another_number_of_tokens_is_refused_with_both_numbers(queries, keys, found, reference):
    layout = TokenLayout(frames=5, height=2, width=3, text_first=1, text_last=2)
    plan = FramePlan.identity(5)
    query, key = torch.zeros(1, 1, queries, 12), torch.zeros(1, 1, keys, 12)
    # 1 + 5 * 6 + 2 tokens
    message = f"expected self-attention over 33 tokens (5 latent frames of 2 x 3, 3 of text), found {found}"
    tables = plan if reference else PreparedPlan(plan, ROPE, 12)
    run = functools.partial(attend_reference, rope=ROPE) if reference else attend
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        run(query, key, key, tables, layout=layout)


def test_a_plan_for_another_length_is_refused_with_both_lengths():
    tensor = torch.zeros(1, 1, 30, 12)
    with pytest.raises(LayoutError, match="the plan is for 6 latent frames, the video has 5"):
        attend(tensor, tensor, tensor, PreparedPlan(FramePlan.identity(6), ROPE, 12), TokenLayout(5, 2, 3))


@pytest.mark.parametrize("rope", [TemporalRope(5), TemporalRope(0), TemporalRope(10, first=4)])
def test_a_rope_that_does_not_fit_the_head_is_refused(rope):
    with pytest.raises(AdapterError, match=f"even number of temporal channels within 12, found {rope.channels}"):
        PreparedPlan(FramePlan.identity(2), rope, head_dim=12)


@pytest.mark.parametrize("within", [2, 7, 14])
def test_a_block_that_does_not_fit_the_head_is_refused(within):
    with pytest.raises(AdapterError, match=f"expected 4 to 12 paired channels, an even number, found {within}"):
        PreparedPlan(FramePlan.identity(2), TemporalRope(4, within=within), head_dim=12)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_gradients_are_those_of_the_reference(kind, pairing):
    generator = torch.Generator().manual_seed(15)
    layout = TokenLayout(5, 3, 3, text_first=2, text_last=1)
    rope = TemporalRope(channels=6, first=2, pairing=pairing)
    plan = FramePlan(vrpr_positions(5, 3) + 0.25, tsa_visibility(5, 2, THIN), THIN.stripe)
    leaves = [t.requires_grad_() for t in random_inputs(generator, layout, batch=2, dtype=torch.float64)]
    mask = random_mask(generator, kind, 2, 2, layout, torch.float64)
    upstream = torch.randn(leaves[0].shape, generator=generator, dtype=torch.float64)
    fast = attend(*leaves, PreparedPlan(plan, rope, 12), layout, mask)
    slow = attend_reference(*leaves, plan, rope, layout, mask)
    found = torch.autograd.grad((fast * upstream).sum(), leaves)
    expected = torch.autograd.grad((slow * upstream).sum(), leaves)
    for gradient, reference in zip(found, expected, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(gradient, reference, atol=1e-9, rtol=1e-9)


def test_a_position_offset_shared_by_a_whole_row_changes_the_result():
    """Positions are absolute per pair, not up to a shift per query: a plan that differs only so is another plan."""
    generator = torch.Generator().manual_seed(16)
    layout = TokenLayout(4, 1, 3)
    tensors = random_inputs(generator, layout)
    dense = FramePlan.identity(4).visibility
    true, shifted = (FramePlan(relative_positions(4) + offset, dense) for offset in (0.0, 1.5))
    outputs = [attend(*tensors, PreparedPlan(plan, ROPE, 12), layout) for plan in (true, shifted)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2
    assert_attends_as_the_reference(tensors, shifted, ROPE, layout)


@pytest.mark.parametrize("text_last", [0, 2])
def test_a_query_whose_visible_keys_the_model_masks_gets_zeros(text_last):
    """As `scaled_dot_product_attention` gives for a row without keys: padding frames stay finite."""
    generator = torch.Generator().manual_seed(17)
    layout = TokenLayout(6, 2, 2, text_last=text_last)
    plan = tsa_plan(6, 2, TsaSettings(dense_frames=1, striped_frames=2, sink_frames=0))
    query, key, value = random_inputs(generator, layout)
    mask = torch.ones(1, 1, 1, layout.tokens, dtype=torch.bool)
    mask[..., 8:] = False
    found = attend(query, key, value, PreparedPlan(plan, ROPE, 12), layout, mask)
    assert found.isfinite().all()
    assert (found[:, :, 16:24] == 0).all()
    assert (found[:, :, :12] != 0).any(-1).all()


def test_frames_that_see_the_same_share_a_call(monkeypatch):
    """A shift of all keys is one call, a window one call for each of its ends and one for each frame between."""
    from freeloc.plans.baselines import sliding_window
    from freeloc.plans.vrpr import vrpr_plan
    from freeloc.probing.perturbations import shifted

    layout, rope = TokenLayout(12, 2, 3, text_last=2), TemporalRope(channels=8)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 24)
    plain, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **rest: calls.append(1) or plain(*args, **rest)
    )
    expected = {"shift": (shifted(12, 5), 1), "window": (sliding_window(12, 5), 8), "vrpr": (vrpr_plan(12, 5), 12)}
    for name, (plan, count) in expected.items():
        calls.clear()
        out = attend(q, k, v, PreparedPlan(plan, rope, 24), layout)
        assert len(calls) == 1 + count, name  # and one for the text
        assert (out - attend_reference(q, k, v, plan, rope, layout)).abs().max() < 1e-5, name
