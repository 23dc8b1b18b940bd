"""Charts of measured numbers: lines and points with their standard errors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freeloc.metrics.measures import drift_curve
from freeloc.pictures.figures import empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""x values, means and standard errors."""

Point = tuple[float, float]
"""Mean and standard error."""


def drift_chart(videos: Mapping[str, Sequence[Tensor]], bold: str = "") -> "Figure":
    """How much colours change by distance in frames (`freeloc.metrics.drift_curve`): mean over the videos of each name.

    >>> still = torch.full((8, 4, 4, 3), 0.5)
    >>> figure = drift_chart({"still": [still], "fading": [still * torch.linspace(0, 1, 8)[:, None, None, None]]})
    >>> [(line.get_label(), round(float(line.get_ydata().max()), 2)) for line in figure.axes[0].lines]
    [('still', 0.0), ('fading', 1.0)]

    Args:
        videos: videos by name, each (frames, height, width, 3) in 0..1. Those of one name have the same length.
        bold: name of a line to compare with, drawn in black.
    """
    lines: dict[str, Curve] = {}
    for name, several in videos.items():
        apart = torch.stack([drift_curve(video) for video in several])
        errors = apart.std(dim=0, correction=min(1, len(apart) - 1)) / len(apart) ** 0.5
        lines[name] = (range(apart.shape[1]), apart.mean(dim=0).tolist(), errors.tolist())
    return curves(lines, "frames apart", "distance of colours", bold)


def curves(
    lines: Mapping[str, Curve], across: str, up: str, bold: str = "", lengths: Sequence[int] | None = None
) -> "Figure":
    """Lines with their standard errors as bands.

    Args:
        lines: by name.
        across, up: what the axes show.
        bold: name of a line to compare with, drawn in black.
        lengths: ticks of a logarithmic axis, in trained lengths; without them the axis is linear.
    """
    figure = empty_figure(9, 5, f"{up}: mean and standard error")
    axes = figure.add_subplot()
    for index, (name, (places, means, errors)) in enumerate(lines.items()):
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": ("-", "--", ":")[index // 10 % 3]}
        if name == bold:
            style = {"color": "black", "linewidth": 2.5}
        axes.plot(places, means, label=name, marker="o" if lengths else None, markersize=4, **style)
        low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, alpha=0.15, color=style["color"], linewidth=0)
    if lengths:
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{times}x" for times in lengths])
    axes.set(xlabel=across, ylabel=up)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def scatter(points: Mapping[str, tuple[Point, Point]], across: str, up: str, bold: str = "") -> "Figure":
    """One measure against another: each mean with its standard errors as a cross.

    Args:
        points: by name, (mean, standard error) across and up.
        across, up: what the axes show.
        bold: name of a point to compare with, drawn in black.
    """
    figure = empty_figure(9, 6, f"{up} over {across}: mean and standard error")
    axes = figure.add_subplot()
    for index, (name, ((x, x_error), (y, y_error))) in enumerate(points.items()):
        style: dict[str, Any] = {"color": f"C{index % 10}", "marker": "os^"[index // 10 % 3], "markersize": 7}
        if name == bold:
            style = {"color": "black", "marker": "*", "markersize": 14}
        axes.errorbar(x, y, xerr=x_error, yerr=y_error, label=name, linestyle="", elinewidth=1, **style)
    axes.set(xlabel=across, ylabel=up)
    figure.legend(loc="outside right center", fontsize=8)
    return figure
