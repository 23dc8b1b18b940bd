"""Pictures of what a probe measured."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.pictures.figures import empty_figure, ticks
from freeloc.profile.schema import Profile
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TableLike(Protocol):
    """A tensor with named axes, as `freeloc.probing.Table`."""

    @property
    def values(self) -> Tensor:
        """The numbers."""

    @property
    def axes(self) -> Mapping[str, Sequence[str | int | float]]:
        """Labels by axis, in the order of the tensor's axes."""

    def over(self, *axes: str) -> "TableLike":
        """The mean over all axes but these."""


class SummaryLike(Protocol):
    """How sensitive every layer is, each (layers,): as what `freeloc.probing.Sensitivity.summary` returns."""

    @property
    def position(self) -> Tensor:
        """To positions."""

    @property
    def context(self) -> Tensor:
        """To context."""

    @property
    def position_error(self) -> Tensor:
        """Standard errors of `position`."""

    @property
    def context_error(self) -> Tensor:
        """Standard errors of `context`."""


class FactsLike(Protocol):
    """What measurements are of."""

    @property
    def profile(self) -> Profile:
        """Of the model that was measured."""


class MeasurementsLike(Protocol):
    """What pictures need of measurements, as `freeloc.probing.Sensitivity`."""

    @property
    def facts(self) -> FactsLike:
        """What was measured."""

    def table(self, name: str) -> TableLike:
        """One table."""

    def summary(self, depth: str | None = None) -> SummaryLike:
        """How sensitive every layer is."""


def sensitivity_map(sensitivity: MeasurementsLike, table: str) -> "Figure":
    """One table of measurements over layers and heads, and over layers and denoising steps: means over the rest.

    Args:
        sensitivity: the measurements.
        table: one with heads or steps, such as ``"local.logits"``.

    Raises:
        ProbeError: if it was not measured, or has neither heads nor steps.
    """
    measured = sensitivity.table(table)
    across = [axis for axis in ("heads", "steps") if axis in measured.axes]
    if "layers" not in measured.axes or not across:
        raise ProbeError(f"expected a table with layers and heads or steps, found '{table}' with {list(measured.axes)}")
    figure = empty_figure(1.5 + 4.2 * len(across), 4.6, f"{sensitivity.facts.profile.model.name}: {table}")
    for axes, axis in zip(figure.subplots(1, len(across), squeeze=False)[0], across, strict=True):
        mean = measured.over("layers", axis)
        image = axes.imshow(mean.values.numpy(), cmap="viridis", aspect="auto", interpolation="nearest")
        places = ticks(len(mean.axes[axis]))
        axes.set(xlabel=axis.removesuffix("s"), ylabel="layer", yticks=ticks(len(mean.values)))
        axes.set_xticks(places, [printable(str(mean.axes[axis][place]), 20) for place in places], parse_math=False)
        figure.colorbar(image, ax=axes)
    return figure
