"""The checks of attention backends: right ones pass, each kind of error is reported, and refusals are respected."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from marks import slow_unless

from freeloc.attention import Backend, reference, sdpa
from freeloc.attention.layer_plan import HeadGroup, LayerPlan
from freeloc.attention.prepared import PreparedPlan
from freeloc.testing import ConformanceError, check_backend, run_backend_checks

FLOAT32 = [torch.float32]


def changed(**changes):
    """A backend that computes what sdpa does for another plan."""

    def attend(query, key, value, plan, layout, mask, scale):
        groups = [HeadGroup(group.heads, with_changes(group.plan, changes)) for group in plan.groups]
        return sdpa.attend(query, key, value, LayerPlan(groups), layout, mask, scale)

    return attend


def with_changes(ready, changes):
    return PreparedPlan(replace(ready.plan, **changes), ready.rope, 24, ready.frequencies)


def as_the_model_has_it(query, key, value, plan, layout, mask, scale):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def without_mask(query, key, value, plan, layout, mask, scale):
    return sdpa.attend(query, key, value, plan, layout, None, scale)


def without_scale(query, key, value, plan, layout, mask, scale):
    return sdpa.attend(query, key, value, plan, layout, mask, None)


def one_plan_for_all_heads(query, key, value, plan, layout, mask, scale):
    return sdpa.attend(query, key, value, LayerPlan([HeadGroup(None, plan.groups[0].plan)]), layout, mask, scale)


def text_attends_to_itself_alone(query, key, value, plan, layout, mask, scale):
    out = sdpa.attend(query, key, value, plan, layout, mask, scale)
    out[:, :, layout.text_at] = value[:, :, layout.text_at]
    return out


def in_place(query, key, value, plan, layout, mask, scale):
    out = sdpa.attend(query, key, value, plan, layout, mask, scale)
    key.mul_(2)
    return out


def nan_where_nothing_is_left(query, key, value, plan, layout, mask, scale):
    out = sdpa.attend(query, key, value, plan, layout, mask, scale)
    return out.masked_fill((out == 0).all(dim=-1, keepdim=True), torch.nan)


WRONG = {
    "ignores the plan": (as_the_model_has_it, "VRPR, float32: expected to equal the reference"),
    "ignores the frame mask": (
        lambda *args: changed(visibility=torch.full((9, 9), 2, dtype=torch.uint8))(*args),
        "hidden frames, float32: ",
    ),
    "ignores stripes": (changed(stripe=1.0), "TSA, float32: "),
    "ignores the factor of logits": (changed(logit_scale=1.0), "scaled logits, float32: "),
    "ignores decay": (changed(decay=None), "decayed logits, float32: "),
    "ignores bias": (changed(bias=None), "bias of striped frames, float32: "),
    "ignores tokens in the factor of logits": (
        changed(logit_scale=1.0),
        "logits scaled by tokens per frame, float32: ",
    ),
    "ignores changed frequencies": (changed(frequencies=None), "changed frequencies, float32: "),
    "ignores masks": (without_mask, "mask of bool keys, float32: "),
    "ignores the scale": (without_scale, "a scale of its own, float32: "),
    "ignores heads": (one_plan_for_all_heads, "plans of each head, float32: "),
    "ignores text": (text_attends_to_itself_alone, "text first, float32: "),
    "changes its inputs": (in_place, "VRPR, float32: expected the keys to be unchanged, found them changed"),
    "gives nan": (nan_where_nothing_is_left, "expected finite numbers, as the reference gives, found nan or inf"),
    "gives another dtype": (
        lambda *args: sdpa.attend(*args).double(),
        "expected the backend 'wrong' to return torch.float32 of shape (2, 2, 135, 24) on cpu like the queries, found "
        "torch.float64",
    ),
    "gives another shape": (lambda *args: sdpa.attend(*args)[:, :, 1:], "found torch.float32 of shape (2, 2, 134, 24)"),
    "gives nothing": (lambda *args: None, "expected the backend 'wrong' to return a tensor, found NoneType"),
    "fails": (lambda *args: 1 / 0, "VRPR, float32: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize(
    "backend",
    [pytest.param(sdpa.BACKEND, id="sdpa"), pytest.param(reference.BACKEND, id="reference", marks=pytest.mark.slow)],
)
def test_the_built_in_backends_are_right_in_every_call(backend):
    assert check_backend(backend, dtypes=[torch.float64, torch.float32, torch.float16, torch.bfloat16]) == []


@pytest.mark.parametrize("wrong", [slow_unless(index % 2 == 0, wrong) for index, wrong in enumerate(WRONG)])
def test_a_wrong_backend_is_reported_with_its_wrong_calls(wrong):
    attend, words = WRONG[wrong]
    with pytest.raises(ConformanceError, match=rf"(?s)^the backend 'wrong' is wrong in \d+ .*{re.escape(words)}"):
        check_backend(Backend("wrong", attend), dtypes=FLOAT32)


def test_a_backend_that_is_wrong_in_some_calls_passes_the_others():
    found = {result.check: result.problem for result in run_backend_checks(Backend("w", without_mask), dtypes=FLOAT32)}
    assert all(bool(problem) == ("mask" in name) for name, problem in found.items())
    assert len(found) > 25


def no_masks(query, key, value, plan, layout, mask):
    return "supports no mask" if mask is not None else ""


def test_refused_calls_are_left_out():
    backend = Backend("careful", without_mask, can=no_masks)
    refused = check_backend(backend, dtypes=FLOAT32)
    assert len(refused) == 9
    assert refused[0] == "mask of bool keys, float32: supports no mask"
    of_refused = next(result for result in run_backend_checks(backend, dtypes=FLOAT32) if result.expected)
    assert of_refused.passed
    assert not of_refused.met


@pytest.mark.parametrize(
    ("can", "words"),
    [
        (lambda *call: True, "VRPR, float32: expected can to return a text, found True"),
        (lambda *call: 1 / 0, "VRPR, float32: ZeroDivisionError: division by zero"),
        (
            lambda *call: "requires a CUDA device, found cpu",
            "the backend 'mine' refuses all 40 calls, so nothing was checked: give the device and dtypes that it "
            "supports. The first: no correction, float32: requires a CUDA device, found cpu",
        ),
    ],
)
def test_an_unusable_predicate_is_reported(can, words):
    with pytest.raises(ConformanceError, match=re.escape(words)):
        check_backend(Backend("mine", sdpa.attend, can), dtypes=FLOAT32)
