"""Calls that nobody thought of, drawn at random for every family: equal to the oracle, or an error."""

import contextlib
import functools
from dataclasses import replace

import pytest
import torch
from dense import oracle
from families import FACTS, ltx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lengths import plan_of_call
from test_families import EXAMPLES, WITHOUT_ROPE, run

import freeloc
from freeloc.discovery import find_adapter
from freeloc.errors import FreelocError

TRAINED = 4
VIDEO = {"b c f h w": (2, 3, 4), "b f c h w": (1, 3, 4)}
"""Axes of frames, rows and columns of a video before patches."""
ONLY_VIDEO = {"wan", "hunyuan-video", "mochi", "cogvideox-2b", "anyflow", "motif-video", "skyreels-v2", "cosmos-2"}
"""Examples with no other argument that has the size of the video."""
FIXED_TEXT = {"cogvideox-2b", "kandinsky5"}
"""Examples whose text has one length."""
RATES = {"ltx", "ltx-2", "ltx-2-split", "cosmos", "cosmos-2"}
PER_CHANNEL = {"wan", "wan-vace", "hunyuan-video", "cogvideox", "cosmos", "cosmos-2", "motif-video", "easyanimate"}
"""Examples whose tables are cosines and sines of every channel, which can be turned further."""


@functools.cache
def model_of(name):
    return EXAMPLES[name].model()


@st.composite
def calls(draw):
    """What a call is made of."""
    name = draw(st.sampled_from(sorted(EXAMPLES)))
    hooked = name in ONLY_VIDEO
    told = st.sampled_from([None, (0, 0), (1, 0), (2, 0), (0, 1), (1, 1)])
    return {
        "name": name,
        "frames": draw(st.integers(3 if name == "chronoedit" else 2, 10)),  # ChronoEdit puts two frames 7 apart
        "size": (draw(st.integers(1, 4)), draw(st.integers(1, 5))),
        "batch": draw(st.integers(1, 2)),
        "text": draw(st.integers(1, 5)) if name not in FIXED_TEXT else 5,
        "cropped": draw(st.tuples(st.integers(0, 1), st.integers(0, 1))) if hooked else (0, 0),
        "hook": draw(st.sampled_from(["", "before", "after"])) if hooked else "",
        "references": draw(told) if name != "wan-animate" else None,
        "rate": draw(st.sampled_from([6, 12, 24, 25, 30, 50])) if name in RATES else None,
        "rope": draw(st.sampled_from([1.0, 0.5, 0.4, 1.25])) if name in PER_CHANNEL else 1.0,
        "policy": draw(st.sampled_from(["vrpr", "tsa", "vrpr+tsa"])) if name not in WITHOUT_ROPE else "tsa",
    }


def inputs_of(call):
    """Inputs of the model."""
    inputs = EXAMPLES[call["name"]].inputs(call["frames"], *call["size"], call["batch"])
    for name in ("encoder_hidden_states", "encoder_attention_mask"):
        if isinstance(inputs.get(name), torch.Tensor):
            inputs[name] = inputs[name][:, : call["text"]]
    if any(call["cropped"]):
        axes = VIDEO[axes_of(call["name"])]
        for axis, less in zip(axes[1:], call["cropped"], strict=True):
            video = inputs["hidden_states"]
            inputs["hidden_states"] = video.narrow(axis, 0, video.shape[axis] - less)
    if call["rate"]:
        rate = call["rate"]
        inputs |= {"rope_interpolation_scale": (8 / rate, 32, 32)} if call["name"] == "ltx" else {"fps": rate}
    return inputs


def axes_of(name):
    return find_adapter(model_of(name)).grid.axes


def facts_of(call):
    """What the oracle knows about this call."""
    facts, rate = FACTS[call["name"]], call["rate"]
    if rate and call["name"].startswith("ltx"):
        facts = ltx.at_rate(call["name"], rate)
    elif rate:
        before = facts.spacing
        facts = replace(facts, temporal=facts.temporal * (24 / rate / before), spacing=24 / rate)
    factor = call["rope"]
    counts_positions = call["name"] in RATES
    return replace(
        facts, temporal=facts.temporal * factor, spacing=facts.spacing * (factor if counts_positions else 1.0)
    )


def turning(call, facts, frames, per_frame):
    """A pre-hook of attention modules that turns the temporal channels of their tables further: a replaced rope."""
    factor = call["rope"]
    more = facts.temporal * (1 - 1 / factor) * torch.arange(frames, dtype=torch.float64)[:, None]
    head_dim = int(facts.pairs.max()) + 1
    angles = torch.zeros(frames, head_dim, dtype=torch.float64)
    angles[:, facts.pairs] = more[:, None].expand(-1, 2, -1)
    angles = angles.repeat_interleave(per_frame, 0)

    def turned(value):
        if not (isinstance(value, tuple) and len(value) == 2):
            return value
        cos, sin = value
        wide = angles.view(*([-1] if cos.ndim == 2 else [1, -1, 1]), head_dim)
        both = torch.complex(cos.double(), sin.double()) * torch.polar(torch.ones_like(wide), wide)
        return both.real.to(cos.dtype), both.imag.to(sin.dtype)

    def hook(module, args, kwargs):
        return tuple(map(turned, args)), {name: turned(value) for name, value in kwargs.items()}

    return hook


def check(call):
    name, model, inputs, facts = call["name"], model_of(call["name"]), inputs_of(call), facts_of(call)
    frames, (height, width) = call["frames"], call["size"]
    hook, whole = None, inputs
    if call["hook"]:
        axis = VIDEO[axes_of(name)][0]
        extra = find_adapter(model).patch_size(model)[0]

        def hook(module, args, kwargs):
            video = kwargs["hidden_states"]
            return args, kwargs | {"hidden_states": torch.cat([video.narrow(axis, 0, extra), video], axis)}

        frames, whole = frames + 1, hook(model, (), inputs)[1]
    first, last = call["references"] or (facts.references, 0)
    if any(call["cropped"]):
        patch = find_adapter(model).patch_size(model)[1:]
        height, width = (n - (less and p > 1) for n, less, p in zip(call["size"], call["cropped"], patch, strict=True))
    profile = freeloc.default_profile(model, call["policy"], TRAINED)
    with contextlib.ExitStack() as stack:
        if call["rope"] != 1:
            turn = turning(call, facts, frames, height * width)
            for path in facts.paths(model):
                stack.enter_context(model.get_submodule(path).register_forward_pre_hook(turn, with_kwargs=True))
        try:
            before = run(model, whole)
        except Exception:  # the model does not accept this call
            return "the model's own error"

        def plan(layer, count):
            return plan_of_call(profile, layer, count, facts.spacing, first, last)

        def patched():
            with freeloc.patch(model, profile, reference_frames=call["references"]):
                if call["hook"] == "after":
                    handles.enter_context(model.register_forward_pre_hook(hook, with_kwargs=True))
                return run(model, inputs)

        with contextlib.ExitStack() as handles:
            if call["hook"] == "before":
                handles.enter_context(model.register_forward_pre_hook(hook, with_kwargs=True))
            if frames <= first + last:
                with pytest.raises(FreelocError, match="expected more latent frames than"):
                    patched()
                return "refused"
            found = patched()
        with oracle(model, facts, plan, frames, height, width):
            expected = run(model, whole)
    spread = max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() <= 5 * facts.tolerance * spread
    if (frames - first - last - 1) * facts.spacing <= TRAINED - 1:
        assert torch.equal(found, before)
    return "equal"


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_any_call_equals_the_oracle(call):
    check(call)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_many_calls_equal_the_oracle(call):
    check(call)
