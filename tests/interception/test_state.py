"""The state of a running forward: no other call, thread, default or copy changes what a patched model computes."""

import copy
import gc
import io
import math
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from subjects import EXAMPLES, LABELS, Subject, error_of, in_threads

import freeloc
from freeloc.discovery import find_adapter
from freeloc.errors import LayoutError, PatchError
from freeloc.interception.context import HeldAttributes
from freeloc.interception.registration import patched_models

BY_ATTENTION = {label for label in EXAMPLES if label.startswith("wan-original")}
"""Models whose attention modules receive the grid as an argument, so they need no call of the transformer."""
OF_ONE_LENGTH = {"latte", "skyreels-v2-causal"}
"""Models that are built for exactly 9 latent frames."""


@pytest.mark.parametrize("label", LABELS)
def test_forward_called_by_hand_is_right_or_refused(label):
    subject, lengths = Subject(label), (9,) if label in OF_ONE_LENGTH else (9, 7, 4)
    with subject.patch():
        expected = {frames: subject.run(frames) for frames in lengths}
        for frames in lengths:
            subject.run(lengths[-1] if frames == 9 else 9)
            if label in BY_ATTENTION:
                assert torch.equal(subject.run(frames, subject.model.forward), expected[frames])
            else:
                with pytest.raises(LayoutError, match=r"outside a call of .*Call model\(\.\.\.\), not model\.forward"):
                    subject.run(frames, subject.model.forward)
        assert torch.equal(subject.run(9), expected[9])


@pytest.mark.parametrize("label", ["wan", "hunyuan-video", "ltx-2", "open-sora-2", "wan-original"])
def test_another_thread_compiles_something_else(label, monkeypatch):
    """torch.compiler.is_compiling() is true in every thread while any thread compiles."""
    subject = Subject(label)
    attention = next(module for _, _, _, module in find_adapter(subject.model).places(subject.model))
    with subject.patch():
        expected = {frames: subject.run(frames) for frames in (4, 9)}
        inside, go = threading.Event(), threading.Event()

        def wait(module, inputs):
            if threading.current_thread().name == "long" and not inside.is_set():
                inside.set()
                assert go.wait(60)

        waiting = attention.register_forward_pre_hook(wait, prepend=True)
        found = []
        thread = threading.Thread(target=lambda: found.append(subject.run(9)), name="long")
        thread.start()
        assert inside.wait(60)
        assert torch.equal(subject.run(4), expected[4])
        monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
        assert torch.equal(subject.run(9), expected[9])
        go.set()
        thread.join()
        waiting.remove()
        assert torch.equal(found[0], expected[9])


def test_threads_that_generate_while_one_compiles(small_wan, run):
    with freeloc.patch(small_wan, make_profile()):
        expected = {frames: run(small_wan, frames) for frames in (3, 9)}
        stop = threading.Event()

        def compile_something():
            for factor in range(1000):
                if stop.is_set():
                    return
                torch.compile(lambda x, by=factor: (x * by).relu(), backend="eager")(torch.randn(3))

        def generate(frames):
            try:
                return [run(small_wan, frames) for _ in range(10)]
            finally:
                stop.set()

        _, short, long = in_threads(compile_something, lambda: generate(3), lambda: generate(9))
    assert all(torch.equal(output, expected[3]) for output in short), short
    assert all(torch.equal(output, expected[9]) for output in long), long


def test_an_attribute_is_held_until_the_last_user_has_released_it():
    module, users = torch.nn.Module(), [object(), object()]
    module.kernel = "own"
    held = HeldAttributes({"kernel": "math:pi"})
    for user in users:
        held.hold(module, user)
    held.release(module, users[0])
    assert module.kernel == math.pi
    held.release(module, users[1])
    assert module.kernel == "own"


def test_layers_that_share_a_processor(small_wan, run):
    shared = WanAttnProcessor()
    for block in small_wan.blocks:
        block.attn1.set_processor(shared)
    before = dict(vars(shared))
    with freeloc.patch(small_wan, make_profile()):
        expected = [run(small_wan, frames) for frames in (9, 13, 6)]
        several = in_threads(*[lambda n=frames: [run(small_wan, n) for _ in range(10)] for frames in (9, 13, 6)])
    assert vars(shared) == before
    for outputs, right in zip(several, expected, strict=True):
        assert all(torch.equal(output, right) for output in outputs)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_the_default_dtype_at_the_time_of_patching(label, dtype):
    subject = Subject(label)
    with subject.patch():
        expected = subject.run(9)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        patch = subject.patch()
    finally:
        torch.set_default_dtype(before)
    with patch:
        assert error_of(subject.run(9), expected) < 1e-6


@pytest.mark.parametrize("label", LABELS)
def test_the_default_device_at_the_time_of_patching(label):
    subject = Subject(label)
    with subject.patch():
        expected = subject.run(9)
    with torch.device("meta"):
        patch = subject.patch()
    with patch:
        assert torch.equal(subject.run(9), expected)


