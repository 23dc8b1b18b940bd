"""Pictures of the measurements of a probe."""

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
    """A tensor with named axes, such as `freeloc.probing.Table`."""

    @property
    def values(self) -> Tensor:
        """The numbers."""

    @property
    def axes(self) -> Mapping[str, Sequence[str | int | float]]:
        """Labels by axis, in the order of the tensor's axes."""

    def over(self, *axes: str) -> "TableLike":
        """The mean over all axes but these."""


class SummaryLike(Protocol):
    """How sensitive every layer is, such as `freeloc.probing.Summary`; each tensor is (layers,)."""

    @property
    def position(self) -> Tensor:
        """Sensitivity to positions."""

    @property
    def context(self) -> Tensor:
        """Sensitivity to context."""

    @property
    def position_error(self) -> Tensor:
        """Standard errors of `position`."""

    @property
    def context_error(self) -> Tensor:
        """Standard errors of `context`."""

    @property
    def more(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Other numbers by name, each with its standard errors."""


class FactsLike(Protocol):
    """The origin of measurements, such as `freeloc.probing.ProbeFacts`."""

    @property
    def profile(self) -> Profile:
        """The profile of the model that was measured."""


class MeasurementsLike(Protocol):
    """The measurements that pictures show, such as `freeloc.probing.Sensitivity`."""

    @property
    def facts(self) -> FactsLike:
        """What was measured."""

    def table(self, name: str) -> TableLike:
        """One table."""

    def summary(self, depth: str | None = None) -> SummaryLike:
        """How sensitive every layer is."""


def sensitivity_map(sensitivity: MeasurementsLike, table: str) -> "Figure":
    """One table of measurements, over layers and heads and over layers and denoising steps: means over all other axes.

    Args:
        sensitivity: the measurements.
        table: name of a table with heads or steps, such as ``"local.logits"``.

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


def layer_bars(rows: Mapping[str, tuple[Tensor, Tensor]], title: str = "", remark: str = "") -> "Figure":
    """A row of bars for each name: a value per layer, with its standard error where there is one.

    >>> import torch
    >>> figure = layer_bars({"context": (torch.rand(8), torch.full((8,), 0.1))})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['context']

    Args:
        rows: (layers,) values and (layers,) standard errors by name. A value that is NaN has no bar.
        title: title of the picture.
        remark: a sentence below the bars.

    Raises:
        FreelocError: if matplotlib is not installed.
    """
    layers = max((len(values) for values, _ in rows.values()), default=1)
    figure = empty_figure(min(max(6.0, 0.22 * layers + 2), 60), min(2.2 * max(1, len(rows)) + 1, 60), title)
    for axes, (name, (values, errors)) in zip(
        figure.subplots(max(1, len(rows)), 1, sharex=True, squeeze=False)[:, 0], rows.items(), strict=False
    ):
        heights = values.nan_to_num(posinf=0.0, neginf=0.0).tolist()
        known = None if errors.isnan().any() else errors.tolist()
        axes.bar(range(len(heights)), heights, yerr=known, color="#0072b2", ecolor="#333333", capsize=2)
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_ylabel(printable(name, 40), parse_math=False)
        axes.set(xlabel="layer", xticks=ticks(layers))
    if remark:
        figure.supxlabel(printable(remark), fontsize="small", parse_math=False, wrap=True)
    return figure
