"""Checks of how a correction changes the model. Each docstring is a requirement."""

import copy

import torch
import torch.nn.functional as F

from freeloc.attention import attend, attend_reference
from freeloc.patching import patch
from freeloc.profile.schema import Policy
from freeloc.testing import cases
from freeloc.testing.cases import FRAMES, TRAINED, Case
from freeloc.testing.description import (
    check_each_token_is_where_it_should_be,
    check_every_tensor_of_the_call_is_described,
)
from freeloc.testing.diagnosis import or_rounds, too_small
from freeloc.testing.reading import check_every_call_is_as_described
from freeloc.testing.requirements import error_of, needs, require


@needs(check_every_call_is_as_described)
def check_the_identity_changes_nothing(case: Case) -> None:
    """Under plans that change nothing, the output is bit for bit the unpatched model's."""
    inputs = case.inputs()
    before = case.run(inputs)
    found = case.run_patched(inputs, cases.everything)
    require(
        torch.equal(found, before), f"a plan that changes nothing changes the output by {error_of(found, before):.1e}"
    )


@needs(check_every_tensor_of_the_call_is_described, check_the_identity_changes_nothing)
def check_the_engine_is_the_models_attention(case: Case) -> None:
    """With true positions and all pairs attended, freeloc's attention equals the model's kernel, including masks."""
    inputs = case.inputs(TRAINED)  # beyond it, distances to references are limited
    before = case.run(inputs)
    found = case.run_patched(inputs, cases.everything_through_the_engine)
    error = error_of(found, before)
    require(
        error <= max(1e-3, case.tolerance),
        f"kernel: through freeloc's attention the output differs by {error:.1e} of the largest: look at mask, scale, "
        "valid_keys, segments and output",
    )


@needs(check_each_token_is_where_it_should_be)
def check_fast_equals_reference(case: Case) -> None:
    """On the model's queries and keys, the default attention equals the reference implementation under every policy."""
    policies: tuple[Policy, ...] = ("vrpr", "tsa", "vrpr+tsa")
    largest, tolerance = 0.0, max(1e-4, case.tolerance)
    for call in case.calls():
        own = F.scaled_dot_product_attention(call.query, call.key, call.value, call.mask, scale=call.scale)
        for policy in policies if call.rope else ("tsa",):
            plan = case.plan(policy)
            found = attend(call.query, call.key, call.value, call.prepared(plan), call.layout, call.mask, call.scale)
            rest = plan, call.prepared(plan).rope, call.layout, call.mask, call.scale, call.frequencies
            expected = attend_reference(call.query, call.key, call.value, *rest)
            error = error_of(found, expected)
            problem = f"{call.path}, {policy}: expected the reference, found {error:.1e} of the largest"
            require(error <= tolerance, problem + or_rounds(error))
            largest = max(largest, error_of(found, own))
    require(largest >= 10 * tolerance, too_small("correction", largest, tolerance))


@needs(check_each_token_is_where_it_should_be)
def check_text_is_neither_hidden_nor_rotated(case: Case) -> None:
    """Under plans with masks and rotations, text tokens attend as before, and video tokens attend to all text."""
    call = case.first_call()
    text = torch.ones(call.query.shape[2], dtype=torch.bool)
    text[call.layout.video] = False
    if not text.any():
        return
    plans = [cases.local(case.profile(), 0, FRAMES), case.plan("vrpr+tsa" if call.rope else "tsa")]
    own = F.scaled_dot_product_attention(call.query, call.key, call.value, call.mask, scale=call.scale)
    other = call.value.clone()
    other[:, :, text] += 1
    for plan in plans:
        rest = call.prepared(plan), call.layout, call.mask, call.scale
        found = attend(call.query, call.key, call.value, *rest)
        require(
            error_of(found[:, :, text], own[:, :, text]) <= max(1e-4, case.tolerance),
            "the output of text tokens is not the model's own",
        )
        changed = (attend(call.query, call.key, other, *rest) - found)[:, :, ~text].abs().amax(dim=-1)
        require((changed > 0).all(), "some video tokens do not attend to the text")


@needs(check_every_call_is_as_described)
def check_unpatching_restores_all(case: Case) -> None:
    """After a correction, also one that failed midway, hooks, attributes, weights and output are as before."""
    before, state = case.run(case.inputs()), _state(case)
    found = case.run_patched(case.inputs(), case.strongest)
    require(error_of(found, before) > 1e-6, "the correction changed nothing")
    require(_state(case) == state, "hooks or attributes are left behind")
    module = next(module for _, _, _, module in case.adapter.places(case.model))
    failing = module.register_forward_hook(_fail)
    try:
        case.run_patched(case.inputs(), case.strongest)
    except _MidwayError:
        pass
    finally:
        failing.remove()
    require(_state(case) == state, "after an exception hooks or attributes are left behind")
    require(torch.equal(case.run(case.inputs()), before), "the output is no longer the model's own")


@needs(check_every_call_is_as_described)
def check_two_models_do_not_see_each_other(case: Case) -> None:
    """Patching one model changes neither another model of its class nor an earlier copy."""
    others = case.example.model(), copy.deepcopy(case.model)
    before = case.run(case.inputs())
    with patch(case.model, case.profile(), adapter=case.adapter, method=case.strongest):
        patched = case.run(case.inputs())
        for other in others:
            require(torch.equal(case.run(case.inputs(), other), before), "another model is corrected too")
        require(torch.equal(case.run(case.inputs()), patched), "running another model changes what this one does")


class _MidwayError(Exception):
    """The error that a hook raises in the middle of a forward."""


def _fail(*anything: object) -> None:
    raise _MidwayError


def _state(case: Case) -> list[object]:
    """The state of a model's modules that patching could change."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    found: list[object] = []
    for path, module in case.model.named_modules():
        plain = {name: value for name, value in vars(module).items() if name not in kinds and _comparable(value)}
        processor = vars(getattr(module, "processor", None) or object.__new__(_Nothing))
        counts = [len(getattr(module, kind)) for kind in kinds]
        found.append(
            (
                path,
                type(module),
                counts,
                sorted(vars(module)),
                plain,
                {k: v for k, v in processor.items() if _comparable(v)},
            )
        )
    return found


def _comparable(value: object) -> bool:
    return isinstance(value, str | int | float | bool | tuple | type(None))


class _Nothing:
    pass
