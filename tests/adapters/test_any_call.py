"""Calls that nobody thought of, drawn at random for every family: equal to the oracle, or an error."""

import contextlib
import functools
from dataclasses import replace

import pytest
import replaced_rope
import torch
from dense import oracle
from families import FACTS, ltx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lengths import plan_of_call
from test_families import EXAMPLES, WITHOUT_ROPE, run

import freeloc
from freeloc.errors import FreelocError, LayoutError

TRAINED = 4
ONLY_VIDEO = {"wan", "hunyuan-video", "mochi", "cogvideox-2b", "anyflow", "motif-video", "skyreels-v2", "cosmos-2"}
"""Examples with no other argument that has the size of the video, so that it can be cropped."""
RATES = {"ltx", "ltx-2", "ltx-2-split", "cosmos", "cosmos-2", "cosmos-controlnet"}
FIXED_TEXT = {"cogvideox-2b", "kandinsky5"}
"""Examples whose text has one length."""
ONE_SIZE = {"skyreels-v2-causal", "latte"}
"""Examples with a hook of their own that depends on the video, so that another hook cannot change it."""


@functools.cache
def model_of(name):
    return EXAMPLES[name].model()


@st.composite
def calls(draw):
    """What a call is made of."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    frames = st.integers(3 if name == "chronoedit" else 2, 10)  # ChronoEdit puts two frames 7 apart
    size = st.tuples(st.integers(1, 4), st.integers(1, 5))
    told = st.sampled_from([None, (0, 0), (1, 0), (2, 0), (0, 1), (1, 1)])
    replaced = None if name in ONE_SIZE else draw(st.sampled_from([None, "before", "after"]))
    has_rope = name not in WITHOUT_ROPE
    return {
        "name": name,
        "frames": draw(frames),
        "size": draw(size),
        "batch": draw(st.integers(1, 2)),
        "text": draw(st.integers(1, 5)) if name not in FIXED_TEXT else 5,
        "cropped": draw(st.tuples(st.integers(0, 1), st.integers(0, 1))) if name in ONLY_VIDEO else (0, 0),
        "replaced": replaced,
        "noted": (draw(frames), draw(size)) if replaced else None,
        "references": draw(told) if name != "wan-animate" else None,
        "rate": draw(st.sampled_from([6, 12, 24, 25, 30, 50])) if name in RATES else None,
        "rope": draw(st.sampled_from([1.0, 1.0, 0.5, 0.4, 1.25])) if has_rope else 1.0,
        "policy": draw(st.sampled_from(["vrpr", "tsa", "vrpr+tsa"])) if has_rope else "tsa",
    }


def inputs_of(call):
    """Inputs of the model."""
    inputs = EXAMPLES[call["name"]].inputs(call["frames"], *call["size"], call["batch"])
    for name in ("encoder_hidden_states", "encoder_attention_mask"):
        if isinstance(inputs.get(name), torch.Tensor):
            inputs[name] = inputs[name][:, : call["text"]]
    for axis, less in zip((3, 4), call["cropped"], strict=True):
        if less:  # the axes of rows and columns before patches
            inputs["hidden_states"] = inputs["hidden_states"].narrow(axis, 0, inputs["hidden_states"].shape[axis] - 1)
    if call["rate"]:
        rate = call["rate"]
        inputs |= {"rope_interpolation_scale": (8 / rate, 32, 32)} if call["name"] == "ltx" else {"fps": rate}
    return inputs


def facts_of(call):
    """What the oracle knows about this call, but for a replaced rope."""
    facts, rate = FACTS[call["name"]], call["rate"]
    if rate and call["name"].startswith("ltx"):
        return ltx.at_rate(call["name"], rate)
    if rate:
        return replace(facts, temporal=facts.temporal * (24 / rate / facts.spacing), spacing=24 / rate)
    return facts


def check(call):
    name, model, whole, own = call["name"], model_of(call["name"]), inputs_of(call), facts_of(call)
    frames, factor = call["frames"], call["rope"]
    height, width = (size - less for size, less in zip(call["size"], call["cropped"], strict=True))
    facts = replaced_rope.times_factor(own, factor)
    if name in RATES:
        facts = replace(facts, spacing=own.spacing * factor)
    first, last = call["references"] or (facts.references, 0)
    profile, inputs = freeloc.default_profile(model, call["policy"], TRAINED), whole
    if call["replaced"]:
        inputs = inputs_of(call | dict(zip(("frames", "size"), call["noted"], strict=True)))

    def plan(layer, count):
        return plan_of_call(profile, layer, count, facts.spacing, first, last)

    def patched():
        with freeloc.patch(model, profile, reference_frames=call["references"]):
            if call["replaced"] == "after":
                handles.enter_context(model.register_forward_pre_hook(replacing, with_kwargs=True))
            return run(model, inputs)

    def replacing(module, args, kwargs):
        return args, whole

    with contextlib.ExitStack() as stack, contextlib.ExitStack() as handles:
        if factor != 1:
            change = replaced_rope.hook(own, factor, frames, height * width)
            for path in own.paths(model):
                stack.enter_context(model.get_submodule(path).register_forward_pre_hook(change, with_kwargs=True))
        try:
            before = run(model, whole)
        except Exception:  # the model does not accept this call
            return "the model's own error"
        if call["replaced"] == "before":
            handles.enter_context(model.register_forward_pre_hook(replacing, with_kwargs=True))
        if frames <= first + last:
            with pytest.raises(FreelocError, match="expected more latent frames than"):
                patched()
            return "refused"
        try:
            found = patched()
        except LayoutError as error:  # only the first distance is seen, which may be another in some models
            if frames - first - last == 2 and "two latent frames as far apart as described" in str(error):
                return "refused"
            raise
        handles.close()
        with oracle(model, facts, plan, frames, height, width):
            expected = run(model, whole)
    spread = max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() <= 5 * facts.tolerance * spread
    if (frames - first - last - 1) * facts.spacing <= TRAINED - 1:
        assert torch.equal(found, before)
    return "equal"


AS_MANY_HEADS_AS_TOKENS = {
    "name": "ltx-2-split",
    "frames": 2,
    "size": (1, 1),
    "batch": 1,
    "text": 1,
    "cropped": (0, 0),
    "replaced": None,
    "noted": None,
    "references": None,
    "rate": 12,
    "rope": 0.5,
    "policy": "vrpr",
}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
@example(AS_MANY_HEADS_AS_TOKENS)
@example(AS_MANY_HEADS_AS_TOKENS | {"name": "mochi", "rate": None})
@example(AS_MANY_HEADS_AS_TOKENS | {"name": "ltx", "batch": 2})
def test_any_call_equals_the_oracle(call):
    check(call)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_many_calls_equal_the_oracle(call):
    check(call)
