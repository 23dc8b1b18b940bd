"""Threads: several of them run patched models.

Each thread has lengths of its own. Between its runs another thread may compile, export, train or change the backend.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.errors import FreelocError

from .cell import LONG, LONGER, SHORT, Case, Cell, Exact, Refused, difference, worst
from .compilation import attention_of, blocks_of

ROUNDS = 6


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """What each job returns, each in a thread of its own; an error of one is raised here."""
    found: dict[int, Any] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(number: int) -> None:
        try:
            start.wait(60)
            found[number] = jobs[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [found[number] for number in range(len(jobs))]


def rounds(case: Case, call: Any, frames: int) -> Exact:
    """Some runs of one length in this thread."""
    found = [case.run(call, frames) for _ in range(ROUNDS)]
    expected = case.expected(frames)
    assert frames > SHORT or all(difference(each, expected) <= 2e-5 for each in found)
    return Exact(max(difference(each, expected) for each in found), difference(case.plain(frames), expected))


def turns(case: Case, call: Any, lengths: Sequence[int] = (LONG, LONGER)) -> Exact:
    for frames in lengths:
        case.expected(frames)  # before the threads, which would share what the oracle replaces
    results = in_threads(*[lambda frames=frames: rounds(case, call, frames) for frames in lengths])
    return worst([each for each in results if each.gap])


def two_lengths(*lengths: int) -> Any:
    def body(case: Case) -> Exact:
        with case.patch():
            return turns(case, case.model, lengths)

    return body


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[list[int]]:
    """Another thread does something again and again, inside the block."""
    done, ended, errors = [0], threading.Event(), []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
                done[0] += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()
    assert not errors, errors
    assert done[0], "nothing was done meanwhile"


def compile_something() -> None:
    layer = nn.Linear(4, 4)
    torch.compile(layer, backend="eager")(torch.ones(2, 4))


def export_something() -> None:
    torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),))


def while_another(work: Callable[[], None]) -> Any:
    def body(case: Case) -> Exact:
        for frames in (LONG, LONGER):
            case.expected(frames)
        with case.patch(), meanwhile(work) as done:
            results = [turns(case, case.model)]
            while not done[0]:  # the first compilation takes longer than the runs
                results.append(turns(case, case.model))
            return worst(results)

    return body


def training_meanwhile(case: Case) -> Exact:
    """Gradients in one thread, a compilation in another."""

    def gradient(model: Any) -> Tensor:
        given = case.inputs()
        hidden = given["hidden_states"].requires_grad_()
        out = model(**given | {"return_dict": False})[0]
        return torch.autograd.grad(out.square().sum(), hidden)[0]

    plain = gradient(case.model)
    with case.oracle(case.model):
        expected = gradient(case.model)
    with case.patch(), meanwhile(compile_something) as done:
        found = [gradient(case.model) for _ in range(ROUNDS)]
        while not done[0]:
            found.append(gradient(case.model))
    largest = float(expected.abs().max())
    return Exact(max(difference(each, expected) for each in found) / largest, difference(plain, expected) / largest)


def compiled_first(case: Case) -> Exact:
    """Compiled and run in the main thread, then run in another with another length."""
    compiled = torch.compile(case.model, backend="eager")
    with case.patch():
        found = [case.exact(case.run(compiled))]
        (there,) = in_threads(lambda: case.run(compiled, LONGER))
        found.append(case.exact(there, LONGER))
        found.append(case.exact(case.run(compiled)))
    return worst(found)


def compiled_whole(case: Case) -> Exact:
    """Each run is right, or refused with the advice to run one after the other."""
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    for frames in (LONG, LONGER):
        case.expected(frames)

    def run(frames: int) -> list[Exact]:
        try:
            return [case.exact(case.run(compiled, frames), frames)]
        except FreelocError as error:
            if "one thread at a time" not in str(error):
                raise
            return []

    def runs(frames: int) -> list[Exact]:
        return [each for _ in range(ROUNDS) for each in run(frames)]

    with case.patch():
        alone = [*runs(LONG), *runs(LONGER)]
        assert len(alone) == 2 * ROUNDS
        one, other = in_threads(lambda: runs(LONG), lambda: runs(LONGER))
    return worst([*alone, *one, *other], "runs at the same time may be refused: one thread at a time")


def compiled_with_breaks(case: Case) -> Exact:
    """A second thread enters a model that is compiled as a whole, while the first waits between two of its graphs."""
    inside, entered = threading.Event(), threading.Event()

    @torch.compiler.disable
    def wait(module: nn.Module, given: Any) -> None:
        if threading.current_thread().name == "first" and not inside.is_set():
            inside.set()
            entered.wait(30)

    attention_of(blocks_of(case.model)[1])[1].register_forward_pre_hook(wait)
    compiled = torch.compile(case.model, backend="eager")

    def first() -> Tensor:
        threading.current_thread().name = "first"
        return case.run(compiled)

    def second() -> Tensor:
        inside.wait(30)
        try:
            return case.run(compiled, LONGER)
        finally:
            entered.set()

    with case.patch():
        one, other = in_threads(first, second)
    return worst([case.exact(one), case.exact(other, LONGER)])


def compiled_blocks(case: Case) -> Exact:
    case.model.compile_repeated_blocks(backend="eager")
    with case.patch():
        for frames in (LONG, LONGER):
            case.run(frames=frames)
        return turns(case, case.model)


def one_compiled_block(case: Case) -> Exact:
    blocks_of(case.model)[0].compile(backend="eager")
    with case.patch():
        return turns(case, case.model, (LONG, LONGER, SHORT))


def another_backend(shared: bool) -> Any:
    """Threads run while the model has another backend; then the processors are as they were."""

    def body(case: Case) -> Exact:
        if shared:
            processor = attention_of(blocks_of(case.model)[0])[1].processor
            for block in blocks_of(case.model):
                attention_of(block)[1].set_processor(processor)
        case.model.set_attention_backend("_native_math")
        named = [attention_of(block)[1].processor._attention_backend for block in blocks_of(case.model)]
        with case.patch():
            result = turns(case, case.model)
        assert named == [attention_of(block)[1].processor._attention_backend for block in blocks_of(case.model)]
        return result

    return body


def each_its_own(case: Case) -> Exact:
    """Two models with the same weights, patched, run and unpatched in threads of their own."""
    for frames in (LONG, LONGER):
        case.expected(frames)

    def one(model: Any, frames: int) -> Exact:
        results = []
        for _ in range(ROUNDS):
            with case.patch(model):
                results.append(case.exact(case.run(model, frames), frames))
            assert difference(case.run(model, frames), case.plain(frames)) <= 2e-5
        return worst(results)

    other = case.new_model()
    return worst(in_threads(lambda: one(case.model, LONG), lambda: one(other, LONGER)))


def from_thread_to_thread(case: Case) -> Exact:
    """Patched in one thread, run in a second, unpatched in a third."""
    (patch,) = in_threads(case.patch)
    (found,) = in_threads(case.run)
    in_threads(patch.remove)
    assert difference(case.run(), case.plain()) <= 2e-5
    return case.exact(found)


def data_parallel(case: Case) -> Exact:
    """torch.nn.DataParallel without devices."""
    parallel = nn.DataParallel(case.model)
    with case.patch(parallel):
        return case.exact(case.run(parallel))


TWO = ("wan", "hunyuan-video")
WITH_BACKENDS = ("wan", "ltx-2")
CELLS = [
    Cell("two threads, 9 and 12 latent frames", two_lengths(LONG, LONGER), quick=("wan",)),
    Cell("two threads, 3 and 9 latent frames", two_lengths(SHORT, LONG)),
    Cell("two threads, while a third compiles", while_another(compile_something), TWO),
    Cell("two threads, while a third exports", while_another(export_something), TWO),
    Cell("gradients, while another thread compiles", training_meanwhile, TWO, tolerance=1e-4),
    Cell("compiled in the main thread, run in another", compiled_first, TWO),
    Cell("torch.compile(fullgraph=True), two threads", compiled_whole, ("wan",)),
    Cell(
        "torch.compile with graph breaks, a second thread in between",
        compiled_with_breaks,
        ("wan",),
        expects=Refused("(PatchError|LayoutError): .*one thread at a time"),
    ),
    Cell("compile_repeated_blocks, two threads", compiled_blocks, TWO),
    Cell("one compiled block, three threads", one_compiled_block, TWO),
    Cell("set_attention_backend, two threads", another_backend(False), WITH_BACKENDS),
    Cell("one processor for all layers, set_attention_backend, two threads", another_backend(True), WITH_BACKENDS),
    Cell("two patched models, each in its thread", each_its_own),
    Cell("patched, run and unpatched in three threads", from_thread_to_thread),
    Cell("torch.nn.DataParallel", data_parallel),
]
