"""A cell of the matrix: what another library does to a model, and what must come of it beside a patch.

A cell is one of three things:

- exact: the patched model gives what the oracle of tests/support/dense.py gives, while the correction is far larger;
- refused: freeloc raises an error whose text is tested;
- fails: the same call without a patch fails, and the test shows it.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from dense import oracle
from families import FACTS
from freeloc_adapters.examples import EXAMPLES
from lengths import plan_of_call
from torch import Tensor, nn

import freeloc

FAMILIES = ("wan", "hunyuan-video", "cogvideox-1.5", "ltx-2")
ORDERS = ("before", "after")
"""When the other library is applied: before the patch, or after it."""
TRAINED, SHORT, LONG, LONGER = 4, 3, 9, 12
"""Latent frames: of training, of a video that needs no correction, and of two that do."""
GRID = 2, 3
"""Rows and columns of tokens."""
LEAST_GAP = 100
"""The correction is at least so many times as large as the difference that was found."""
LEAST_GAP_OF_MOVING = 1.5
"""The same where the model itself moves: numbers of 16 bits, activations of 8."""


class Exact(NamedTuple):
    """What was measured."""

    difference: float
    """Largest difference to the oracle."""
    gap: float
    """Largest difference of the oracle to the same without a correction; infinite where only shapes are compared."""
    note: str = ""
    own: float = 0.0
    """How far the model itself moves, without freeloc, where numbers are rounded in another way; 0 if that is small."""


@dataclass(frozen=True)
class Refused:
    """freeloc raises an error that this pattern is found in."""

    pattern: str


@dataclass(frozen=True)
class Fails:
    """Without freeloc there is an error that this pattern is found in."""

    pattern: str


EXACT = "exact"
Expected = Refused | Fails | str


class NoPatch:
    """Stands for a patch where a cell is run without freeloc."""

    def remove(self) -> None: ...

    def __enter__(self) -> "NoPatch":
        return self

    def __exit__(self, *ended: object) -> None: ...


class Case:
    """A model of a family for one run of a cell, and what is known of it.

    Args:
        family: name of an example.
        order: one of `ORDERS`, or "" if the cell has none.
        is_patched: False to run the cell without freeloc.
    """

    def __init__(self, family: str, order: str = "", is_patched: bool = True) -> None:
        self.family, self.order, self.is_patched = family, order, is_patched
        self.facts = FACTS[family]
        self.model: Any = new_model(family)
        self.profile = profile_of(family)

    def inputs(self, frames: int = LONG, batch: int = 2, grid: tuple[int, int] = GRID) -> dict[str, Any]:
        return _example(self.family).inputs(frames, *grid, batch)

    def run(self, call: Any = None, frames: int = LONG, **changes: Any) -> Tensor:
        """The video that a model gives, by default the model of the case, without gradients."""
        with torch.no_grad():
            return video(self.model if call is None else call, self.inputs(frames) | changes)

    def patch(self, model: Any = None, **options: Any) -> Any:
        """The patch of a model, by default the model of the case."""
        if not self.is_patched:
            return NoPatch()
        return freeloc.patch(self.model if model is None else model, self.profile, **options)

    def plan(self, layer: int, frames: int) -> freeloc.FramePlan:
        return plan_of_call(self.profile, layer, frames, self.facts.spacing, self.facts.references)

    def oracle(self, model: nn.Module, frames: int = LONG, grid: tuple[int, int] = GRID) -> Any:
        """Inside the block, a model that is not patched computes dense attention under the plans."""
        return oracle(model, self.facts, self.plan, frames, *grid)

    def plain(self, frames: int = LONG) -> Tensor:
        """What the model gives as it is."""
        return untouched(self.family, frames)[0]

    def expected(self, frames: int = LONG) -> Tensor:
        """What the oracle gives for the model as it is."""
        return untouched(self.family, frames)[1]

    def of(self, model: Any, frames: int = LONG) -> tuple[Tensor, Tensor]:
        """Without a correction, and of the oracle, for any model without a patch."""
        plain = self.run(model, frames)
        if frames <= TRAINED:
            return plain, plain
        with self.oracle(model, frames):
            return plain, self.run(model, frames)

    def new_model(self) -> Any:
        """Another model with the same weights."""
        return new_model(self.family)

    def exact(self, found: Tensor, frames: int = LONG, note: str = "") -> Exact:
        """The result where one output of the untouched model was found."""
        expected = self.expected(frames)
        return Exact(difference(found, expected), difference(self.plain(frames), expected), note)


def _example(family: str) -> Any:
    return next(example for example in EXAMPLES if example.label == family)


@functools.cache
def _weights(family: str) -> Any:
    return _example(family).model()


def new_model(family: str) -> Any:
    """A model of a family, with the same random weights each time."""
    import copy

    return copy.deepcopy(_weights(family))


@functools.cache
def profile_of(family: str) -> freeloc.Profile:
    """VRPR, TSA and both, in turn; the last layer has both."""
    model = _weights(family)
    profile = freeloc.default_profile(model, trained_latent_frames=TRAINED)
    count = profile.model.layers
    names = ["vrpr+tsa", "tsa", "vrpr"]
    layers = {name: [layer for layer in range(count) if (count - 1 - layer) % 3 == at] for at, name in enumerate(names)}
    return profile.model_copy(update={"layers": {name: found for name, found in layers.items() if found}})


@functools.cache
def untouched(family: str, frames: int) -> tuple[Tensor, Tensor]:
    """Without a correction, and of the oracle; known for all cells, so not in the midst of what a cell does."""
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    case = Case(family)
    return case.of(case.model, frames)


def video(call: Any, inputs: Mapping[str, Any]) -> Tensor:
    """The first tensor that a call returns."""
    out = call(**inputs)
    while not isinstance(out, Tensor):
        out = next(iter(out.values() if isinstance(out, dict) else out))
    return out


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where one is not a number."""
    found = (one.double() - other.double()).abs().max().item()
    return found if found == found else float("inf")


