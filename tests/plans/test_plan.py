"""FramePlan: refused tables, and the meaning of its two tables for tokens."""

import math
import pickle
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc import FramePlan, FreelocError
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, relative_positions
from freeloc.plans.length import VideoLength, plan_of_length

STRIPES = st.floats(0.001, 1)


def dense(frames):
    return torch.full((frames, frames), DENSE, dtype=torch.uint8)


def plan_from(visibility, stripe=0.125):
    return FramePlan(relative_positions(len(visibility)), torch.tensor(visibility, dtype=torch.uint8), stripe)


@st.composite
def visibilities(draw, most_frames=6):
    frames = draw(st.integers(1, most_frames))
    rows = [
        draw(st.lists(st.sampled_from([NONE, STRIPED, DENSE]), min_size=frames, max_size=frames)) for _ in range(frames)
    ]
    for row in rows:
        if not any(row):
            row[draw(st.integers(0, frames - 1))] = draw(st.sampled_from([STRIPED, DENSE]))
    return rows


@pytest.mark.parametrize(
    ("positions", "visibility", "found"),
    [
        (relative_positions(3), dense(4), "(3, 3) and (4, 4)"),
        (relative_positions(3)[:, :2], dense(3), "(3, 2) and (3, 3)"),
        (relative_positions(3), dense(3)[:2], "(3, 3) and (2, 3)"),
        (torch.zeros(3, dtype=torch.float64), dense(3), "(3,) and (3, 3)"),
        (relative_positions(3)[None].expand(3, 3, 3), dense(3), "(3, 3, 3) and (3, 3)"),
        (torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 0, dtype=torch.uint8), "(0, 0) and (0, 0)"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_both_shapes(positions, visibility, found):
    expected = f"expected positions and visibility of the same shape (frames, frames), found {found}"
    with pytest.raises(FreelocError, match=f"^{re.escape(expected)}$"):
        FramePlan(positions, visibility)


@pytest.mark.parametrize(
    ("positions", "visibility", "message"),
    [
        (
            relative_positions(2).float(),
            dense(2),
            "expected float64 positions and uint8 visibility, found torch.float32 and torch.uint8",
        ),
        (
            relative_positions(2),
            dense(2).bool(),
            "expected float64 positions and uint8 visibility, found torch.float64 and torch.bool",
        ),
        (relative_positions(2) / 0, dense(2), "expected finite positions, found nan or inf"),
        (relative_positions(2) + math.nan, dense(2), "expected finite positions, found nan or inf"),
        (relative_positions(2), dense(2) + 1, "expected visibility 0, 1 or 2, found 3"),
        (relative_positions(2), dense(2) + 253, "expected visibility 0, 1 or 2, found 255"),
    ],
)
def test_tables_of_other_values_are_refused_with_what_was_found(positions, visibility, message):
    with pytest.raises(FreelocError, match=f"^{re.escape(message)}$"):
        FramePlan(positions, visibility)


@pytest.mark.parametrize("stripe", [0, -0.5, 1.0001, math.nan, math.inf])
def test_a_stripe_outside_its_range_is_refused(stripe):
    with pytest.raises(FreelocError, match=re.escape(f"expected a stripe in (0, 1], found {stripe}")):
        FramePlan(relative_positions(2), dense(2), stripe)


def test_the_first_frame_without_visible_frames_is_named():
    with pytest.raises(FreelocError, match="frame 1 attends to no frame: its attention is undefined"):
        plan_from([[2, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_a_frame_visible_to_no_frame_is_allowed():
    assert plan_from([[2, 0], [2, 0]]).frames == 2


@pytest.mark.parametrize("frames", [0, -3])
def test_no_frames_are_refused(frames):
    for build in (relative_positions, FramePlan.identity):
        with pytest.raises(FreelocError, match=f"^expected at least 1 latent frame, found {frames}$"):
            build(frames)


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_the_identity_has_true_positions_and_everything_visible(frames):
    plan = FramePlan.identity(frames)
    assert plan.positions.tolist() == [[i - j for j in range(frames)] for i in range(frames)]
    assert plan.visibility.tolist() == [[DENSE] * frames] * frames
    assert plan.is_identity
    assert plan.frames == frames
    assert plan.largest_position == frames - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.data())
def test_one_changed_entry_is_no_longer_the_identity(frames, data):
    i, j = (data.draw(st.integers(0, frames - 1)) for _ in "ij")
    positions, visibility = relative_positions(frames), dense(frames)
    if data.draw(st.booleans(), label="change the position"):
        positions[i, j] += data.draw(st.sampled_from([-1, 1e-9, 0.5]))
    else:
        visibility[i, j] = data.draw(st.sampled_from([NONE, STRIPED]))
    assert not FramePlan(positions, visibility).is_identity


@pytest.mark.parametrize(
    ("stripe", "tokens", "half_width"),
    [(0.125, 1560, 195), (0.125, 1561, 196), (0.125, 8, 1), (0.125, 9, 2), (0.001, 3, 1), (1, 7, 7), (0.5, 7, 4)],
)
def test_a_stripe_is_rounded_up_to_whole_tokens(stripe, tokens, half_width):
    assert FramePlan(relative_positions(2), dense(2), stripe).stripe_tokens(tokens) == half_width


@settings(max_examples=80, deadline=None)
@given(visibilities(), st.integers(1, 13), STRIPES)
def test_the_token_mask_is_the_double_loop(visibility, tokens, stripe):
    plan = plan_from(visibility, stripe)
    reach = plan.stripe_tokens(tokens)
    size = len(visibility) * tokens
    expected = []
    for query in range(size):
        row = []
        for key in range(size):
            seen = visibility[query // tokens][key // tokens]
            row.append(seen == 2 or (seen == 1 and abs(query % tokens - key % tokens) < reach))
        expected.append(row)
    assert plan.token_mask(tokens).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(visibilities(most_frames=9), st.integers(1, 40), STRIPES)
def test_density_is_the_share_of_the_token_mask(visibility, tokens, stripe):
    plan = plan_from(visibility, stripe)
    assert plan.density(tokens) == pytest.approx(plan.token_mask(tokens).double().mean().item(), rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(visibilities(), st.data())
def test_the_largest_position_is_that_of_attended_pairs_only(visibility, data):
    frames = len(visibility)
    numbers = st.floats(-50, 50)
    rows = [data.draw(st.lists(numbers, min_size=frames, max_size=frames)) for _ in range(frames)]
    plan = FramePlan(torch.tensor(rows, dtype=torch.float64), torch.tensor(visibility, dtype=torch.uint8))
    attended = [abs(rows[i][j]) for i in range(frames) for j in range(frames) if visibility[i][j]]
    assert plan.largest_position == max(attended)


ONES = torch.ones(3, 3, dtype=torch.float64)
WHOLE = (relative_positions(3), dense(3))


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_a_logit_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(FreelocError, match="expected a finite logit_scale above 0, found"):
        FramePlan(*WHOLE, logit_scale=scale)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf, "2"])
def test_a_function_that_gives_no_positive_number_is_refused(scale):
    plan = FramePlan(*WHOLE, logit_scale=lambda tokens_per_frame: scale)
    message = f"expected a finite logit_scale above 0 at 15 tokens per frame, found {scale}"
    with pytest.raises(FreelocError, match=message):
        plan.scale_at(15)


def test_a_factor_may_depend_on_the_tokens_of_a_frame():
    assert FramePlan(*WHOLE, logit_scale=lambda tokens_per_frame: 1 + tokens_per_frame / 10).scale_at(15) == 2.5
    assert FramePlan(*WHOLE, logit_scale=1.5).scale_at(15) == 1.5


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (ONES.float(), "expected bias as float64 of shape (3, 3), found torch.float32 of shape (3, 3)"),
        (ONES[:2], "expected bias as float64 of shape (3, 3), found torch.float64 of shape (2, 3)"),
        (math.nan * ONES, "expected finite bias, found nan or inf: hide a pair with visibility 0"),
        (-math.inf * ONES, "expected finite bias, found nan or inf: hide a pair with visibility 0"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(bias, message):
    with pytest.raises(FreelocError, match=re.escape(message)):
        FramePlan(*WHOLE, bias=bias)


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (ONES.float(), "expected decay as float64 of shape (3, 3), found torch.float32 of shape (3, 3)"),
        (ONES[:2], "expected decay as float64 of shape (3, 3), found torch.float64 of shape (2, 3)"),
        (-ONES, "expected finite decay of at least 0, found another value"),
        (math.nan * ONES, "expected finite decay of at least 0, found another value"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(decay, message):
    with pytest.raises(FreelocError, match=re.escape(message)):
        FramePlan(*WHOLE, decay=decay)


@dataclass(frozen=True)
class Factor:
    """A factor by tokens per frame."""

    slope: float

    def __call__(self, tokens_per_frame):
        return 1 + self.slope * tokens_per_frame


CHANGES = [
    {"frequencies": torch.neg},
    {"logit_scale": 1.1},
    {"logit_scale": Factor(0.1)},
    {"logit_scale": Factor(0.2)},
    {"decay": 0.5 * ONES},
    {"bias": 0.5 * ONES},
    {"stripe": 0.5},
]


@pytest.mark.parametrize("change", CHANGES[:-1])
def test_a_plan_that_changes_logits_is_not_the_identity(change):
    assert not FramePlan(*WHOLE, **change).is_identity


def test_a_decay_of_ones_a_scale_of_one_and_a_bias_of_zeros_change_nothing():
    assert FramePlan(*WHOLE, decay=ONES, logit_scale=1.0, bias=0 * ONES).is_identity


@pytest.mark.parametrize("change", CHANGES)
def test_plans_are_the_same_where_every_part_is(change):
    plan = FramePlan(*WHOLE, **change)
    copy = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in change.items()}
    assert plan.same_as(FramePlan(*WHOLE, **copy))
    for other in [{}, *(other for other in CHANGES if other is not change)]:
        assert not plan.same_as(FramePlan(*WHOLE, **other))
        assert not FramePlan(*WHOLE, **other).same_as(plan)


def test_a_plan_with_every_part_can_be_pickled():
    plan = FramePlan(*WHOLE, stripe=0.5, logit_scale=Factor(0.1), decay=0.5 * ONES, bias=0.3 * ONES)
    assert pickle.loads(pickle.dumps(plan)).same_as(plan)


def test_pairs_with_references_have_no_bias():
    bias = torch.arange(25, dtype=torch.float64).view(5, 5)
    plan = plan_of_length(FramePlan(*(relative_positions(5), dense(5)), bias=bias), VideoLength(8, 2, 1), 3)
    assert torch.equal(plan.bias[2:7, 2:7], bias)
    assert plan.bias.sum() == bias.sum()
