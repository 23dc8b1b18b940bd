"""The adapters of ComfyUI's video models, on doubles of them: the conformance suite, and dense logits.

tests/runtimes does the same with ComfyUI's source.
"""

import functools
import sys

import comfyui_double
import pytest
import torch
from comfyui_facts import facts_of
from dense import oracle
from freeloc_adapters import comfyui, comfyui_ltx, comfyui_wan
from lengths import plan_of_call

import freeloc
from freeloc.adapter import Refusal
from freeloc.errors import AdapterError, LayoutError
from freeloc.testing import conformance, noise

TRAINED = 3
GRID = 4 * TRAINED, 2, 3
BY_NAME = {example.label: example for example in comfyui_double.EXAMPLES}
every_model = pytest.mark.parametrize("name", BY_NAME)


@pytest.fixture(autouse=True)
def doubles():
    names = comfyui_double.install()
    yield
    for name in names:
        del sys.modules[name]


@conformance(*comfyui_double.EXAMPLES[::4])
def test_conformance(check):
    check()


@pytest.mark.slow
@conformance(*[each for index, each in enumerate(comfyui_double.EXAMPLES) if index % 4])
def test_conformance_of_more_models(check):
    check()


@functools.cache
def model_of(name):
    return BY_NAME[name].model()


def run(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return output if isinstance(output, torch.Tensor) else output[0]


def profile_of(model):
    """Every policy that the model supports, alternating over its layers."""
    adapter = freeloc.discovery.find_adapter(model)
    policies = ["tsa", "none"] if adapter.rope_of(model) is None else ["vrpr+tsa", "vrpr", "tsa"]
    count = adapter.shape(model).layers
    layers = {name: list(range(count))[index :: len(policies)] for index, name in enumerate(policies)}
    return freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=TRAINED).model_copy(
        update={"layers": layers}
    )


def patched(name, inputs):
    with freeloc.patch(model_of(name), profile_of(model_of(name))) as patch:
        return run(model_of(name), inputs), patch.report()


def require_dense_logits(name, inputs, first=0, last=0):
    model, frames = model_of(name), GRID[0] + first + last
    profile, facts = profile_of(model), facts_of(name, model)

    def plan(layer, count):
        return plan_of_call(profile, layer, count, facts.spacing, facts.references + first, last)

    before = run(model, inputs)
    with oracle(model, facts, plan, frames, *GRID[1:]):
        expected = run(model, inputs)
    found, report = patched(name, inputs)
    largest = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-5 * largest
    assert (found - before).abs().max() > 1e-3 * largest
    video = GRID[0] - facts.references
    assert {length for layer in report.layers for length in layer.calls} <= {video}


@every_model
def test_equals_dense_logits_at_4x(name):
    require_dense_logits(name, BY_NAME[name].inputs(*GRID, 2))


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - {"comfyui-ltx", "comfyui-ltx-2"}))
def test_latents_that_are_no_multiple_of_the_patch(name):
    if "hunyuan" in name or "mochi" in name:
        pytest.skip("ComfyUI itself cannot run it on such sizes")
    inputs = BY_NAME[name].inputs(*GRID, 1)
    require_dense_logits(name, inputs | {"x": inputs["x"][..., :3, :5]})


@every_model
def test_the_trained_length_is_bit_for_bit_the_models_own(name):
    inputs = BY_NAME[name].inputs(TRAINED, 2, 3, 2)
    inputs |= {"fps": 24.0} if "fps" in inputs else {}  # as in training
    before = run(model_of(name), inputs)
    found, report = patched(name, inputs)
    assert torch.equal(found, before)
    assert report.corrected_calls == 0


def latent(frames):
    return noise(2, 4, frames, 2 * GRID[1], 2 * GRID[2])


