"""torch.compile, torch.export, torch.jit.

As a whole, by parts, in every mode, and with offloading.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cell import LONG, LONGER, SHORT, Apply, Case, Cell, Exact, Refused, applied, difference, worst

THREE = ("wan", "hunyuan-video", "ltx-2")


def whole(**options: Any) -> Apply:
    return lambda model: torch.compile(model, **{"backend": "eager"} | options)


def in_place(**options: Any) -> Apply:
    return lambda model: model.compile(**{"backend": "eager"} | options)


def repeated(**options: Any) -> Apply:
    return lambda model: model.compile_repeated_blocks(**{"backend": "eager"} | options)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return model.blocks if hasattr(model, "blocks") else model.transformer_blocks  # type: ignore[return-value]


def attention_of(block: Any) -> tuple[str, nn.Module]:
    name = "attn1" if hasattr(block, "attn1") else "attn"
    return name, getattr(block, name)


def block_in_place(model: Any) -> None:
    blocks_of(model)[0].compile(backend="eager")


def block_replaced(model: Any) -> None:
    blocks_of(model)[0] = torch.compile(blocks_of(model)[0], backend="eager")


def attention_in_place(model: Any) -> None:
    for block in blocks_of(model):
        attention_of(block)[1].compile(backend="eager")


def attention_replaced(model: Any) -> None:
    for block in blocks_of(model):
        name, attention = attention_of(block)
        setattr(block, name, torch.compile(attention, backend="eager"))


def forward_replaced(of: Callable[[Any], list[Any]]) -> Apply:
    def apply(model: Any) -> None:
        for module in of(model):
            module.forward = torch.compile(module.forward, backend="eager")

    return apply


def marked_dynamic(case: Case) -> Exact:
    """The axis of latent frames is marked, and one graph serves all lengths."""
    with case.patch(), torch.no_grad():
        compiled = torch.compile(case.model, fullgraph=True, backend="eager")
        found = []
        for frames in (LONG, LONGER):
            inputs = case.inputs(frames)
            torch._dynamo.mark_dynamic(inputs["hidden_states"], 2)
            found.append(case.exact(compiled(**inputs)[0], frames))
    return worst(found)


def exported(strict: bool) -> Any:
    def body(case: Case) -> Exact:
        with case.patch(), torch.no_grad():
            exported = torch.export.export(case.model, (), case.inputs(), strict=strict)
            return case.exact(exported.module()(**case.inputs())[0])

    return body


def jit_traced(case: Case) -> Exact:
    inputs = case.inputs()
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in inputs.items() if name not in tensors} | {"return_dict": False}

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = case.model

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(tensors, given, strict=True)), **rest)[0]

    with case.patch(), torch.no_grad():
        return case.exact(torch.jit.trace(Fixed(), tuple(tensors.values()), check_trace=False)(*tensors.values()))


def modes_of_autograd(case: Case) -> Exact:
    """The same compiled code, first under inference_mode, then under no_grad, then with gradients."""
    case.model.requires_grad_(False)
    compiled = torch.compile(case.model, backend="eager")
    found = []
    with case.patch():
        for context in (torch.inference_mode(), torch.no_grad(), torch.enable_grad(), torch.no_grad()):
            with context:
                found.append(case.exact(compiled(**case.inputs())[0]))
    return worst(found)


def patched_again(case: Case) -> Exact:
    """Compiled once, patched and unpatched in turn."""
    compiled = torch.compile(case.model, backend="eager")
    found = []
    for _ in range(3):
        with case.patch(compiled):
            found.append(case.exact(case.run(compiled)))
        assert difference(case.run(compiled), case.plain()) <= 2e-5
    return worst(found)


def offloaded(how: str, compile_it: Apply) -> Apply:
    def apply(model: Any) -> Any:
        from .offloading import OFFLOADS

        OFFLOADS[how](model)
        return compile_it(model)

    return apply


def cast_and_compiled(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    model.compile(backend="eager")


def compiled(name: str, apply: Apply, **options: Any) -> Cell:
    """A cell of one model and two lengths, if nothing else is said: each compilation takes seconds."""
    return applied(name, apply, **{"families": ("wan",), "lengths": (LONG, LONGER)} | options)


NOT_EXPORTED = Refused(r"PatchError\W+a patched model cannot be exported")
MODES = ("reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")

CELLS = [
    applied("torch.compile(fullgraph=True)", whole(fullgraph=True)),
    applied("torch.compile(fullgraph=True), inductor", whole(fullgraph=True, backend="inductor"), families=THREE[:2]),
    *[
        applied(
            f"torch.compile(mode='{mode}')",
            lambda model, mode=mode: torch.compile(model, mode=mode),
            families=("wan",),
            lengths=(LONG, SHORT),
        )
        for mode in MODES
    ],
    applied("torch.compile, aot_eager", whole(backend="aot_eager"), families=("wan",)),
    applied("torch.compile, graph breaks allowed", whole()),
    compiled("torch.compile(dynamic=True)", whole(dynamic=True)),
    compiled("torch.compile(dynamic=False)", whole(dynamic=False)),
    compiled("torch.compile(dynamic=True, fullgraph=True)", whole(dynamic=True, fullgraph=True)),
    Cell("torch._dynamo.mark_dynamic on the frames", marked_dynamic, families=("wan",)),
    compiled("model.compile()", in_place(), families=("wan", "cogvideox-1.5")),
    compiled("model.compile_repeated_blocks(fullgraph=True)", repeated(fullgraph=True), families=THREE),
    compiled("model.compile_repeated_blocks(dynamic=True)", repeated(dynamic=True)),
    compiled("one block: block.compile()", block_in_place, families=("wan", "ltx-2"), quick=("wan",)),
    compiled("one block: torch.compile(block) in its place", block_replaced),
    compiled("attention: attn.compile()", attention_in_place, families=THREE[:2]),
    compiled("attention: torch.compile(attn) in its place", attention_replaced),
    compiled("model.forward = torch.compile(model.forward)", forward_replaced(lambda model: [model])),
    compiled("block.forward = torch.compile(block.forward)", forward_replaced(lambda model: list(blocks_of(model)))),
    compiled(
        "attn.forward = torch.compile(attn.forward)",
        forward_replaced(lambda model: [attention_of(block)[1] for block in blocks_of(model)]),
    ),
    Cell("compiled once, patched three times", patched_again, families=("wan",)),
    Cell("compiled; inference_mode, no_grad, gradients in turn", modes_of_autograd, families=("wan",)),
    compiled("accelerate.cpu_offload and model.compile()", offloaded("cpu_offload", in_place())),
    compiled("group offload of leaves and model.compile()", offloaded("groups of leaves", in_place())),
    compiled("group offload of leaves and repeated blocks", offloaded("groups of leaves", repeated())),
    compiled("group offload of blocks and repeated blocks", offloaded("groups of blocks", repeated())),
    compiled("layerwise casting to float8 and model.compile()", cast_and_compiled, changes=True),
    *[
        Cell(f"torch.export.export(strict={strict})", exported(strict), expects=NOT_EXPORTED)
        for strict in (True, False)
    ],
    Cell("torch.jit.trace", jit_traced, expects=NOT_EXPORTED),
]
