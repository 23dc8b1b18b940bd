"""Every way to describe a kernel, end to end: against dense logits, at the trained length, and what is refused."""

from dataclasses import replace
from unittest import mock

import kernel_double
import pytest
import torch
from dense import oracle
from kernel_double import FACTS, KERNELS, adapter, attention, example
from kernel_double import attention as renamed
from marks import slow_unless

import freeloc
from freeloc.errors import AdapterError, LayoutError
from freeloc.interception.kernel_call import KernelCall, of_sample
from freeloc.testing import run_checks

EVERY = pytest.mark.parametrize("name", KERNELS)
TRAINED = 4
ATTENTION = kernel_double.attention


class Subject:
    """A model with a kernel."""

    def __init__(self, name):
        make, self.kernel = KERNELS[name]
        self.example = example(make)
        self.model = self.example.model()
        self.adapter = adapter(self.kernel)
        self.profile = freeloc.default_profile(self.model, "vrpr+tsa", TRAINED, adapter=self.adapter)

    def run(self, frames, batch=2, **changes):
        with torch.no_grad():
            return self.model(**self.example.inputs(frames, 2, 3, batch) | changes)

    def patch(self, **kernel):
        known = adapter(replace(self.kernel, **kernel) if kernel else self.kernel)
        return freeloc.patch(self.model, self.profile, adapter=known)


@pytest.mark.parametrize("name", [slow_unless(index % 4 == 0, name) for index, name in enumerate(KERNELS)])
def test_the_conformance_suite(name):
    make, kernel = KERNELS[name]
    failed = {result.check: result.problem for result in run_checks(example(make), adapter(kernel)) if result.problem}
    assert failed == {}


@EVERY
@pytest.mark.parametrize("frames", [3, 6, 13])
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_equals_dense_logits(name, frames, batch):
    subject = Subject(name)
    before = subject.run(frames, batch)

    def plan(layer, count):
        return freeloc.frame_plan(subject.profile, layer, count)

    with oracle(subject.model, FACTS, plan, frames, 2, 3):
        expected = subject.run(frames, batch)
    with subject.patch() as patch:
        found = subject.run(frames, batch)
    assert (found - expected).abs().max() <= FACTS.tolerance
    assert torch.equal(subject.run(frames, batch), before)
    if frames > TRAINED:
        assert patch.report().corrected_calls == 2
        assert (before - expected).abs().max() > 1e-2
    else:
        assert torch.equal(found, before)


def test_the_number_of_heads_may_be_an_item_of_an_argument():
    subject = Subject("b l (h d) to b h l d")
    with subject.patch():
        expected = subject.run(9)

    def inside(q, k, v, sizes, mask, layout, output):
        return ATTENTION(q, k, v, sizes["heads"], mask, layout, output)

    for block in subject.model.blocks:
        block.attn.heads = {"heads": 2}
    with mock.patch.object(kernel_double, "attention", inside):
        with subject.patch(arguments=("q", "k", "v", "sizes", "mask", "layout", "output"), heads="sizes.heads"):
            assert torch.equal(subject.run(9), expected)
        with (
            subject.patch(arguments=("q", "k", "v", "sizes", "mask", "layout", "output"), heads="sizes.number"),
            pytest.raises(LayoutError, match=r"blocks.0.attn: expected the adapter's 'sizes.number' among .*'heads'"),
        ):
            subject.run(9)


JOINED, APART = "b l (h d) to b h l d", "b l h d to b l (h d)"
REFUSED = {
    "heads that do not divide": (JOINED, [(2, 58, 24)] * 3, 5, "heads, the number of heads of 24 channels, found 5"),
    "no heads": (JOINED, [(2, 58, 24)] * 3, 0, "the number of heads of 24 channels, found 0"),
    "heads left out": (JOINED, [(2, 58, 24)] * 3, None, "the number of heads of 24 channels, found None"),
    "fewer heads of keys": (JOINED, [(2, 58, 24), (2, 58, 12), (2, 58, 12)], 2, "not support grouped-query attention"),
    "other channels": (
        JOINED,
        [(2, 58, 24), (2, 58, 10), (2, 58, 10)],
        2,
        r"24 channels of .* found 10 of keys and 10",
    ),
    "heads apart": (JOINED, [(2, 58, 2, 12)] * 3, 2, r"expected q \(b l \(h d\)\) .* found \(2, 58, 2, 12\)"),
    "grouped heads": (APART, [(2, 58, 2, 12), (2, 58, 1, 12), (2, 58, 1, 12)], 2, "2 of queries, 1 of keys and 1 of"),
    "no batch": (APART, [(116, 2, 12)] * 3, 2, r"expected q \(b l h d\) .* found \(116, 2, 12\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_call_that_is_not_in_the_layout_is_refused(what):
    name, shapes, heads, message = REFUSED[what]
    subject = Subject(name)

    def other(q, k, v, mask):
        return kernel_double.attention(*map(torch.zeros, shapes), heads, mask=mask)

    for block in subject.model.blocks:
        block.attn.kernel = other
    with subject.patch(), pytest.raises(LayoutError, match=rf"^blocks\.0\.attn: .*{message}"):
        subject.run(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "low"}, ""),
        (
            {"sharpness": 0.5},
            r"called with \('q', .*'precision'\), found also sharpness: if it does not",
        ),
        ({"skip_reshape": True}, "expected skip_reshape=False in its attention, found True"),
        ({"skip_reshape": torch.ones(2)}, "expected skip_reshape=False in its attention, found a tensor"),
    ],
)
def test_an_argument_that_changes_the_result_is_not_ignored(options, message):
    subject = Subject("an argument left out")
    with subject.patch():
        expected = subject.run(9)
    for block in subject.model.blocks:
        block.attn.options = options
    with subject.patch():
        if message:
            with pytest.raises(LayoutError, match=rf"^blocks\.0\.attn: .*{message}"):
                subject.run(9)
        else:
            assert torch.equal(subject.run(9), expected)