@pytest.mark.parametrize(
    ("name", "more", "first", "last"),
    [
        ("comfyui-wan-i2v", {"reference_latent": latent(1)[:, :, 0]}, 1, 0),
        ("comfyui-wan", {"reference_latent": latent(1)[:, :, 0]}, 0, 0),
        ("comfyui-wan", {"time_dim_concat": latent(2)}, 0, 2),
        ("comfyui-wan-i2v", {"reference_latent": latent(1)[:, :, 0], "time_dim_concat": latent(1)}, 1, 1),
        ("comfyui-wan-humo", {"reference_latent": latent(2)}, 0, 2),
        ("comfyui-wan-scail", {"reference_latent": latent(2)}, 2, 0),
    ],
    ids=["in front", "not taken", "behind", "both", "apart and behind", "in front of the embedding"],
)
def test_references_are_no_frames_of_the_video(name, more, first, last):
    require_dense_logits(name, BY_NAME[name].inputs(*GRID, 2) | more, first, last)
    short = BY_NAME[name].inputs(TRAINED, *GRID[1:], 2) | more
    assert torch.equal(patched(name, short)[0], run(model_of(name), short))


@pytest.mark.parametrize("name", ["comfyui-wan", "comfyui-kandinsky5"])
def test_a_scale_of_times_is_no_surprise(name):
    options = {"transformer_options": {"rope_options": {"scale_t": 0.5}}}
    inputs = BY_NAME[name].inputs(*GRID, 1) | options
    found, report = patched(name, inputs)
    assert "read from rotary tables" not in str(report)
    assert not torch.allclose(found, patched(name, BY_NAME[name].inputs(*GRID, 1))[0])


REFUSED = [
    ("comfyui-wan", "context_latents", "the frames of each reference follow"),
    ("comfyui-wan-s2v", "reference_latent", "a reference image follows the video at a time of its own"),
    ("comfyui-wan-s2v", "reference_motion", "earlier frames, pooled by two and by four"),
    ("comfyui-wan-scail", "pose_latents", "the frames of the pose follow"),
    ("comfyui-hunyuan-video", "ref_latent", "a reference image, at time -1"),
    ("comfyui-ltx", "keyframe_idxs", "the frames of guides follow"),
    ("comfyui-ltx-2", "keyframe_idxs", "the frames of guides follow"),
]


@pytest.mark.parametrize(("name", "argument", "reason"), REFUSED)
def test_what_cannot_be_corrected_is_refused_beyond_the_trained_length(name, argument, reason):
    for frames in (TRAINED, GRID[0]):
        inputs = BY_NAME[name].inputs(frames, *GRID[1:], 1) | {argument: torch.zeros(1)}
        if frames == TRAINED:
            patched(name, inputs)
            continue
        with pytest.raises(LayoutError, match=rf"cannot be corrected when called with {argument}: {reason}"):
            patched(name, inputs)


ALL = [*comfyui.ADAPTERS, *comfyui_ltx.ADAPTERS, *comfyui_wan.ADAPTERS]


@pytest.mark.parametrize("refusal", [thing for thing in ALL if isinstance(thing, Refusal)], ids=lambda it: it.name)
def test_models_that_cannot_be_corrected(refusal):
    (path,) = refusal.classes
    file, _, name = path.rpartition(".")
    model = type(name, (torch.nn.Module,), {"__module__": file})()
    with pytest.raises(AdapterError) as raised:
        freeloc.patch(model)
    assert f"{name} cannot be corrected: {refusal.reason}" in str(raised.value)


def test_no_adapter_claims_a_class_that_is_derived_from_its_own():
    """ComfyUI derives models with other attention: Anima from Cosmos-Predict2, VACE from Wan."""
    for name in BY_NAME:
        model = model_of(name)
        derived = type("Derived", (type(model),), {"__module__": "comfy.ldm.anima.model"})
        model = object.__new__(derived)
        torch.nn.Module.__init__(model)
        with pytest.raises(AdapterError, match="no adapter describes this model"):
            freeloc.patch(model)


@pytest.mark.parametrize(
    ("shape", "adapter", "profile"),
    [((30, 12), comfyui_wan.WAN, "wan2.1"), ((30, 24), comfyui_wan.WAN, "wan2.2-ti2v-5b")],
)
def test_published_profiles_fit(shape, adapter, profile):
    found = freeloc.load_profile(profile)
    assert found.adapter == adapter.family
    assert (found.model.layers, found.model.heads) == shape
