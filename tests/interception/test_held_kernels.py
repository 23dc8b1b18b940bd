"""A kernel that an attention module holds: nothing but the call is changed, in any thread, after any ending."""

import copy
import pickle
import threading

import kernel_double
import pytest
import torch
from injection import Injection, points_of
from kernel_double import PLACES, adapter
from subjects import in_threads
from test_kernels import Subject

import freeloc
from freeloc.errors import AdapterError

EVERY = pytest.mark.parametrize("kind", PLACES)


def state_of(model):
    """The attributes of all modules, and of the objects that they hold."""
    found = []
    for module in model.modules():
        held = [vars(value) for value in vars(module).values() if isinstance(value, kernel_double.Processor)]
        found.append([dict(vars(module)), *map(dict, held)])
    return [[list(map(id, each.values())) + sorted(each) for each in attributes] for attributes in found]


def attention_of(subject):
    return [block.attn for block in subject.model.blocks]


@EVERY
def test_an_exception_leaves_no_trace(kind):
    subject = Subject(f"held: {kind}")
    before, state = subject.run(9), state_of(subject.model)
    for place in ("to_v", "out"):
        hook = getattr(attention_of(subject)[1], place).register_forward_pre_hook(lambda *_: 1 / 0)
        with subject.patch(), pytest.raises(ZeroDivisionError):
            subject.run(9)
        hook.remove()
        assert state_of(subject.model) == state
    assert torch.equal(subject.run(9), before)


@pytest.mark.parametrize("every", [61, pytest.param(2, marks=pytest.mark.slow)])
@EVERY
def test_an_interrupt_at_any_line_leaves_no_trace(kind, every):
    subject = Subject(f"held: {kind}")
    plain, state = subject.run(6), state_of(subject.model)
    with subject.patch():
        corrected = subject.run(6)
        points = points_of(lambda: subject.run(6), "interception", "patching.py")
    for number, point in enumerate(points[::every]):
        with subject.patch():
            with pytest.raises(KeyboardInterrupt), Injection(point, KeyboardInterrupt()):
                subject.run(6)
            if number % 2:
                assert torch.equal(subject.run(6), corrected)
        assert state_of(subject.model) == state
        assert torch.equal(subject.run(6), plain)


@EVERY
def test_threads_share_the_module_but_not_the_correction(kind):
    subject = Subject(f"held: {kind}")
    plain, state = subject.run(9), state_of(subject.model)
    patched = copy.deepcopy(subject.model)  # which shares no module, but its kernel calls one function
    with subject.patch(), freeloc.patch(patched, subject.profile, adapter=subject.adapter, method="vrpr"):
        expected = {frames: subject.run(frames) for frames in (3, 6, 9)}
        other = run(patched)
        jobs = [lambda n=frames: [subject.run(n) for _ in range(6)] for frames in expected]
        *found, others = in_threads(*jobs, lambda: [run(patched) for _ in range(6)])
    for outputs, right in zip([*found, others], [*expected.values(), other], strict=True):
        assert all(torch.equal(output, right) for output in outputs), outputs
    assert not torch.equal(expected[9], plain)
    assert state_of(subject.model) == state


def run(model, frames=9):
    with torch.no_grad():
        return model(**kernel_double.inputs(frames, 2, 3, 2))


@pytest.mark.parametrize("kind", ["object", "module"])
def test_modules_that_share_a_kernel(kind):
    subject = Subject(f"held: {kind}")
    with subject.patch():
        expected = {frames: subject.run(frames) for frames in (3, 6, 9)}
    first, second = attention_of(subject)
    second.function, second.core = first.function, first.core
    with subject.patch() as patch:
        found = in_threads(*[lambda n=frames: [subject.run(n) for _ in range(6)] for frames in expected])
        assert patch.report().corrected_calls == 24
    for outputs, right in zip(found, expected.values(), strict=True):
        assert all(torch.equal(output, right) for output in outputs), outputs


