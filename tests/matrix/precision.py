"""Numbers and devices: autocast, types of weights, default type and device.

A model in 16 bits moves by rounding, without freeloc. How far is measured: the difference between the model in that
type and in float32, both without a patch. The patched model may be twice as far from the oracle in float32. What is
better known is how much of the correction there is: rounding has no direction, so the output is projected on it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .cell import ORDERS, Case, Cell, Exact, difference, video

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def rounded(case: Case, found: Tensor, plain: Tensor, kind: torch.dtype) -> Exact:
    """Compare a result in 16 bits with the oracle in float32, and measure how much of the correction is in it."""
    assert found.dtype == plain.dtype == kind, (found.dtype, plain.dtype)
    correction = (case.expected() - case.plain()).double()
    share = float(((found.double() - plain.double()) * correction).sum() / correction.square().sum())
    assert abs(share - 1) <= 0.05, share
    return case.exact(found, note=f"{share:.0%} of the correction")._replace(own=difference(plain, case.plain()))


def autocast(kind: torch.dtype) -> Any:
    def body(case: Case) -> Exact:
        with torch.autocast("cpu", kind):
            plain = case.run()
            with case.patch():
                found = case.run()
        return rounded(case, found, plain, kind)

    return body


def weights_of(kind: torch.dtype) -> Any:
    """The model and its input in another type, changed before the patch, or under it."""

    def body(case: Case) -> Exact:
        given = case.inputs()
        given |= {name: value.to(kind) for name, value in given.items() if "states" in name or "project" in name}
        patch = case.patch() if case.order == "after" else None
        model = case.model.to(kind)
        with patch or case.patch(), torch.no_grad():
            found = video(model, given)
        with torch.no_grad():
            plain = video(model, given)
        return rounded(case, found, plain, kind)

    return body


@contextlib.contextmanager
def default_dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def under(context: Callable[[], Any], while_run: bool) -> Any:
    """Patched inside a context; and run inside it, or outside."""

    def body(case: Case) -> Exact:
        given = case.inputs()
        with context():
            patch = case.patch()
            if while_run:
                with torch.no_grad():
                    found = video(case.model, given)
        with patch:
            return case.exact(found if while_run else case.run())

    return body


def run_under(context: Callable[[], Any]) -> Any:
    """Patched outside a context, run inside it."""

    def body(case: Case) -> Exact:
        given = case.inputs()
        with case.patch(), context(), torch.no_grad():
            return case.exact(video(case.model, given))

    return body


def in_another_thread(case: Case) -> Exact:
    """A default device is of one thread: patched where it is set, run where it is not."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(case.run())
        except Exception as error:
            found.append(error)

    torch.set_default_device("meta")
    with case.patch():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    torch.set_default_device(None)
    if isinstance(found[0], Exception):
        raise found[0]
    return case.exact(found[0])


def by_the_cpu(case: Case) -> Exact:
    torch.set_default_device("cpu")
    with case.patch():
        return case.exact(case.run())


def other_strides(case: Case) -> Exact:
    """Input whose channels lie next to each other, and every second of which is left out."""
    hidden = case.inputs()["hidden_states"]
    strided = torch.stack([hidden, hidden], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., 0]
    assert torch.equal(strided, hidden)
    assert not strided.is_contiguous()
    with case.patch():
        return case.exact(case.run(hidden_states=strided))


def matmul_precision(case: Case) -> Exact:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        plain = case.run()
        with case.patch():
            found = case.run()
    finally:
        torch.set_float32_matmul_precision(before)
    return case.exact(found)._replace(own=difference(plain, case.plain()))


def meta() -> Any:
    return torch.device("meta")


CELLS = [
    *[
        Cell(f"torch.autocast({name})", autocast(kind), quick=("wan",) if name == "bfloat16" else ())
        for name, kind in HALVES.items()
    ],
    *[Cell(f"weights and input in {name}", weights_of(kind), orders=ORDERS) for name, kind in HALVES.items()],
    *[
        Cell(
            f"set_default_dtype({name}) while patched{' and run' * runs}",
            under(lambda kind=kind: default_dtype(kind), runs),
        )
        for name, kind in (HALVES | {"float64": torch.float64}).items()
        for runs in (False, True)
    ],
    Cell("set_default_device('cpu')", by_the_cpu),
    Cell("torch.device('meta') while patched", under(meta, False)),
    Cell("torch.device('meta') while run", run_under(meta)),
    Cell("set_default_device('meta') where it is patched, not in the thread that runs", in_another_thread),
    Cell("set_float32_matmul_precision('medium')", matmul_precision, families=("wan",)),
    Cell("input that is not contiguous", other_strides),
]
