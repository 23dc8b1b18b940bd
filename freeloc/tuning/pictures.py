"""The pictures of a report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freeloc.pictures import layer_chart
from freeloc.pictures.figures import empty_figure
from freeloc.pictures.measurements import layer_bars
from freeloc.probing import Sensitivity
from freeloc.probing.table import Table
from freeloc.profile.schema import Profile
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pictures_of(profile: Profile, measured: Sensitivity, strips: Mapping[str, Tensor]) -> "dict[str, Figure]":
    """The pictures by name.

    Raises:
        FreelocError: if matplotlib is not installed.
    """
    found = {
        "all-layers": loss_bars(measured.table("tune.all layers"), "policies", "Candidates on all layers"),
        "other-clips": loss_bars(measured.table("tune.other clips"), "settings", "The check on other clips"),
        "choice": layer_chart(profile),
    }
    gains = measured.summary("tune").more
    if gains:
        title = "Fall of the loss with another policy on one layer"
        found["one-layer"] = layer_bars(
            {name: (100 * mean, 100 * error) for name, (mean, error) in gains.items()}, title
        )
    if strips:
        found["videos"] = film(strips)
    return found


def loss_bars(table: Table, axis: str, title: str) -> "Figure":
    """Losses in percent of the lowest one's, with standard errors over clips of the difference to it.

    Args:
        table: (`axis`, losses, lengths, levels, clips), NaN where nothing was measured.
        axis: name of the axis of what is compared.
        title: title of the picture.
    """
    names = [printable(str(name), 40) for name in table.labels(axis)]
    figure = empty_figure(9, 1.2 + 0.32 * len(names), title)
    columns = figure.subplots(1, 2, sharey=True)
    for axes, loss, label in zip(
        columns, ("whole", "places"), ("whole frames", "moving and detailed places"), strict=True
    ):
        values = table.at(losses=loss).values.flatten(1, -2)  # (names, lengths and levels, clips)
        best = int(values.nanmean(dim=(1, 2)).nan_to_num(nan=torch.inf).argmin())
        reference = values[best].nanmean()
        apart = (values - values[best]).nanmean(dim=1)  # (names, clips)
        count = apart.isfinite().sum(dim=1)
        mean = apart.nanmean(dim=1)
        spread = (apart - mean[:, None]).square().nansum(dim=1) / (count - 1).clamp(min=1)
        error = (spread / count.clamp(min=1)).sqrt()
        axes.barh(
            range(len(names)),
            (100 * mean / reference).nan_to_num().tolist(),
            xerr=(100 * error / reference).nan_to_num().tolist(),
            color="#0072b2",
            ecolor="#333333",
            capsize=2,
        )
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.set_xlabel(f"loss above the lowest, %: {label}")
        axes.set_xscale("symlog", linthresh=1.0)
    columns[0].set_yticks(range(len(names)), names, parse_math=False)
    columns[0].invert_yaxis()
    return figure


def film(strips: Mapping[str, Tensor]) -> "Figure":
    """Frames of the first sampled video of each setting, one row for each."""
    figure = empty_figure(11, 0.6 + 1.5 * len(strips), "Frames of one sampled video, from its begin to its end")
    for axes, (name, strip) in zip(figure.subplots(len(strips), 1, squeeze=False)[:, 0], strips.items(), strict=True):
        axes.imshow(strip.numpy(), interpolation="nearest")
        axes.set_title(printable(name, 60), fontsize=9, parse_math=False)
        axes.set_axis_off()
    return figure
