"""Depth: one way to probe a model. It measures, summarizes, chooses policies, and draws a picture."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.pictures.measurements import layer_bars
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject
from freeloc.probing.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CONTEXT_IS_SHOWN = (
    "context is shown, not used: a window that changes much does not say that it helps; depth loss measures whether it "
    "does"
)
"""The remark of depths that measure how much a window changes."""


class Depth(ABC):
    """One way to probe a model. Plugins register more depths with the hook ``freeloc_depths``.

    A depth must be constructible without arguments, since freeloc constructs it so to read files of its measurements.
    If it requires arguments to measure, `settings` raises an error that names the missing ones.

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
        name: name of the depth: lower-case letters, digits and hyphens. Its tables are named ``name.measure``.
        rank: if several depths were measured, the one with the highest rank is printed and decides by default.
        samples: the axis of its tables along which standard errors are taken: ``prompts`` or ``clips``.
        by_heads: whether it can measure each head of a layer.
        needs_video: whether `run` must return a video of pixels.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 0
    samples: ClassVar[str] = "prompts"
    by_heads: ClassVar[bool] = True
    needs_video: ClassVar[bool] = False

    def settings(self, subject: Subject) -> dict[str, Any]:
        """Everything that the measurements depend on besides model and run, as JSON values.

        Raises:
            ProbeError: if this depth does not support the subject, or lacks an argument. It is raised before any run.
        """
        return {}

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Table]:
        """Measure, and return tables named ``name.measure``."""

    @abstractmethod
    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """How sensitive each layer or head is.

        Raises:
            ProbeError: if this depth was not measured.
        """

    def choose(self, measured: Measurements, rule: Rule, heads: bool = False) -> list[list[str]]:
        """The policy of each head of each layer; by default by positions alone, with `sensitive` and `Rule.policy`.

        How much a window changes does not say whether it helps. So the default never gives TSA or another window, and
        the context of `summarize` is only shown. A depth that has measured what a correction gains can choose by that.

        Args:
            heads: whether to choose for each head; else all heads of a layer get the same policy.

        Raises:
            ProbeError: if this depth was not measured, or not in every layer, or too few times.
        """
        found = self.summarize(measured, heads, rule)
        if bool(found.position.isnan().all()):  # a model without RoPE, or one that computes NaN
            require_numbers(found.context, "the sensitivity to context")
            flags = torch.zeros(found.position.shape, dtype=torch.bool)
        else:
            require_numbers(found.position, "the sensitivity to positions")
            flags = self.sensitive(found, rule)
        return per_head([rule.policy(own) for own in flags.flatten().tolist()], measured, heads)

    def sensitive(self, found: Summary, rule: Rule) -> Tensor:
        """Which layers or heads are sensitive to positions, by default compared with their mean."""
        return (found.position > 0) & (found.position >= rule.position * found.position.mean())

    def picture(self, measured: Measurements) -> "Figure":
        """A picture of the measurements; by default bars of the summary, with standard errors.

        Raises:
            ProbeError: if this depth was not measured.
            FreelocError: if matplotlib is not installed.
        """
        title = f"{measured.facts.profile.model.name}: depth {self.name}"
        return layer_bars(self.summarize(measured).columns(), title, self.remark(measured))

    def remark(self, measured: Measurements) -> str:
        """A sentence that is printed below the numbers, and shown in the picture; empty for none."""
        return ""

    def count_of(self, measured: Measurements) -> int:
        """The number of measured samples."""
        tables = [table for table in measured.tables_of(self.name).values() if self.samples in table.axes]
        return len(tables[0].axes[self.samples]) if tables else 0

    def require_errors(self, measured: Measurements) -> None:
        """Require at least two samples, which a standard error needs.

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
    """Policies as a list per layer with one per head, from those of layers, or of all heads in order."""
    count = measured.facts.profile.model.heads
    if not heads:
        return [[policy] * count for policy in chosen]
    return [list(chosen[first : first + count]) for first in range(0, len(chosen), count)]


def require_numbers(values: Tensor, what: str) -> None:
    """Require a finite number for every layer. A layer that never ran, or that computes NaN, has none.

    Args:
        values: (layers, ...).
        what: name of the values, for the message.

    Raises:
        ProbeError: if there is such a layer.
    """
    missing = [layer for layer, of_layer in enumerate(values) if not of_layer.isfinite().all()]
    if missing:
        raise ProbeError(
            f"expected a number for {what} of every layer, found none for layer {missing[0]}: a layer that never runs "
            "has none, and neither has a layer that computes NaN, as some models do in half precision, or a score of "
            "motion in videos without texture"
        )
