"""Which pairs of tokens are attended to: each visible pair once, without ever making a table of all pairs."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from random_calls import ROPE, random_inputs, random_mask, random_plan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout, attend, attend_reference
from freeloc.attention.prepared import PreparedPlan
from freeloc.plans.baselines import sliding_window
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, relative_positions
from freeloc.plans.tsa import TsaSettings, tsa_plan
from freeloc.plans.vrpr import vrpr_plan
from freeloc.probing.perturbations import shifted


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


@pytest.mark.parametrize("changes", [(), ("decay",)])
def test_queries_with_every_key_masked_get_zeros(changes):
    """HunyuanVideo 1.5 masks the rows of padded text too."""
    generator = torch.Generator().manual_seed(12)
    layout = TokenLayout(4, 2, 3, text_last=3)
    mask = torch.ones(1, 1, layout.tokens, layout.tokens, dtype=torch.bool)
    mask[..., -2:, :] = mask[..., :, -2:] = mask[..., 7, :] = False
    tensors, plan = random_inputs(generator, layout), random_plan(generator, 4, changes=changes)
    found = attend(*tensors, PreparedPlan(plan, ROPE, 12), layout, mask)
    assert not found[:, :, [7, -2, -1]].any()
    torch.testing.assert_close(found, attend_reference(*tensors, plan, ROPE, layout, mask), atol=2e-5, rtol=2e-5)


def test_text_attends_to_everything_at_true_positions_and_every_frame_attends_to_text():
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


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes; a view of another tensor is none."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (
            {
                leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
                for leaf in tree_leaves(of)
                if isinstance(leaf, torch.Tensor)
            }
            for of in ((args, kwargs), out)
        )
        self.elements = max([self.elements, *(size // 4 for at, size in made.items() if at not in given)])
        return out


@pytest.mark.parametrize("kind", ["none", "bool keys", "float keys"])
@pytest.mark.parametrize("text_last", [0, 5])
def test_no_table_of_all_pairs_is_ever_made(kind, text_last):
    generator = torch.Generator().manual_seed(14)
    layout = TokenLayout(120, 3, 4, text_last=text_last)
    plan = tsa_plan(120, 9, TsaSettings(dense_frames=3, striped_frames=8))
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


class Pairs(TorchDispatchMode):
    """The numbers of queries and keys of each call of an attention kernel, for all heads and chunks together."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.calls.append((args[0].shape[0] * args[0].shape[1] * args[0].shape[2], args[1].shape[2]))
        return func(*args, **(kwargs or {}))


def test_striped_frames_cost_little_more_than_the_pairs_they_keep():
    layout = TokenLayout(frames=3, height=20, width=50, text_last=4)
    striped = torch.full((3, 3), STRIPED, dtype=torch.uint8)
    plan = FramePlan(relative_positions(3), striped, stripe=0.02)
    query, key, value = random_inputs(torch.Generator().manual_seed(19), layout, heads=1)
    with torch.no_grad(), Pairs() as kernel:
        attend(query, key, value, PreparedPlan(plan, ROPE, 12), layout)
    # The text attends to everything, and is attended to; then chunks of 20 tokens see 19 more on both sides.
    queries_of_keys = Counter()
    for queries, keys in kernel.calls:
        queries_of_keys[keys] += queries
    assert queries_of_keys == {3004: 4, 4: 3000, 3 * (20 + 2 * 19): 3000}


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


def test_frames_with_the_same_visible_frames_share_a_call():
    """A shift of all keys is one call. A window is one call for each end, and one for all frames between."""
    layout, rope = TokenLayout(12, 2, 3, text_last=2), TemporalRope(channels=8)
    q, k, v = torch.randn(3, 1, 2, layout.tokens, 24)
    # One for the queries of the text, and one for its keys.
    expected = {"shift": (shifted(12, 5), 1), "window": (sliding_window(12, 5), 3)}
    for name, (plan, count) in expected.items():
        with torch.no_grad(), Pairs() as kernel:
            out = attend(q, k, v, PreparedPlan(plan, rope, 24), layout)
        assert len(kernel.calls) == 2 + count, name
        assert (out - attend_reference(q, k, v, plan, rope, layout)).abs().max() < 1e-5, name