def test_another_mode_of_a_kernel_is_refused():
    subject = Subject("pairs")
    for block in subject.model.blocks:
        block.attn.mode = "sparse"
    with subject.patch(), pytest.raises(LayoutError, match=r"expected mode=flash in its attention, found sparse$"):
        subject.run(9)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_parts_of_other_heads_are_refused(place, monkeypatch):
    subject, tensors = Subject("parts"), [torch.zeros(2, 54, 2, 12)] * 3 + [torch.zeros(2, 4, 2, 12)] * 3
    tensors[place + 2] = torch.zeros(2, 4, 2, 6)
    for block in subject.model.blocks:
        monkeypatch.setattr(block.attn, "kernel", lambda q, k, v, mask: kernel_double.part_attention(*tensors))
    with subject.patch(), pytest.raises(LayoutError, match=r"differ in tokens only, found .*\(2, 2, 4, 6\)"):
        subject.run(9)


@pytest.mark.parametrize(("name", "given"), [("an argument given", {}), ("one or the other", {"skip_reshape": 0.5})])
def test_a_call_without_a_required_argument_is_refused(name, given):
    subject = Subject(name)
    for block in subject.model.blocks:
        block.attn.skip, block.attn.options = False, given
    found = r"expected skip_reshape=True in its attention, found (it left out|0\.5)$"
    with subject.patch(), pytest.raises(LayoutError, match=found):
        subject.run(9)


class Elsewhere(kernel_double.Attention):
    """A class in another file than its forward, whose file has the kernel too."""


class Overriding(kernel_double.Attention):
    """A class in another file than its forward, which calls the kernel of its own file."""

    def kernel(self, q, k, v, mask):
        q, k, v = (tensor.flatten(2) for tensor in (q, k, v))
        return attention(q, k, v, self.heads, mask)


class Renaming(kernel_double.Attention):
    """A class that calls a kernel that its file has imported under another name."""

    def kernel(self, q, k, v, mask):
        q, k, v = (tensor.flatten(2) for tensor in (q, k, v))
        return renamed(q, k, v, self.heads, mask)


@pytest.mark.parametrize(
    ("cls", "function"),
    [
        (Elsewhere, "attention"),
        (Overriding, "attention"),
        (Renaming, "test_kernels:renamed"),
        (Elsewhere, "kernel_double:attention"),
    ],
)
def test_a_kernel_is_found_where_the_module_looks_it_up(cls, function):
    subject = Subject("b l (h d) to b l (h d)")
    with subject.patch():
        expected = subject.run(9)
    for block in subject.model.blocks:
        block.attn.__class__ = cls
    before = kernel_double.attention, attention, renamed
    with subject.patch(function=function):
        assert torch.equal(subject.run(9), expected)
    assert (kernel_double.attention, attention, renamed) == before


def test_a_function_of_the_same_name_in_the_file_of_a_subclass_is_left_alone(monkeypatch):
    subject = Subject("b l (h d) to b l (h d)")
    with subject.patch():
        expected = subject.run(9)
    for block in subject.model.blocks:
        block.attn.__class__ = Elsewhere
    monkeypatch.setitem(globals(), "attention", lambda *_: 1 / 0)
    other = attention
    hook = block.attn.to_q.register_forward_pre_hook(lambda *_: None if attention is other else 1 / 0)
    with subject.patch():
        assert torch.equal(subject.run(9), expected)
    hook.remove()


def test_a_module_that_calls_neither_function():
    subject = Subject("two functions")
    for block in subject.model.blocks:
        block.attn.kernel = lambda q, k, v, mask: v.flatten(2)
    with subject.patch(), pytest.raises(LayoutError, match=r"made no call of \.unmasked or masked_attention, so"):
        subject.run(9)


def test_a_module_that_has_neither_function():
    subject = Subject("two functions")
    subject.kernel = tuple(
        replace(kernel, function=name) for kernel, name in zip(subject.kernel, (".no", "nothing"), strict=True)
    )
    with subject.patch(), pytest.raises(AdapterError, match="kernel_double has no function 'nothing'"):
        subject.run(9)


def test_a_file_that_cannot_be_imported_is_an_error():
    subject = Subject("b l (h d) to b l (h d)")
    with (
        subject.patch(function="no_such_file:attention"),
        pytest.raises(AdapterError, match="cannot be imported: No mod"),
    ):
        subject.run(9)


def test_a_function_that_no_file_has_is_an_error():
    subject = Subject("b l (h d) to b l (h d)")
    message = "kernel_double has no function 'flash', which its adapter expects"
    with subject.patch(function="flash"), pytest.raises(AdapterError, match=message):
        subject.run(9)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_sample_of_a_batch_keeps_its_own_mask(rows):
    query, key, value = torch.randn(3, 2, 1, 5, 4)
    mask = torch.arange(2 * rows * 5).view(2, 1, rows, 5).float()
    found = of_sample(KernelCall(query, key, value, mask, torch.tensor([5, 3]), None), sample=1, tokens=3)
    assert torch.equal(found.query, query[1:, :, :3])
    assert torch.equal(found.mask, mask[1:, :, : min(rows, 3), :3])
