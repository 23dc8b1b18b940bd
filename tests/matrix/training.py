"""Training.

Gradients of all weights through a patched model, with checkpoints, and under the transforms of torch.func.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from .cell import LONG, LONGER, SHORT, Case, Cell, Exact, Fails, Refused, difference, video

RELATIVE: dict[str, Any] = {"tolerance": 1e-4}
"""Of the largest gradient."""


def loss_of(model: Any, case: Case, lengths: Sequence[int] = (LONG,)) -> Tensor:
    """Reentrant checkpoints require an input with a gradient."""
    total = torch.zeros(())
    for frames in lengths:
        given = case.inputs(frames)
        given["hidden_states"].requires_grad_()
        total = total + video(model, given).square().mean()
    return total


def gradients(model: Any, case: Case, lengths: Sequence[int] = (LONG,), call: Any = None) -> dict[str, Tensor]:
    """By name, of all weights that get one."""
    model.zero_grad()
    loss_of(model if call is None else call, case, lengths).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def compared(case: Case, found: dict[str, Tensor], model: Any = None, lengths: Sequence[int] = (LONG,)) -> Exact:
    """With the gradients of the oracle, relative to the largest of them."""
    twin = case.new_model().requires_grad_(True) if model is None else model
    plain = gradients(twin, case, lengths)
    with contextlib.ExitStack() as stack:
        if len(lengths) == 1:
            stack.enter_context(case.oracle(twin, lengths[0]))
            expected = gradients(twin, case, lengths)
        else:
            expected = _sum_of_oracles(twin, case, lengths)
    assert set(expected) <= set(found)  # reentrant checkpoints also give zeros, to what is not used
    assert not any(found[name].any() for name in set(found) - set(expected))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    differences = [max(difference(of[name], expected[name]) for name in expected) / largest for of in (found, plain)]
    return Exact(*differences, "of the largest gradient")


def _sum_of_oracles(twin: Any, case: Case, lengths: Sequence[int]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for frames in lengths:
        with case.oracle(twin, frames) if frames > SHORT else contextlib.nullcontext():
            for name, gradient in gradients(twin, case, (frames,)).items():
                total[name] = total[name] + gradient if name in total else gradient
    return total


def training_step(checkpoints: bool | None = None) -> Any:
    """Without gradient checkpointing, or with reentrant (True) or other (False) checkpoints."""

    def body(case: Case) -> Exact:
        model = case.model.requires_grad_(True).train()
        if checkpoints is not None:
            with_checkpoints(model, checkpoints)
        with case.patch():
            found = gradients(model, case)
        return compared(case, found)

    return body


def with_checkpoints(model: Any, reentrant: bool) -> None:
    model.enable_gradient_checkpointing(
        lambda function, *given: checkpoint.checkpoint(function, *given, use_reentrant=reentrant)
    )


def two_lengths(reentrant: bool) -> Any:
    """Two forward passes of different lengths, then one backward, with checkpoints."""

    def body(case: Case) -> Exact:
        model = case.model.requires_grad_(True).train()
        with_checkpoints(model, reentrant)
        with case.patch():
            found = gradients(model, case, (LONG, LONGER))
        return compared(case, found, lengths=(LONG, LONGER))

    return body


def after_the_block(case: Case) -> Exact:
    """With checkpoints, backward after the patch was removed computes the blocks without it."""
    model = case.model.requires_grad_(True).train()
    with_checkpoints(model, False)
    with case.patch():
        loss = loss_of(model, case)
    loss.backward()
    return Exact(0.0, 0.0)


def with_hooks_of_autograd(kind: str) -> Any:
    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        if kind == "anomaly":
            with torch.autograd.set_detect_anomaly(True):
                yield
        elif kind == "save_on_cpu":
            with torch.autograd.graph.save_on_cpu():
                yield
        else:
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
                yield

    def body(case: Case) -> Exact:
        model = case.model.requires_grad_(True)
        with opened(), case.patch():
            found = gradients(model, case)
        return compared(case, found)

    return body


def gradient_penalty(case: Case) -> Exact:
    """Gradients of the norm of a gradient."""

    def twice(model: Any) -> Tensor:
        given = case.inputs()
        hidden = given["hidden_states"].requires_grad_()
        (first,) = torch.autograd.grad(video(model, given).square().sum(), hidden, create_graph=True)
        return torch.autograd.grad(first.square().sum(), hidden)[0]

    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        plain = twice(case.model)
        with case.oracle(case.model):
            expected = twice(case.model)
        with case.patch():
            found = twice(case.model)
    largest = float(expected.abs().max())
    return Exact(difference(found, expected) / largest, difference(plain, expected) / largest, "of the largest")


def tangent(case: Case) -> Exact:
    """Forward-mode derivatives, torch.func.jvp, against those of reverse mode through the oracle."""
    given = case.inputs()
    hidden = given["hidden_states"]
    direction = torch.ones_like(hidden)

    def of(changed: Tensor) -> Tensor:
        return video(case.model, given | {"hidden_states": changed, "return_dict": False})

    if not case.is_patched:
        return Exact(0.0, float(torch.func.jvp(of, (hidden,), (direction,))[1].abs().max()))
    with sdpa_kernel(SDPBackend.MATH):
        with case.patch():
            found = torch.func.jvp(of, (hidden,), (direction,))[1]
        plain = torch.func.jvp(of, (hidden,), (direction,))[1]
        with case.oracle(case.model):
            expected = torch.autograd.functional.jvp(of, hidden, direction)[1]
    largest = float(expected.abs().max())
    return Exact(difference(found, expected) / largest, difference(plain, expected) / largest, "of the largest")


def with_other_weights(case: Case) -> Exact:
    """torch.func.functional_call with weights that are not the model's."""
    weights = {name: value * 1.1 for name, value in case.model.state_dict().items()}
    twin = case.new_model()
    twin.load_state_dict(weights)
    plain, expected = case.of(twin)
    with case.patch(), torch.no_grad():
        out = torch.func.functional_call(case.model, weights, (), case.inputs())
    return Exact(difference(video(lambda: out, {}), expected), difference(plain, expected))


