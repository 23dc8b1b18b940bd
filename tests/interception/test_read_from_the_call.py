"""What runs is read from the call: frames and tokens that others add, changed rotations, references, frame rates."""

import inspect
from dataclasses import replace

import pytest
import torch
from dense import oracle
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from families import FACTS
from lengths import plan_of_call
from subjects import EXAMPLES

import freeloc
from freeloc.errors import LayoutError

TRAINED = 4


def run(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))


def profile_of(model, policy="vrpr+tsa", trained=TRAINED):
    return freeloc.default_profile(model, policy, trained_latent_frames=trained)


def expected_of(name, model, inputs, frames, policy="vrpr+tsa", height=2, width=3, **length):
    profile = profile_of(model, policy)
    facts = FACTS[name]

    def plan(layer, count):
        return plan_of_call(profile, layer, count, **{"spacing": facts.spacing, "first": facts.references} | length)

    with oracle(model, facts, plan, frames, height, width):
        return run(model, inputs)


# ---- Hooks of others that change the input, before freeloc's hook or after it

AXIS = {"wan": 2, "wan-vace": 2, "hunyuan-video": 2, "cogvideox-2b": 1, "anyflow": 1, "mochi": 2}
"""The axis of frames of hidden_states, in models that need nothing else to run more frames."""


def prepend_history(frames, axis):
    def hook(module, args, kwargs):
        video = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": torch.cat([video.narrow(axis, 0, frames), video], axis)}

    return hook


@pytest.mark.parametrize("order", ["before the patch", "after it"])
@pytest.mark.parametrize("name", ["wan", "hunyuan-video", "mochi", "cogvideox-2b"])
@pytest.mark.parametrize(("given", "added"), [(3, 6), (6, 3)])
def test_a_hook_that_adds_frames(name, order, given, added):
    """Also where the call that was noted is within the trained length, and the one that runs is not."""
    example, policy = EXAMPLES[name], "tsa" if name == "cogvideox-2b" else "vrpr+tsa"
    model, inputs = example.model(), example.inputs(given, 2, 3, 1)
    video = inputs["hidden_states"]
    inputs["hidden_states"] = torch.cat([video, video], AXIS[name])
    frames = 2 * given + added
    hook = prepend_history(added, AXIS[name])
    whole = inputs | {"hidden_states": hook(model, (), inputs)[1]["hidden_states"]}
    expected = expected_of(name, model, whole, frames, policy)
    handle = model.register_forward_pre_hook(hook, with_kwargs=True) if order == "before the patch" else None
    with freeloc.patch(model, profile_of(model, policy)) as patch:
        handle = handle or model.register_forward_pre_hook(hook, with_kwargs=True)
        for _ in range(2):
            assert (run(model, inputs) - expected).abs().max() <= FACTS[name].tolerance
    handle.remove()
    assert {length for layer in patch.report().layers for length in layer.calls} == {frames}


def test_a_hook_that_keeps_the_number_of_tokens():
    """6 frames of 3 x 3 become 9 of 2 x 3."""
    model, inputs = EXAMPLES["wan"].model(), EXAMPLES["wan"].inputs(6, 3, 3, 1)
    whole = EXAMPLES["wan"].inputs(9, 2, 3, 1)
    expected = expected_of("wan", model, whole, 9)
    with freeloc.patch(model, profile_of(model)):
        handle = model.register_forward_pre_hook(lambda module, args, kwargs: (args, whole), with_kwargs=True)
        assert (run(model, inputs) - expected).abs().max() <= 2e-5
    handle.remove()


