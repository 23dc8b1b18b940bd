"""Several processes: two that share a model, and others that get one.

DDP, FSDP, tensor and context parallelism run in two processes with gloo. They are compared with the patched model in
one process, which other cells compare with the oracle.
"""

import multiprocessing
from typing import Any

import torch
from two_processes import measured

from .cell import LONGER, Case, Cell, Exact, Refused, worst

NAMES = {"wan": "wan of 4"}
"""Four heads, so that two processes have two each."""
ORDERS = {"before": "share first", "after": "patch first"}
_cases: list[dict[str, Any]] = []
_found: list[dict[str, Any]] = []


def shared(does: str = "sampling", **case: Any) -> Any:
    """A case of tests/support/shared_models.py. All run in the same two processes, when the first is asked for."""

    def body(case_of: Case) -> Exact:
        wanted = _case(case_of.family, case_of.order, does, case)
        if not _found:
            _found.extend(measured(_cases, seconds=900))
        one = _found[_cases.index(wanted)]
        for each in (one, one["other"]):
            if "error" in each:
                raise SharedError(f"{each['error']}: {each['message']}")
        assert one.get("calls", 1) + one["other"].get("calls", 1)  # one process may have only heads that are left alone
        differences = [one["two"], one["other"]["two"], one.get("alone", 0.0), one.get("after", 0.0)]
        return Exact(max(differences), one["correction"], "compared with one process")

    body.case = does, case  # type: ignore[attr-defined]
    return body


class SharedError(Exception):
    """An error in one of the two processes."""


def _case(family: str, order: str, does: str, case: dict[str, Any]) -> dict[str, Any]:
    return {"does": does, "model": NAMES.get(family, family), "order": ORDERS.get(order, "")} | case


def in_child(model: Any, frames: int, queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(Case("wan").run(model, frames).tolist())


def children(method: str) -> Any:
    """The patched model is an argument of another process, and runs in this one."""

    def body(case: Case) -> Exact:
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        with case.patch():
            found = [case.exact(case.run())]
            child = context.Process(target=in_child, args=(case.model, LONGER, queue))
            child.start()
            there = torch.tensor(queue.get(timeout=300))
            child.join()
            found += [case.exact(case.run()), case.exact(there, LONGER)]
        return worst(found)

    return body


RING = Refused("LayoutError: .*in a ring of 2 processes.*Use Ulysses instead")
GRADIENTS = Refused("LayoutError: .*needs gradients, and its library computes those of its attention itself")
UNKNOWN = Refused("LayoutError: .*its attention processor knows nothing")
BEFORE_AND_AFTER = ("before", "after")
JOINT = ("wan", "hunyuan-video")
EVERY = ("wan", "hunyuan-video", "cogvideox", "ltx-2")

CELLS = [
    Cell("DistributedDataParallel", shared(library="ddp"), EVERY, BEFORE_AND_AFTER),
    Cell("DistributedDataParallel, a training step", shared("training", library="ddp"), JOINT[:1], tolerance=1e-4),
    Cell("FSDP1", shared(library="fsdp1"), JOINT, BEFORE_AND_AFTER),
    Cell("FSDP1, a training step", shared("training", library="fsdp1"), JOINT[:1], tolerance=1e-4),
    Cell("FSDP2 (fully_shard)", shared(library="fsdp2"), JOINT, BEFORE_AND_AFTER),
    Cell("FSDP2, a training step", shared("training", library="fsdp2"), JOINT[:1], tolerance=1e-4),
    Cell("parallelize_module (DTensor)", shared(library="tensor"), ("wan", "cogvideox"), BEFORE_AND_AFTER),
    Cell("diffusers: Ulysses of 2", shared(library="diffusers"), JOINT, BEFORE_AND_AFTER),
    Cell("diffusers: Ulysses of 2", shared(library="diffusers", text="no mask"), ("ltx",), BEFORE_AND_AFTER),
    Cell("diffusers: Ulysses of 2, heads with plans of their own", shared(library="diffusers", method="heads"), JOINT),
    Cell("diffusers: Ulysses of 2, compiled", shared(library="diffusers", compiled="compiled"), JOINT),
    Cell("diffusers: ring of 2", shared(library="diffusers", kind="ring"), JOINT, expects=RING),
    Cell(
        "diffusers: Ulysses of 2, a training step",
        shared("training", library="diffusers"),
        JOINT[:1],
        expects=GRADIENTS,
    ),
    Cell(
        "diffusers: Ulysses of 2, then fresh processors",
        shared("fresh processors", library="diffusers"),
        JOINT,
        expects=UNKNOWN,
    ),
    Cell("a child by spawn", children("spawn"), ("wan",)),
    Cell("a child by fork", children("fork"), ("wan",)),
]
_cases += [
    _case(family, order, *cell.body.case)  # type: ignore[attr-defined]
    for cell in CELLS
    if hasattr(cell.body, "case")
    for family in cell.families
    for order in cell.orders or ("",)
]