def worst(results: Sequence[Exact], note: str = "") -> Exact:
    """The largest difference and the smallest gap."""
    own = max(each.own for each in results)
    return Exact(max(each.difference for each in results), min(each.gap for each in results), note, own)


def movement(case: Case, call: Any, frames: int) -> float:
    """How far a model moves when the last bit of its input changes, up or down."""
    given, whole = case.inputs(frames), case.run(call, frames)
    hidden = given["hidden_states"]
    ends = [torch.full_like(hidden, end) for end in (float("inf"), float("-inf"))]
    moved = [case.run(call, frames, hidden_states=torch.nextafter(hidden, end)) for end in ends]
    return max(difference(whole, other) for other in moved)


Body = Callable[[Case], Exact]
Apply = Callable[[Any], Any]


@dataclass(frozen=True)
class Cell:
    """One row of the matrix.

    Args:
        name: what is done, in the words of its library.
        body: does it and measures; a refusal is raised.
        families: models that it is done to.
        orders: when, of `ORDERS`; none if that has no meaning.
        expects: what must come of it: `EXACT`, `Refused` or `Fails`.
        but: the same for some families, or for "family, order".
        needs: packages beside those of the development environment.
        quick: families with which the cell runs in every test run.
        tolerance: the largest difference that is exact.
    """

    name: str
    body: Body
    families: Sequence[str] = FAMILIES
    orders: Sequence[str] = ()
    expects: Expected = EXACT
    but: Mapping[str, Expected] = field(default_factory=dict)
    needs: Sequence[str] = ()
    quick: Sequence[str] = ()
    tolerance: float = 2e-5

    def expected(self, family: str, order: str) -> Expected:
        return self.but.get(f"{family}, {order}", self.but.get(family, self.expects))


def applied(
    name: str,
    apply: Apply,
    *,
    changes: bool = False,
    lengths: Sequence[int] = (LONG, SHORT, LONGER),
    inside: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    moves: bool = False,
    **options: Any,
) -> Cell:
    """A cell whose library does `apply` to a model, which returns what is called then, or None for the model itself.

    The patched model must equal the oracle at each length, and what it gave before once the patch is removed.

    Args:
        changes: whether the model computes something else then, such as with other weights. Then the oracle computes
            that too.
        inside: opened around both.
        moves: whether the model then moves much with the last bit of its input. That is measured, and allowed.
    """

    def body(case: Case) -> Exact:
        own = 0.0
        if changes:
            twin = case.new_model()
            with inside():
                runs = apply(twin)
                runs = twin if runs is None else runs
                pairs = {frames: case.of(runs, frames) for frames in lengths}
                own = max(movement(case, runs, frames) for frames in lengths) if moves else 0.0
        else:
            pairs = {frames: (case.plain(frames), case.expected(frames)) for frames in lengths}
        with inside():
            return measured(case, apply, pairs)._replace(own=own)

    return Cell(name, body, **{"orders": ORDERS} | options)


def measured(case: Case, apply: Apply, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> Exact:
    """The largest difference, of the patched model and of the model after its patch was removed.

    Args:
        pairs: by length, what the model gives without a correction, and what the oracle gives.
    """
    patch = None if case.order == "before" else case.patch()
    runs = apply(case.model)
    runs = case.model if runs is None else runs
    if patch is None:
        patch = case.patch(runs)
    with patch:
        found = [difference(case.run(runs, frames), expected) for frames, (_, expected) in pairs.items()]
        assert not case.is_patched or patch.report().corrected_calls
    found.append(difference(case.run(runs, LONG), pairs[LONG][0]))
    gap = min(difference(*pair) for frames, pair in pairs.items() if frames > TRAINED)
    return Exact(max(found), gap)