def prepared_by_accelerate(case: Case) -> Exact:
    """Accelerator().prepare(model), in float32."""
    from accelerate import Accelerator

    patch = None if case.order == "before" else case.patch()
    model = Accelerator(cpu=True, mixed_precision="no").prepare(case.model)
    with patch or case.patch(model):
        return case.exact(case.run(model))


def training_dropout(case: Case) -> Exact:
    """train() with dropout in the feed-forward layers: the same random numbers in both."""
    found = []
    for model in (case.new_model(), case.model):
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and ".attn" not in name:  # the oracle runs attention twice
                module.p = 0.3
        model.train()

        def run(model: Any = model) -> Tensor:
            torch.manual_seed(3)
            return case.run(model)

        if model is case.model:
            with case.patch():
                found.append(run())
        else:
            plain = run()
            case_oracle = case.oracle(model)
            with case_oracle:
                found.append(run())
    return Exact(difference(found[1], found[0]), difference(plain, found[0]))


BEFORE_AND_AFTER = ("before", "after")
WAN = ("wan",)
CELLS = [
    Cell("a training step", training_step(), quick=("wan",), **RELATIVE),
    Cell("gradient checkpointing", training_step(False), quick=("cogvideox-1.5",), **RELATIVE),
    Cell("gradient checkpointing, reentrant", training_step(True), **RELATIVE),
    Cell("checkpoints, two lengths, then backward", two_lengths(False), **RELATIVE),
    Cell("reentrant checkpoints, two lengths, then backward", two_lengths(True), WAN, **RELATIVE),
    Cell(
        "checkpoints, backward after the with block",
        after_the_block,
        expects=Refused("PatchError: gradient checkpointing runs .* again"),
    ),
    *[
        Cell(f"torch.autograd: {kind}", with_hooks_of_autograd(kind), ("wan", "hunyuan-video"), **RELATIVE)
        for kind in ("anomaly", "save_on_cpu", "saved_tensors_hooks")
    ],
    Cell("gradients of a gradient, sdpa_kernel(MATH)", gradient_penalty, WAN, **RELATIVE),
    Cell("torch.func.jvp", tangent, expects=Fails("Trying to use forward AD with")),
    Cell("torch.func.jvp, sdpa_kernel(MATH)", tangent, quick=WAN, **RELATIVE),
    Cell("torch.func.functional_call", with_other_weights),
    Cell("Accelerator().prepare(model)", prepared_by_accelerate, WAN, BEFORE_AND_AFTER),
    Cell("train() with dropout", training_dropout, WAN),
]
