"""Depth: one way to probe a model. It measures, says how sensitive layers are, chooses their policies, and draws."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.pictures.measurements import layer_bars
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject
from freeloc.probing.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Depth(ABC):
    """One way to probe a model. Plugins register more of them with the hook ``freeloc_depths``.

    A depth must be constructible without arguments: that is how files of its measurements are read. If it needs
    arguments to measure, `settings` says which ones are missing.

    >>> class Constant(Depth):
    ...     name = "constant"
    ...
    ...     def measure(self, subject):
    ...         ones = torch.ones(subject.shape.layers, len(subject.prompt_labels))
    ...         axes = {"layers": [*range(len(ones))], "prompts": subject.prompt_labels}
    ...         return {"constant.value": Table(ones, axes)}
    ...
    ...     def summarize(self, measured, heads=False, rule=USUAL):
    ...         values = samples_of(measured.table("constant.value"), heads, self.samples)
    ...         return Summary.of_samples(position=values, context=0 * values)
    >>> import torch
    >>> Constant().name
    'constant'

    Attributes:
        name: of lower-case letters, digits and hyphens. All its tables are named ``name.measure``.
        rank: where several depths were measured, the one with the highest rank is printed and decides, unless another
            is asked for.
        samples: the axis of its tables along which standard errors are taken: ``prompts`` or ``clips``.
        by_heads: whether it can tell the heads of a layer apart.
        needs_video: whether `run` must return a video of pixels.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 0
    samples: ClassVar[str] = "prompts"
    by_heads: ClassVar[bool] = True
    needs_video: ClassVar[bool] = False

    def settings(self, subject: Subject) -> dict[str, Any]:
        """Everything that the numbers depend on beside model and run, as JSON can hold it.

        Raises:
            ProbeError: if this depth cannot measure the subject, or lacks an argument; this is before anything runs.
        """
        return {}

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Table]:
        """The tables, each named ``name.measure``."""

    @abstractmethod
    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """How sensitive each layer is, or each head.

        Raises:
            ProbeError: if this depth was not measured.
        """

    def choose(self, measured: Measurements, rule: Rule, heads: bool = False) -> list[list[str]]:
        """The policy of each head of each layer. By default by `sensitive` and `Rule.policy`.

        Args:
            heads: choose for each head; else all heads of a layer get the same policy.

        Raises:
            ProbeError: if this depth was not measured, or not in every layer, or too few times.
        """
        found = self.summarize(measured, heads, rule)
        require_numbers(found.context, "the sensitivity to context")
        has_rope = not bool(found.position.isnan().all())
        if has_rope:
            require_numbers(found.position, "the sensitivity to positions")
            has_rope = bool(found.position.any())
        both = (flags.flatten().tolist() for flags in self.sensitive(found, rule))
        chosen = [rule.policy(position, context, has_rope) for position, context in zip(*both, strict=True)]
        return per_head(chosen, measured, heads)

    def sensitive(self, found: Summary, rule: Rule) -> tuple[Tensor, Tensor]:
        """Which layers or heads are sensitive to positions and to context: at least a share of the mean over all."""
        position = found.position >= rule.position * found.position.mean()
        return position, found.context >= rule.context * found.context.mean()

    def picture(self, measured: Measurements) -> "Figure":
        """A picture of the measurements: by default bars of what `summarize` returns, with standard errors.

        Raises:
            ProbeError: if this depth was not measured.
            FreelocError: if matplotlib is not installed.
        """
        return layer_bars(self.summarize(measured).columns(), f"{measured.facts.profile.model.name}: depth {self.name}")

    def count_of(self, measured: Measurements) -> int:
        """How many samples were measured."""
        tables = [table for table in measured.tables_of(self.name).values() if self.samples in table.axes]
        return len(tables[0].axes[self.samples]) if tables else 0

    def require_errors(self, measured: Measurements) -> None:
        """Refuse measurements without the two samples that a standard error needs.

        Raises:
            ProbeError: if there are fewer.
        """
        count = self.count_of(measured)
        if measured.tables_of(self.name) and count < 2:
            raise ProbeError(f"expected at least 2 {self.samples}, for a standard error, found {count}")


def samples_of(table: Table, heads: bool, samples: str = "prompts") -> Tensor:
    """The mean over all axes but layers, heads and samples, (layers, samples) or (layers, heads, samples).

    >>> import torch
    >>> table = Table(torch.ones(8, 3, 2), {"layers": [*range(8)], "steps": [0, 1, 2], "prompts": ["a", "b"]})
    >>> samples_of(table, heads=False).shape
    torch.Size([8, 2])
    """
    return table.over("layers", *(["heads"] if heads else []), samples).values


def per_head(chosen: Sequence[str], measured: Measurements, heads: bool) -> list[list[str]]:
    """Policies of layers, or of the heads of all layers one after the other, as a list per layer with one per head."""
    count = measured.facts.profile.model.heads
    if not heads:
        return [[policy] * count for policy in chosen]
    return [list(chosen[first : first + count]) for first in range(0, len(chosen), count)]


def require_numbers(values: Tensor, what: str) -> None:
    """Refuse layers without a number: a layer that never ran, or that computes NaN.

    Args:
        values: (layers, ...).
        what: they are, for the message.

    Raises:
        ProbeError: if there is such a layer.
    """
    missing = [layer for layer, of_layer in enumerate(values) if not of_layer.isfinite().all()]
    if missing:
        raise ProbeError(
            f"expected a number for {what} of every layer, found none for layer {missing[0]}: a layer that never runs "
            "has none, and neither has a layer that computes NaN, as some models do in half precision"
        )
