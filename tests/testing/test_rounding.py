"""Models that round inside: the conformance suite passes if, and only if, the adapter or the example says so."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from freeloc_toy.adapter import TOY
from freeloc_toy.examples import inputs
from freeloc_toy.model import ToyAttention, ToyDiT, turn

import freeloc
from freeloc.adapter import SDPA
from freeloc.errors import AdapterError, LayoutError
from freeloc.testing import Example, random_model, run_checks


class Cast(ToyAttention):
    """Computes attention in bfloat16, in a model of float32."""

    def forward(self, x, turns, bias):
        q, k, v = (layer(x).unflatten(2, (2, 12)) for layer in (self.q, self.k, self.v))
        q, k, v = (t.bfloat16().transpose(1, 2) for t in (turn(q, turns), turn(k, turns), v))
        bias = None if bias is None else bias.expand(-1, -1, q.shape[2], -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2).to(x.dtype))


class FarAngles(ToyAttention):
    """Computes angles in float32, with positions that start far from zero."""

    far = 3e4

    def forward(self, x, turns, bias):
        q, k, v = (layer(x).unflatten(2, (2, 12)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (turn(t.transpose(1, 2), (turns + self.far) - self.far).transpose(1, 2) for t in (q, k))
        return self.out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


class Coarse(FarAngles):
    far = 6e5  # angles are multiples of 1/16


def model(attention):
    def make():
        made = ToyDiT()
        for block in made.blocks:
            block.attention = attention(None)
        return made

    return random_model(make)


def example(attention, **changes):
    return Example("toy", lambda: model(attention), inputs, video="video", **changes)


ADAPTER = replace(TOY, sites=(replace(TOY.sites[0], kernel=SDPA),))
ROUNDING = {Cast: 1e-2, FarAngles: 3e-3}


def problems(example, adapter=ADAPTER):
    return {result.check: result.problem for result in run_checks(example, adapter) if result.problem}


@pytest.mark.parametrize("attention", ROUNDING)
def test_without_the_word_the_rounding_is_a_wrong_rotation(attention):
    found = problems(example(attention))
    rope = {"check_scores_depend_on_distance_only", "check_our_rotation_is_the_models_own"}
    assert rope & found.keys()
    assert all(
        "; or it rounds by that much itself: then say so with Adapter.rounding" in text for text in found.values()
    )


@pytest.mark.parametrize("attention", ROUNDING)
def test_all_checks_pass_if_the_adapter_or_the_example_says_so(attention):
    rounding = ROUNDING[attention]
    assert problems(example(attention), replace(ADAPTER, rounding=rounding)) == {}
    assert problems(example(attention, tolerance=rounding)) == {}


@pytest.mark.parametrize("attention", ROUNDING)
@pytest.mark.parametrize(
    "wrong",
    [
        {"theta": 80.0},
        {"pairing": "(pair two)", "channels": 4},
        {"step": lambda model, given: 1.02},
        {"channels": 2},
    ],
)
def test_a_wrong_rope_is_no_rounding(attention, wrong):
    adapter = replace(ADAPTER, rounding=ROUNDING[attention], rope=replace(ADAPTER.rope, **wrong))
    assert problems(example(attention), adapter)


def test_a_tolerance_that_hides_the_correction_fails():
    found = problems(example(FarAngles, tolerance=0.2))
    for check, kind in (
        ("check_our_rotation_is_the_models_own", "rope: the rotation"),
        ("check_fast_equals_reference", "the correction"),
    ):
        assert f"{kind} is " in found[check]
        assert "less than ten times the tolerance of 2.0e-01" in found[check]


@pytest.mark.parametrize("rounding", [-1e-3, 0.1, "small"])
def test_more_than_rounding_is_refused(rounding):
    with pytest.raises(AdapterError, match=r"Adapter\.rounding: expected "):
        replace(ADAPTER, rounding=rounding)


def patched(attention, adapter):
    made = model(attention)
    given = inputs(40, 2, 3, 2)
    with torch.no_grad():
        plain = made(**given)
        with freeloc.patch(made, freeloc.default_profile(made, "vrpr", 4, adapter=adapter), adapter=adapter):
            return made(**given), plain


@pytest.mark.parametrize("attention", ROUNDING)
def test_long_calls_of_models_that_round_are_corrected_within_their_rounding(attention):
    expected, plain = patched(ToyAttention, TOY)
    found, _ = patched(attention, replace(ADAPTER, rounding=ROUNDING[attention]))
    error, correction = ((other - expected).abs().max() / expected.abs().max() for other in (found, plain))
    assert error <= ROUNDING[attention]
    assert error < correction / 5


def test_a_rotation_that_rounds_more_than_is_usual_is_refused_in_calls_unless_the_adapter_says_so():
    with pytest.raises(LayoutError, match="not rotated as its rotary tables or its adapter say"):
        patched(Coarse, ADAPTER)
    expected, plain = patched(ToyAttention, TOY)
    found, _ = patched(Coarse, replace(ADAPTER, rounding=2e-2))
    assert (found - expected).abs().max() < (plain - expected).abs().max() / 5
