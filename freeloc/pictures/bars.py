"""Bars over layers with their standard errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from freeloc.pictures.figures import _figure, _ticks
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_bars(rows: Mapping[str, tuple[Tensor, Tensor]], title: str = "") -> "Figure":
    """A row of bars for each name: a value per layer, with its standard error where there is one.

    >>> import torch
    >>> figure = layer_bars({"context": (torch.rand(8), torch.full((8,), 0.1))})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['context']

    Args:
        rows: (layers,) values and (layers,) standard errors by name. A value that is NaN has no bar.
        title: of the picture.

    Raises:
        FreelocError: if matplotlib is not installed.
    """
    layers = max((len(values) for values, _ in rows.values()), default=1)
    figure = _figure(min(max(6.0, 0.22 * layers + 2), 60), min(2.2 * max(1, len(rows)) + 1, 60), title)
    for axes, (name, (values, errors)) in zip(
        figure.subplots(max(1, len(rows)), 1, sharex=True, squeeze=False)[:, 0], rows.items(), strict=False
    ):
        heights = values.nan_to_num(posinf=0.0, neginf=0.0).tolist()
        known = None if errors.isnan().any() else errors.tolist()
        axes.bar(range(len(heights)), heights, yerr=known, color="#0072b2", ecolor="#333333", capsize=2)
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_ylabel(printable(name, 40), parse_math=False)
        axes.set(xlabel="layer", xticks=_ticks(layers))
    return figure