@pytest.mark.parametrize("method", ["vrpr+tsa", "sliding-window", "clip", "yarn", "ultravico", "riflex"])
def test_the_default_device_during_a_forward(small_wan, method):
    """A default device other than the model's: input and weights are on the CPU."""
    inputs = wan_inputs(9)
    with freeloc.patch(small_wan, make_profile(), method=method), torch.no_grad():
        expected = small_wan(**inputs)[0]
    with freeloc.patch(small_wan, make_profile(), method=method), torch.no_grad():
        attention = small_wan.blocks[0].attn1
        attention.register_forward_pre_hook(lambda *_: torch.set_default_device("meta"), prepend=True)
        attention.register_forward_hook(lambda *_: torch.set_default_device(None), always_call=True)
        assert torch.equal(small_wan(**inputs)[0], expected)


@pytest.mark.parametrize("label", LABELS)
def test_pickled_and_copied(label):
    subject = Subject(label)
    plain = subject.run(9)
    with subject.patch() as patch:
        expected = subject.run(9)
        file = io.BytesIO()
        torch.save(subject.model, file)
        others = [pickle.loads(pickle.dumps(subject.model)), copy.deepcopy(subject.model)]
        others.append(torch.load(io.BytesIO(file.getvalue()), weights_only=False))
        calls = patch.report().corrected_calls
    assert torch.equal(subject.run(9), plain)
    for other in others:
        assert torch.equal(subject.run(9, other), expected)
        freeloc.unpatch(other)
        assert torch.equal(subject.run(9, other), plain)
        assert not any(list(patched_models(module)) for module in other.modules())
    assert patch.report().corrected_calls == calls


SPAWNED = """
import pickle, sys, torch
sys.path[:0] = {paths!r}
from conftest import wan_inputs
model = pickle.load(open({file!r}, "rb"))
with torch.no_grad():
    torch.save(model(**wan_inputs(9))[0], {file!r} + ".out")
"""


@pytest.mark.slow
def test_sent_to_another_process(small_wan, run, tmp_path):
    file = tmp_path / "model.pickle"
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
        file.write_bytes(pickle.dumps(small_wan))
    paths = [path for path in sys.path if "tests" in path]
    subprocess.run([sys.executable, "-c", SPAWNED.format(paths=paths, file=str(file))], check=True)
    assert error_of(torch.load(f"{file}.out"), expected) < 1e-6


def test_a_nested_call_of_the_same_model(small_wan, run):
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9), run(small_wan, 6)
        inner = []

        def nested(module, inputs):
            if not inner:
                inner.append(None)
                inner[0] = run(small_wan, 6)

        hook = small_wan.blocks[1].register_forward_pre_hook(nested)
        outer = run(small_wan, 9)
        hook.remove()
    assert torch.equal(outer, expected[0])
    assert torch.equal(inner[0], expected[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_forwards_of_other_lengths_before_one_backward(use_reentrant):
    model = make_wan().requires_grad_(True).train()
    model.enable_gradient_checkpointing(
        lambda function, *inputs: torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=use_reentrant)
    )

    def gradient(*lengths):
        model.zero_grad()
        inputs = [wan_inputs(frames) for frames in lengths]
        for each in inputs:  # reentrant checkpoints require an input with a gradient
            each["hidden_states"].requires_grad_()
        loss = sum(model(**each)[0].square().mean() for each in inputs)
        loss.backward()
        return model.blocks[0].attn1.to_q.weight.grad.clone()

    with freeloc.patch(model, make_profile()):
        model.disable_gradient_checkpointing()
        expected = gradient(9, 12, 3)
        alone = gradient(9)
        model.enable_gradient_checkpointing(
            lambda function, *inputs: torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=use_reentrant)
        )
        assert error_of(gradient(9, 12, 3), expected) <= 1e-6 * float(expected.abs().max())
        assert error_of(alone, expected) > 1e-2 * float(expected.abs().max())


def test_the_report_counts_calls_that_ran(small_wan, run):
    with freeloc.patch(small_wan, make_profile()) as patch:
        run(small_wan, 9)
        skip = small_wan.blocks[3]
        forward, skip.forward = skip.forward, lambda hidden_states, *rest: hidden_states
        run(small_wan, 9)
        skip.forward = forward
        layers = patch.report().layers
    assert [sum(layer.calls.values()) for layer in layers] == [2, 2, 2, 0]
    assert layers[3].untouched == {"9 latent frames, which the profile leaves alone": 1}
    assert layers[0].backends == {"sdpa": 2}


def test_a_patched_model_without_references_is_freed(run):
    model = make_wan()
    freeloc.patch(model, make_profile())
    run(model, 9)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_exported_patched_model_is_refused(small_wan):
    inputs = wan_inputs(9)
    with freeloc.patch(small_wan, make_profile()), pytest.raises(PatchError, match=r"cannot be exported.*unpatch"):
        torch.export.export(small_wan, (), inputs, strict=False)
