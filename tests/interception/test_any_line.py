"""Ctrl-C at any line where patching or removing changes state: afterwards unpatch() recovers the model."""

import functools
import sys
from pathlib import Path

import opensora_double
import pytest
import submodule_grids
import torch
from conftest import make_profile, make_wan, wan_inputs
from torch.overrides import _get_current_function_mode

import freeloc
from freeloc.errors import PatchError
from freeloc.interception import context
from freeloc.interception.registration import patched_models

FILES = {
    str(Path(freeloc.__file__).parent / name)
    for name in (
        "patching.py",
        *(
            f"interception/{name}.py"
            for name in ("hooks", "layers", "patched", "compiled", "context", "interceptors", "names", "marked")
        ),
    )
}


class Interrupt:
    """Raises KeyboardInterrupt at the line of this number, counted over all lines of `FILES` that run inside."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        sys.settrace(self._call)

    def __exit__(self, *error):
        sys.settrace(None)

    def _call(self, frame, event, argument):
        return self._line if frame.f_code.co_filename in FILES else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def lines_of(action):
    """How many lines an action runs."""
    counter = Interrupt(sys.maxsize)
    with counter:
        action()
    return sys.maxsize - counter.left


def state_of(model):
    """All that a patch could leave behind, copied."""
    found = []
    for module in model.modules():
        hooks = module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called
        processor = getattr(module, "processor", None)
        found.append([*map(dict, hooks), sorted(vars(module)), dict(vars(processor)) if processor else None])
    return found


@pytest.fixture(scope="module")
def model():
    return make_wan(num_layers=1)


PROFILE = make_profile({"vrpr+tsa": [0]})


@pytest.fixture(autouse=True)
def _no_mode_is_left():
    yield
    assert _get_current_function_mode() is None
    assert not context.lock._is_owned()


def output(model, frames=6):
    with torch.no_grad():
        return model(**wan_inputs(frames, batch=1, height=4, width=4))[0]


def check_recovered(model, plain, corrected, before):
    """After an interrupt: unpatch() gives the model back, and it can be patched again."""
    patched = any(list(patched_models(module)) for module in model.modules())
    if patched:
        with pytest.raises(PatchError, match="patched already"):
            freeloc.patch(model, PROFILE)
    freeloc.unpatch(model)
    assert state_of(model) == before
    assert torch.equal(output(model), plain)
    with freeloc.patch(model, PROFILE):
        assert torch.equal(output(model), corrected)
    assert state_of(model) == before


@pytest.fixture(scope="module")
def known(model):
    plain, before = output(model), state_of(model)
    with freeloc.patch(model, PROFILE):
        corrected = output(model)
    return plain, corrected, before


def test_interrupted_while_patching(model, known):
    count = lines_of(lambda: freeloc.patch(model, PROFILE))
    freeloc.unpatch(model)
    assert count > 100
    for at in range(count):
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            freeloc.patch(model, PROFILE)
        check_recovered(model, *known)


def test_interrupted_while_removing(model, known):
    count = lines_of(freeloc.patch(model, PROFILE).remove)
    assert count > 30
    for at in range(count):
        patch = freeloc.patch(model, PROFILE)
        output(model)
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            patch.remove()
        if at % 2:  # once more, instead of unpatch()
            patch.remove()
            assert state_of(model) == known[2]
        check_recovered(model, *known)


def test_interrupted_while_running(model, known):
    with freeloc.patch(model, PROFILE):
        output(model)
        count = lines_of(lambda: output(model))
    assert count > 100
    for at in range(0, count, 3):
        with freeloc.patch(model, PROFILE):
            output(model)
            with pytest.raises(KeyboardInterrupt), Interrupt(at):
                output(model)
            if at % 2:
                assert torch.equal(output(model), known[1])
        assert state_of(model) == known[2]
        assert torch.equal(output(model), known[0])


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_interrupted_with_a_hook_on_the_submodule_that_has_the_grid(model, known, every):
    def patch():
        return freeloc.patch(model, PROFILE, adapter=submodule_grids.ADAPTERS["wan"])

    for before, action in (
        (lambda: None, lambda _: patch()),
        (lambda: (patch(), output(model))[0], lambda patched: patched.remove()),
        (patch, lambda patched: output(model)),
    ):
        count = lines_of(functools.partial(action, before()))
        freeloc.unpatch(model)
        for at in range(0, count, every):
            patched = before()
            with pytest.raises(KeyboardInterrupt), Interrupt(at):
                action(patched)
            check_recovered(model, *known)


@pytest.mark.parametrize("every", [41, pytest.param(3, marks=pytest.mark.slow)])
def test_a_kernel_of_another_name_is_given_back_after_an_interrupt(every):
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
        count = lines_of(run)
    for at in range(0, count, every):
        with freeloc.patch(model, profile), pytest.raises(KeyboardInterrupt), Interrupt(at):
            run()
        assert torch.equal(run(), plain)
        with freeloc.patch(model, profile):
            assert torch.equal(run(), corrected)
        assert torch.equal(run(), plain)
