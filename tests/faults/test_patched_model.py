"""An error at any line of patch, remove and a forward pass: the model is as before, or patched and right."""

import functools

import opensora_double
import pytest
import submodule_grids
import torch
from conftest import make_profile, make_wan, wan_inputs
from initial_noise import patched
from injection import ERRORS, every, inject, points_of, state_of
from marks import slow_unless
from pipelines import PIPELINES
from torch.overrides import _get_current_function_mode

import freeloc
from freeloc.errors import PatchError
from freeloc.interception import context
from freeloc.interception.registration import patched_models

PROFILE = make_profile({"vrpr+tsa": [0]})
HOOKS = ("patching.py", "interception")
"""Where lines change what a patch leaves in a model: each time that they run counts."""

EACH = pytest.mark.parametrize("kind", [slow_unless("memory" not in kind, kind) for kind in ERRORS])


@pytest.fixture
def model():
    return make_wan(num_layers=1)


@pytest.fixture(autouse=True)
def _no_mode_is_left():
    yield
    assert _get_current_function_mode() is None
    assert not context.lock._is_owned()


def output(model, frames=6):
    with torch.no_grad():
        return model(**wan_inputs(frames, batch=1, height=4, width=4))[0]


@pytest.fixture
def known(model):
    """What the model computes by itself and when patched, and its state."""
    plain, before = output(model), state_of(model)
    with freeloc.patch(model, PROFILE):
        corrected = output(model)
    return plain, corrected, before


def check_as_before(model, known):
    plain, corrected, before = known
    assert state_of(model) == before
    assert torch.equal(output(model), plain)
    with freeloc.patch(model, PROFILE):
        assert torch.equal(output(model), corrected)
    assert state_of(model) == before


def check_recovered(model, known):
    """After an interrupt, with which PyTorch calls no hook: `unpatch` gives the model back."""
    if any(list(patched_models(module)) for module in model.modules()):
        with pytest.raises(PatchError, match="patched already"):
            freeloc.patch(model, PROFILE)
    freeloc.unpatch(model)
    check_as_before(model, known)


@every(61, 17)
@EACH
def test_while_patching(model, known, kind, every):
    def patch():
        return freeloc.patch(model, PROFILE)

    points = points_of(patch, *HOOKS)
    freeloc.unpatch(model)
    points = list(dict.fromkeys([*points, *points_of(patch, distinct=True)]))
    freeloc.unpatch(model)
    assert len(points) > 500
    for point in points[::every]:
        inject(point, ERRORS[kind](), patch)
        if kind == "interrupt":
            check_recovered(model, known)
        else:
            check_as_before(model, known)


@every(17, 7)
@EACH
def test_while_removing(model, known, kind, every):
    points = points_of(freeloc.patch(model, PROFILE).remove)
    assert len(points) > 80
    for number, point in enumerate(points[::every]):
        patch = freeloc.patch(model, PROFILE)
        output(model)
        inject(point, ERRORS[kind](), patch.remove)
        if number % 2:  # once more, instead of unpatch()
            patch.remove()
            assert state_of(model) == known[2]
        check_recovered(model, known)


@every(307, 101)
@EACH
def test_while_running(model, known, kind, every):
    def run():
        return output(model)

    with freeloc.patch(model, PROFILE):
        run()
        points = points_of(run)
    assert len(points) > 1000
    for number, point in enumerate(points[::every]):
        with freeloc.patch(model, PROFILE):
            run()
            inject(point, ERRORS[kind](), run)
            if number % 2:
                assert torch.equal(run(), known[1])
        assert state_of(model) == known[2]
        assert torch.equal(run(), known[0])


@every(307, 101)
@EACH
def test_in_the_first_call_of_a_patch(model, known, kind, every):
    """Which also makes the plans, and checks the order of tokens."""

    def run():
        return output(model)

    with freeloc.patch(model, PROFILE):
        points = points_of(run, distinct=True)
    assert len(points) > 800
    for point in points[::every]:
        with freeloc.patch(model, PROFILE):
            inject(point, ERRORS[kind](), run)
            assert torch.equal(run(), known[1])
        assert state_of(model) == known[2]
        assert torch.equal(run(), known[0])


@every(97, 23)
@EACH
def test_with_a_hook_on_the_submodule_that_has_the_grid(model, known, kind, every):
    def patch():
        return freeloc.patch(model, PROFILE, adapter=submodule_grids.ADAPTERS["wan"])

    for before, action in (
        (lambda: None, lambda _: patch()),
        (lambda: (patch(), output(model))[0], lambda patched: patched.remove()),
        (patch, lambda patched: output(model)),
    ):
        points = points_of(functools.partial(action, before()), *HOOKS)
        freeloc.unpatch(model)
        for point in points[::every]:
            inject(point, ERRORS[kind](), functools.partial(action, before()))
            check_recovered(model, known)


@every(41, 13)
@EACH
def test_while_patching_a_pipeline_with_initial_noise(kind, every):
    pipe = PIPELINES["wan"].pipeline()

    def patch():
        return patched(pipe)

    before = state_of(pipe.transformer)
    points = points_of(patch, "patching.py", "interception/pipeline_noise.py", "interception/noise.py")
    assert "prepare_latents" in vars(pipe)
    for point in points[::every]:
        freeloc.unpatch(pipe)
        inject(point, ERRORS[kind](), patch)
        if kind == "interrupt":
            freeloc.unpatch(pipe)
        assert "prepare_latents" not in vars(pipe)
        assert state_of(pipe.transformer) == before


@every(397, 97, 3)
@EACH
def test_a_kernel_of_another_name_is_given_back(kind, every):
    example = {example.label: example for example in opensora_double.EXAMPLES}["open-sora-2"]
    model = example.model()
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=2)
    inputs = example.inputs(3, 1, 2, 1)

    def run():
        with torch.no_grad():
            return model(**inputs)

    plain = run()
    with freeloc.patch(model, profile):
        corrected = run()
    with freeloc.patch(model, profile):
        points = points_of(run)
    for point in points[::every]:
        with freeloc.patch(model, profile):
            inject(point, ERRORS[kind](), run)
        assert torch.equal(run(), plain)
        with freeloc.patch(model, profile):
            assert torch.equal(run(), corrected)
        assert torch.equal(run(), plain)