@pytest.mark.parametrize("name", ["wan", "hunyuan-video", "ltx"])
def test_a_model_that_adds_tokens_inside_is_refused_beyond_the_trained_number(name):
    """History that is put in front of the tokens, and not into the model's input."""
    example = EXAMPLES[name]
    model = example.model()
    rotary = {"wan": 3, "hunyuan-video": "image_rotary_emb", "ltx": "image_rotary_emb"}[name]
    attention = next(model.get_submodule(path) for path in FACTS[name].paths(model))

    def history(module, args, kwargs):
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        more = torch.cat([hidden, hidden[:, :6]], 1)
        tables = args[rotary] if isinstance(rotary, int) else kwargs[rotary]
        axis = 0 if tables[0].ndim == 2 else 1
        tables = tuple(torch.cat([table, table.narrow(axis, 0, 6)], axis) for table in tables)
        if args:
            return (more, *args[1:3], tables), kwargs
        return args, kwargs | {"hidden_states": more, rotary: tables}

    handle = attention.register_forward_pre_hook(history, with_kwargs=True)
    with freeloc.patch(model, profile_of(model)):
        for frames in (4, 9):  # 4 is the trained length, but 5 frames of tokens run
            with pytest.raises(LayoutError, match=rf"expected {6 * frames} tokens, {frames} latent frames of 2 x 3"):
                run(model, example.inputs(frames, 2, 3, 1))
    handle.remove()


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan-video"])
def test_a_model_that_drops_tokens_runs_at_the_trained_length(name):
    """As token merging does: no more than the trained number of tokens is never too long."""
    example = EXAMPLES[name]
    model = example.model()
    attention = next(model.get_submodule(path) for path in FACTS[name].paths(model))
    processor = attention.processor

    class Merging(type(processor)):
        pass

    attention.processor = Merging()
    inputs = example.inputs(3, 2, 3, 1)
    before = run(model, inputs)
    with freeloc.patch(model, profile_of(model)) as patch:
        assert torch.equal(run(model, inputs), before)
    assert patch.report().corrected_calls == 0


# ---- Rotations that are not those of the description


def rescaled(model, factor):
    """Wan's tables with time interpolated by a factor."""
    channels = model.rope.t_dim
    omega = 10_000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels) * factor
    angles = (torch.arange(1024)[:, None] * omega).repeat_interleave(2, 1)
    model.rope.freqs_cos[:, :channels], model.rope.freqs_sin[:, :channels] = angles.cos(), angles.sin()


