"""The pictures of a report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freeloc.pictures import layer_chart
from freeloc.pictures.figures import empty_figure, ticks
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
        loss = float(measured.table("tune.one layer").at(losses="whole").values[0].nanmean())
        found["one-layer"] = gain_map({name: (mean / loss, error / loss) for name, (mean, error) in gains.items()})
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
        reference = values[best].nanmean().clamp(min=1e-6)
        apart = (values - values[best]).nanmean(dim=1)  # (names, clips)
        count = apart.isfinite().sum(dim=1)
        mean = apart.nanmean(dim=1)
        spread = (apart - mean[:, None]).square().nansum(dim=1) / (count - 1).clamp(min=1)
        error = (spread / count.clamp(min=1)).sqrt()
        axes.errorbar(
            (100 * mean / reference).nan_to_num().tolist(),
            range(len(names)),
            xerr=(100 * error / reference).nan_to_num().tolist(),
            linestyle="",
            marker="o",
            color="#0072b2",
            ecolor="#333333",
            capsize=2,
        )
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.set_xlabel(f"loss above the lowest, %: {label}")
        axes.set_xscale("symlog", linthresh=1.0)  # direct sampling may be worse by 300 %, others differ by 1 %
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(axis="x", linewidth=0.4)
    columns[0].set_yticks(range(len(names)), names, parse_math=False)
    columns[0].invert_yaxis()
    return figure


def gain_map(gains: Mapping[str, tuple[Tensor, Tensor]]) -> "Figure":
    """How much the loss on whole frames falls with another policy on one layer, a cell for each; blue is better.

    Args:
        gains: (layers,) gains and (layers,) standard errors by policy, as shares of the loss.
    """
    values = 100 * torch.stack([mean for mean, _ in gains.values()])  # (policies, layers)
    errors = 100 * torch.stack([error for _, error in gains.values()])
    names, layers = [printable(name, 40) for name in gains], values.shape[1]
    figure = empty_figure(
        min(4 + 0.6 * layers, 60),
        1.6 + 0.32 * len(names),
        "Another policy on one layer (*: better by more than two standard errors)",
    )
    axes = figure.add_subplot()
    # Harm can be a hundred times as large as gains; it is drawn as the darkest red.
    largest = max(0.1, float(values.nan_to_num(nan=0.0, neginf=0.0).max()))
    image = axes.imshow(values.numpy(), cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    figure.colorbar(image, ax=axes, label="fall of the loss on whole frames, %", extend="min")
    for row in range(len(names)):
        for layer in range(layers if layers <= 16 else 0):
            value = float(values[row, layer])
            if value == value:
                sure = "*" if value > 2 * float(errors[row, layer]) else ""
                ink = "white" if abs(value) > 0.6 * largest else "black"
                axes.text(layer, row, f"{value:.2f}{sure}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="layer", xticks=ticks(layers))
    return figure


def film(strips: Mapping[str, Tensor]) -> "Figure":
    """Frames of the first sampled video of each setting, one row for each."""
    figure = empty_figure(11, 0.6 + 1.5 * len(strips), "Frames of one sampled video, from its begin to its end")
    for axes, (name, strip) in zip(figure.subplots(len(strips), 1, squeeze=False)[:, 0], strips.items(), strict=True):
        axes.imshow(strip.numpy(), interpolation="nearest")
        axes.set_title(printable(name, 60), fontsize=9, parse_math=False)
        axes.set_axis_off()
    return figure
