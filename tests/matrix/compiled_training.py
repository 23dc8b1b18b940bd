"""Training of compiled models.

Gradients through compiled code, of all weights or of the last layer, with checkpoints, and after the patch is removed.
"""

import gc
from typing import Any

import torch

from .cell import Case, Cell, Exact, Refused
from .training import BEFORE_AND_AFTER, RELATIVE, WAN, compared, gradients, loss_of, with_checkpoints


def compiled(how: str, **options: Any) -> Any:
    """A training step through compiled code."""

    def body(case: Case) -> Exact:
        model = case.model.requires_grad_(True).train()
        call = None
        if case.order == "after":
            patch = case.patch()
        if how == "model":
            call = torch.compile(model, **options)
        else:
            model.compile_repeated_blocks(**options)
        if case.order == "before":
            patch = case.patch()
        with patch:
            found = gradients(model, case, call=call)
        return compared(case, found)

    return body


def compiled_with_checkpoints(by_blocks: bool) -> Any:
    def body(case: Case) -> Exact:
        model = case.model.requires_grad_(True).train()
        with_checkpoints(model, False)
        if by_blocks:
            model.compile_repeated_blocks(backend="aot_eager")
        with case.patch():
            found = gradients(model, case, call=None if by_blocks else torch.compile(model, backend="aot_eager"))
        return compared(case, found)

    return body


def compiled_after_the_block(case: Case) -> Exact:
    """Backward through compiled code of a patch that is removed, and not kept."""
    model = case.model.requires_grad_(True).train()
    call = torch.compile(model, backend="aot_eager")
    with case.patch():
        loss = loss_of(call, case)
    gc.collect()
    loss.backward()
    return Exact(0.0, 0.0)


def last_layer_only(case: Case) -> Exact:
    """Only the projection behind all attention is trained, in a compiled model."""
    last = "proj_out"
    model = case.model.requires_grad_(False)
    twin = case.new_model().requires_grad_(False)
    for each in (model, twin):
        each.get_submodule(last).requires_grad_(True)
    compiled_model = torch.compile(model, backend="aot_eager")
    with case.patch():
        found = gradients(model, case, call=compiled_model)
    return compared(case, found, twin)


CELLS = [
    Cell(
        "torch.compile(aot_eager), a training step",
        compiled("model", backend="aot_eager"),
        ("wan", "hunyuan-video"),
        BEFORE_AND_AFTER,
        **RELATIVE,
    ),
    Cell(
        "torch.compile(eager), a training step",
        compiled("model", backend="eager"),
        WAN,
        BEFORE_AND_AFTER,
        **RELATIVE,
    ),
    Cell("torch.compile(inductor), a training step", compiled("model"), WAN, BEFORE_AND_AFTER, **RELATIVE),
    Cell(
        "compile_repeated_blocks, a training step",
        compiled("blocks", backend="aot_eager"),
        WAN,
        BEFORE_AND_AFTER,
        **RELATIVE,
    ),
    Cell("compile_repeated_blocks, gradient checkpointing", compiled_with_checkpoints(True), WAN, **RELATIVE),
    Cell(
        "torch.compile(aot_eager), gradient checkpointing",
        compiled_with_checkpoints(False),
        WAN,
        expects=Refused("LayoutError: .*gradient checkpointing runs it again"),
    ),
    Cell(
        "torch.compile(aot_eager), backward after the with block",
        compiled_after_the_block,
        WAN,
        expects=Refused("PatchError: .*call backward\\(\\) inside"),
    ),
    Cell("compiled, only the last projection trained", last_layer_only, WAN, **RELATIVE),
]