@pytest.mark.parametrize("name", ["wan", "wan-vace", "skyreels-v2"])
@pytest.mark.parametrize("factor", [0.5, 0.37, 1.5])
def test_interpolated_time(name, factor):
    model, inputs = EXAMPLES[name].model(), EXAMPLES[name].inputs(13, 2, 3, 1)
    rescaled(model, torch.tensor(factor, dtype=torch.float64))
    profile = profile_of(model, "vrpr")
    facts = replace(FACTS[name], temporal=FACTS[name].temporal * factor)
    with oracle(model, facts, lambda layer, count: freeloc.frame_plan(profile, layer, count), 13, 2, 3):
        expected = run(model, inputs)
    with freeloc.patch(model, profile):
        assert (run(model, inputs) - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("factors", [(1, 0.3, 1, 1), (0.9, 0.5, 0.2, 0.1)], ids=["RIFLEx", "NTK by parts"])
def test_single_frequencies_that_were_changed(factors):
    """As RIFLEx and NTK do, before the patch, and while it lasts."""
    model, inputs = EXAMPLES["wan"].model(), EXAMPLES["wan"].inputs(13, 2, 3, 1)
    profile, factors = profile_of(model, "vrpr"), torch.tensor(factors, dtype=torch.float64)
    temporal = FACTS["wan"].temporal.clone()
    temporal[:4] *= factors
    plain = expected_of("wan", model, inputs, 13, "vrpr")
    facts = replace(FACTS["wan"], temporal=temporal)
    other = EXAMPLES["wan"].model()
    rescaled(other, factors)
    with oracle(other, facts, lambda layer, count: freeloc.frame_plan(profile, layer, count), 13, 2, 3):
        expected = run(other, inputs)
    assert (expected - plain).abs().max() > 1e-3
    with freeloc.patch(model, profile):
        assert (run(model, inputs) - plain).abs().max() <= 2e-5
        rescaled(model, factors)
        assert (run(model, inputs) - expected).abs().max() <= 2e-5
        rescaled(model, torch.ones(4, dtype=torch.float64))
        assert (run(model, inputs) - plain).abs().max() <= 2e-5


def test_tables_from_the_caller():
    """CogVideoX gets its tables from the pipeline: here with time at half the speed."""
    example = EXAMPLES["cogvideox"]
    model, inputs = example.model(), example.inputs(13, 2, 3, 1)
    cos, sin = inputs["image_rotary_emb"]
    angles = torch.arange(13).repeat_interleave(6)[:, None] * torch.tensor([0.5, 0.005])
    cos, sin = cos.clone(), sin.clone()
    cos[:, :4], sin[:, :4] = angles.cos().repeat_interleave(2, 1), angles.sin().repeat_interleave(2, 1)
    given = inputs | {"image_rotary_emb": (cos, sin)}
    profile, temporal = profile_of(model, "vrpr"), FACTS["cogvideox"].temporal.clone()
    temporal[:2] *= 0.5
    facts = replace(FACTS["cogvideox"], temporal=temporal)
    with oracle(model, facts, lambda layer, count: freeloc.frame_plan(profile, layer, count), 13, 2, 3):
        expected = run(model, given)
    with freeloc.patch(model, profile):
        assert (run(model, given) - expected).abs().max() <= 2e-5


def test_a_model_that_is_called_without_its_tables_is_refused():
    example = EXAMPLES["cogvideox"]
    model = example.model()
    with freeloc.patch(model, profile_of(model)), pytest.raises(LayoutError, match="called without rotary tables"):
        run(model, example.inputs(9, 2, 3, 1) | {"image_rotary_emb": None})
    with freeloc.patch(model, profile_of(model)):
        run(model, example.inputs(3, 2, 3, 1) | {"image_rotary_emb": None})


@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuan-video"])
def test_frames_at_times_of_their_own_are_refused_beyond_the_trained_length(name):
    """Keyframes: frames 0, 1, 2 and then 7, 8 ... as where parts of a video are generated."""
    example = EXAMPLES[name]
    model = example.model()
    where = {"wan": 3, "cogvideox": "image_rotary_emb", "hunyuan-video": "image_rotary_emb"}[name]

    def jump(module, args, kwargs):
        tables = args[where] if isinstance(where, int) else kwargs[where]
        axis = 0 if tables[0].ndim == 2 else 1
        rolled = tuple(torch.cat([t.narrow(axis, 0, 12), t.narrow(axis, 24, t.shape[axis] - 24)], axis) for t in tables)
        moved = tuple(torch.cat([r, t.narrow(axis, 0, 12)], axis) for r, t in zip(rolled, tables, strict=True))
        if isinstance(where, int):
            return (*args[:where], moved), kwargs
        return args, kwargs | {where: moved}

    handles = [
        model.get_submodule(path).register_forward_pre_hook(jump, with_kwargs=True) for path in FACTS[name].paths(model)
    ]
    with freeloc.patch(model, profile_of(model)):
        with pytest.raises(LayoutError, match="expected rotary tables that rotate the latent frames evenly"):
            run(model, example.inputs(9, 2, 3, 1))
        run(model, example.inputs(4, 2, 3, 1))
    for handle in handles:
        handle.remove()


def test_weights_loaded_under_the_patch():
    """Mochi's frequencies are weights."""
    model, inputs = EXAMPLES["mochi"].model(), EXAMPLES["mochi"].inputs(9, 2, 3, 1)
    other = EXAMPLES["mochi"].model()
    with torch.no_grad():
        other.pos_frequencies[0] *= 0.6
    facts = replace(FACTS["mochi"], temporal=FACTS["mochi"].temporal * 0.6)
    profile = profile_of(model, "vrpr")
    with oracle(other, facts, lambda layer, count: freeloc.frame_plan(profile, layer, count), 9, 2, 3):
        expected = run(other, inputs)
    with freeloc.patch(model, profile):
        run(model, inputs)
        model.load_state_dict(other.state_dict())
        assert (run(model, inputs) - expected).abs().max() <= 2e-4


# ---- Processors that regroup tokens


def regrouping(attention, frames, per_frame, how):
    """The processor of a module, with tokens in another order on the way to its kernel, and back after it."""
    base = type(attention.processor)
    order = torch.arange(frames * per_frame).view(frames, per_frame)
    order = {"place by place": order.T, "frames reversed": order.flip(0), "rows reversed": order.flip(1)}[how].flatten()
    back = order.argsort()

    class Regrouped(base):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            def ordered(value):
                if isinstance(value, tuple) and len(value) == 2 and all(isinstance(t, torch.Tensor) for t in value):
                    return tuple(t[:, order] if t.shape[0] == 1 or t.ndim > 2 else t[order] for t in value)
                return value

            args, kwargs = tuple(map(ordered, args)), {name: ordered(value) for name, value in kwargs.items()}
            out = super().__call__(attn, hidden_states[:, order], *args, **kwargs)
            return (out[0][:, back], *out[1:]) if isinstance(out, tuple) else out[:, back]

    # Modules of diffusers pass a processor only the arguments that its signature names.
    Regrouped.__call__.__signature__ = inspect.signature(base.__call__)
    return Regrouped()


@pytest.mark.parametrize("how", ["place by place", "frames reversed", "rows reversed"])
@pytest.mark.parametrize("name", ["wan", "hunyuan-video", "cogvideox", "ltx"])
def test_processors_that_regroup_tokens_are_refused(name, how):
    example = EXAMPLES[name]
    model, inputs = example.model(), example.inputs(9, 3, 4, 1)
    before = run(model, inputs)
    for path in FACTS[name].paths(model):
        attention = model.get_submodule(path)
        attention.processor = regrouping(attention, 9, 12, how)
    assert (run(model, inputs) - before).abs().max() <= 2e-5  # alone it changes nothing
    match = r"\(Regrouped\): (tokens reach its kernel in another order|between equal frames they are not rotated)"
    with freeloc.patch(model, profile_of(model)), pytest.raises(LayoutError, match=match):
        run(model, inputs)


class PassedOn:
    """A wrapper whose signature names no argument, so that some classes of diffusers give it no rotary embedding."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, *args, **kwargs):
        return self.processor(*args, **kwargs)


@pytest.mark.parametrize("name", ["cogvideox", "allegro", "cosmos", "wan", "mochi", "ltx"])
def test_a_wrapped_processor_that_gets_no_rotary_embedding_is_refused_and_others_are_right(name):
    example = EXAMPLES[name]
    model, inputs = example.model(), example.inputs(9, 2, 3, 1)
    before, expected = run(model, inputs), expected_of(name, model, inputs, 9)
    for path in FACTS[name].paths(model):
        attention = model.get_submodule(path)
        attention.processor = PassedOn(attention.processor)
    keeps_rope = torch.equal(run(model, inputs), before)
    assert keeps_rope == (name in ("wan", "mochi", "ltx"))  # diffusers, without freeloc
    with freeloc.patch(model, profile_of(model)):
        if keeps_rope:
            assert (run(model, inputs) - expected).abs().max() <= FACTS[name].tolerance
        else:
            with pytest.raises(LayoutError, match=r"\(PassedOn\): between equal frames they are not rotated as its"):
                run(model, inputs)


@pytest.mark.parametrize("name", ["wan", "hunyuan-video", "mochi"])
def test_a_processor_of_the_user_that_keeps_the_order_is_right(name):
    example = EXAMPLES[name]
    model, inputs = example.model(), example.inputs(9, 2, 3, 1)
    expected = expected_of(name, model, inputs, 9)
    for path in FACTS[name].paths(model):
        attention = model.get_submodule(path)
        attention.processor = type("Mine", (type(attention.processor),), {"__module__": "mine"})()
    with freeloc.patch(model, profile_of(model)):
        assert (run(model, inputs) - expected).abs().max() <= FACTS[name].tolerance


def test_a_regrouping_processor_that_is_set_while_patched_is_refused():
    model, inputs = EXAMPLES["wan"].model(), EXAMPLES["wan"].inputs(9, 3, 4, 1)
    with freeloc.patch(model, profile_of(model)):
        run(model, inputs)
        model.blocks[2].attn1.processor = regrouping(model.blocks[2].attn1, 9, 12, "place by place")
        with pytest.raises(LayoutError, match=r"blocks\.2\.attn1 \(Regrouped\)"):
            run(model, inputs)


class Mine(WanAttnProcessor):
    """A processor of the user that keeps the order of tokens."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None, **kwargs):
        args = attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
        return super().__call__(*args, **kwargs)


@pytest.mark.slow
def test_a_processor_of_the_user_must_be_checked_before_it_is_compiled():
    model, inputs = EXAMPLES["wan"].model(), EXAMPLES["wan"].inputs(9, 2, 3, 1)
    expected = expected_of("wan", model, inputs, 9)
    for block in model.blocks:
        block.attn1.processor = Mine()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with freeloc.patch(model, profile_of(model)):
        with pytest.raises(LayoutError, match=r"run the patched model once without torch\.compile"):
            run(compiled, inputs)
        run(model, inputs)
        assert (run(compiled, inputs) - expected).abs().max() <= 2e-5


# ---- Reference images


@pytest.mark.parametrize("name", ["wan", "anyflow", "hunyuan-video"])
@pytest.mark.parametrize("told", [1, 2, (0, 2), (1, 1)])
def test_reference_frames_that_the_user_tells(name, told):
    first, last = (told, 0) if isinstance(told, int) else told
    example = EXAMPLES[name]
    model = example.model()
    inputs = example.inputs(9 + first + last, 2, 3, 1)
    expected = expected_of(name, model, inputs, 9 + first + last, first=first, last=last)
    within = example.inputs(TRAINED + first + last, 2, 3, 1)
    before = run(model, within)
    with freeloc.patch(model, profile_of(model), reference_frames=told) as patch:
        assert (run(model, inputs) - expected).abs().max() <= FACTS[name].tolerance
        assert torch.equal(run(model, within), before)
    assert {length for layer in patch.report().layers for length in layer.calls} == {9}


@pytest.mark.parametrize("told", [-1, 1.5, (1,), (1, 2, 3), "1", True])
def test_a_wrong_number_of_references(told):
    model = EXAMPLES["wan"].model()
    with pytest.raises(freeloc.errors.FreelocError, match="expected reference_frames to be a number >= 0, or a pair"):
        freeloc.patch(model, profile_of(model), reference_frames=told)


def test_more_references_than_frames():
    model = EXAMPLES["wan"].model()
    with (
        freeloc.patch(model, profile_of(model), reference_frames=5),
        pytest.raises(LayoutError, match="expected more latent frames than the 5 of reference images, found 5"),
    ):
        run(model, EXAMPLES["wan"].inputs(5, 2, 3, 1))


# ---- Lengths in seconds


@pytest.mark.parametrize(
    ("name", "frames", "rate", "is_long"),
    [
        ("ltx", 5, 25, False),
        ("ltx", 5, 6, True),
        ("ltx", 9, 50, False),
        ("ltx", 9, 12, True),
        ("ltx-2", 5, 6, True),
        ("ltx-2", 9, 48, False),
        ("cosmos-2", 5, 6, True),
        ("cosmos-2", 9, 48, False),
        ("cosmos-2", 9, 30, True),
    ],
)
def test_the_trained_length_is_counted_in_the_models_unit(name, frames, rate, is_long):
    example = EXAMPLES[name]
    model, inputs = example.model(), example.inputs(frames, 2, 3, 1)
    trained_rate = {"ltx": 25, "ltx-2": 24, "cosmos-2": 24}[name]
    inputs |= {"rope_interpolation_scale": (8 / rate, 32, 32)} if name == "ltx" else {"fps": rate}
    before = run(model, inputs)
    with freeloc.patch(model, profile_of(model, "vrpr", trained=5)) as patch:
        found = run(model, inputs)
    assert torch.equal(found, before) == (not is_long)
    assert bool(patch.report().corrected_calls) == is_long
    if is_long:
        reach = max(layer.largest_after for layer in patch.report().layers)
        assert reach <= 4 * rate / trained_rate + 1e-5


# ---- The report


def test_the_report_says_what_was_read():
    model, example = EXAMPLES["hunyuan-video"].model(), EXAMPLES["hunyuan-video"]
    with freeloc.patch(model, profile_of(model), reference_frames=(2, 1)) as patch:
        for _ in range(2):
            run(model, example.inputs(9, 2, 3, 1))
    report = str(patch.report())
    assert "forward passes: 2 at 6 latent frames" in report
    assert "reference images, not counted as latent frames: 2 before the video, 1 after it (2 forward passes)" in report
    assert "text tokens: 5 (2 forward passes)" in report

    model, example = EXAMPLES["ltx"].model(), EXAMPLES["ltx"]
    with freeloc.patch(model, profile_of(model, "vrpr")) as patch:
        run(model, example.inputs(9, 2, 3, 1) | {"rope_interpolation_scale": (8 / 12.5, 32, 32)})
    assert "positions are seconds: latent frames are 2 times as far apart as in training" in str(patch.report())

    model, example = EXAMPLES["wan"].model(), EXAMPLES["wan"]
    with freeloc.patch(model, profile_of(model)) as patch:
        run(model, example.inputs(9, 2, 3, 1))
        assert "note:" not in str(patch.report())
        rescaled(model, torch.tensor(0.5, dtype=torch.float64))
        run(model, example.inputs(9, 2, 3, 1))
    assert "read from rotary tables, not those of the adapter (1 forward pass)" in str(patch.report())