@EVERY
def test_a_thread_without_a_patch_calls_the_original(kind):
    """A thread that runs the attention module itself while another thread has replaced its kernel."""
    subject = Subject(f"held: {kind}")
    attention = attention_of(subject)[0]
    given = torch.randn(1, 5, 24), (torch.ones(5, 6), torch.zeros(5, 6)), None
    expected, inside, done = attention.forward(*given), threading.Event(), threading.Event()

    def wait(module, args):
        if args[0].shape[1] > 5:
            inside.set()
            assert done.wait(timeout=60)

    def alone():
        assert inside.wait(timeout=60)
        try:
            return attention.forward(*given)
        finally:
            done.set()

    hook = attention.to_q.register_forward_pre_hook(wait)
    with subject.patch():
        right = in_threads(lambda: subject.run(9), alone)[1]
    hook.remove()
    assert torch.equal(right, expected)


@EVERY
def test_copies_and_pickles_of_a_patched_model(kind):
    subject = Subject(f"held: {kind}")
    subject.adapter = adapter(subject.kernel)
    plain = subject.run(9)
    copies = []
    with subject.patch():
        expected = subject.run(9)
        copies += [copy.deepcopy(subject.model)]
        hook = attention_of(subject)[1].out.register_forward_pre_hook(lambda *_: copies.append(copied(subject.model)))
        subject.run(9)  # copied while the kernel of the second layer is replaced
        hook.remove()
        with pytest.raises(KeyboardInterrupt):
            interrupted(subject)
        copies += [copy.deepcopy(subject.model), pickle.loads(pickle.dumps(subject.model))]
    for other in copies:
        other.blocks[1].attn.out._forward_pre_hooks.clear()
        assert torch.equal(run(other), expected)
        freeloc.unpatch(other)
        assert torch.equal(run(other), plain)
    assert torch.equal(subject.run(9), plain)


def copied(model):
    return copy.deepcopy(model)


def interrupted(subject):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = attention_of(subject)[0].out.register_forward_pre_hook(interrupt)
    try:
        subject.run(9)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            ".attention_function",
            r"as Holding\.attention_function, the kernel of its adapter \('\.attention_f.*no such at",
        ),
        (".number", r"expected a function, a module or another callable as Holding\.number, .*, found a int"),
        (".part.attend", r"its adapter expects Holding\.part: "),
        (
            ".processor.run",
            r"as Processor\.run, the kernel of its adapter \('\.processor\.run'\), found no such attribute",
        ),
    ],
)
def test_a_kernel_that_is_not_held_is_an_error(function, message):
    subject = Subject("held: object")
    with pytest.raises(AdapterError, match=message), subject.patch(function=function):
        subject.run(9)


def test_an_object_that_cannot_be_changed_is_an_error():
    class Fixed:
        __slots__ = ("attend",)

    subject = Subject("held: part")
    for attention in attention_of(subject):
        attention.processor = Fixed()
        attention.processor.attend = kernel_double.attention
    with pytest.raises(AdapterError, match=r"an attribute that can be set, found Fixed\.attend"), subject.patch():
        subject.run(9)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *[pytest.param(kind, part, marks=pytest.mark.slow) for kind in PLACES for part in ("model", "blocks")],
    ],
)
def test_compiled(kind, part):
    """The parts between the kernels are compiled, once for all patches."""
    subject = Subject(f"held: {kind}")
    plain = {frames: subject.run(frames) for frames in (3, 6, 9)}
    with subject.patch():
        expected = {frames: subject.run(frames) for frames in plain}
    torch._dynamo.reset()
    for module in [subject.model] if part == "model" else subject.model.blocks:
        module.compile(backend="eager", dynamic=True)
    for _ in range(2):
        assert all(error(subject.run(frames), plain[frames]) < 1e-6 for frames in plain)
        with subject.patch() as patch:
            for frames in (9, 3, 6, 3, 9):
                assert error(subject.run(frames), expected[frames]) < 1e-6
            assert patch.report().corrected_calls == 6
    torch._dynamo.reset()


def error(one, other):
    return float((one - other).abs().max())


def test_a_compiled_graph_cannot_have_it():
    subject = Subject("held: object")
    torch._dynamo.reset()
    subject.model.compile(backend="eager", fullgraph=True)
    with subject.patch(), pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
        subject.run(9)
    torch._dynamo.reset()
