"""Pictures of profiles, plans and measurements: matplotlib figures, drawn without a screen.

Each function returns a figure, for a notebook or for `write`, which makes a PNG file of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freeloc.errors import FreelocError, ProbeError
from freeloc.files import replacing
from freeloc.metrics.measures import drift_curve
from freeloc.pictures.measured import Sensitivity
from freeloc.plans.frame_plan import FramePlan
from freeloc.profile.schema import POLICIES, Policy, Profile
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POLICY_COLOURS: dict[Policy, str] = {"none": "#bbbbbb", "vrpr": "#0072b2", "tsa": "#e69f00", "vrpr+tsa": "#009e73"}
"""Told apart by everybody, also in print: after Okabe and Ito."""

SEEN = {"not seen": "#ffffff", "striped": "#f0b400", "dense": "#30408f"}
"""Colours of the values of `FramePlan.visibility`."""

Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""Places, means and standard errors."""

Point = tuple[float, float]
"""Mean and standard error."""


def write(figure: "Figure", path: str | Path) -> None:
    """Write a PNG file, whole or not at all; the same figure gives the same bytes.

    Raises:
        FreelocError: if it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            figure.savefig(part, format="png", dpi=100, metadata={"Software": None})
    except OSError as error:
        raise FreelocError(f"cannot write the picture {path}: {error.strerror}") from error


def plan_tables(plan: FramePlan, title: str = "") -> "Figure":
    """The two tables of a plan: the positions that pairs of frames get, and how much they see of each other.

    >>> import freeloc
    >>> figure = plan_tables(freeloc.frame_plan(freeloc.load_profile("wan2.1"), layer=0, frames=81))
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['positions, in latent frames', 'visibility: 52% of pairs of frames']

    Raises:
        FreelocError: if matplotlib is not installed; so with every function here that draws.
    """
    figure = _figure(10, 4.6, title)
    left, right = figure.subplots(1, 2)
    largest = max(1.0, float(plan.positions.abs().max()))
    image = left.imshow(plan.positions.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    figure.colorbar(image, ax=left, shrink=0.85)
    left.set_title("positions, in latent frames")
    _colours(right, plan.visibility, list(SEEN.values()))
    share = float((plan.visibility > 0).double().mean())
    right.set_title(f"visibility: {share:.0%} of pairs of frames")
    right.legend(handles=_patches(SEEN), loc="upper right", fontsize=8)
    for axes in (left, right):
        axes.set(xlabel="key frame", ylabel="query frame")
    return figure


def layer_chart(profile: Profile, sensitivity: "Sensitivity | None" = None, depth: str | None = None) -> "Figure":
    """What each layer gets, as coloured cells, and with measurements how sensitive it is, as bars with errors.

    >>> import freeloc
    >>> len(layer_chart(freeloc.load_profile("wan2.1")).axes)
    1

    Args:
        profile: that chooses. Where it tells heads of a layer apart, there is a row of cells per head.
        sensitivity: measurements of the same model.
        depth: of the measurements; by default the deepest.

    Raises:
        ProbeError: if the measurements are of a model with other layers, or the depth was not measured.
    """
    layers, heads = profile.model.layers, profile.model.heads if profile.heads else 1
    bars = _bars(profile, sensitivity, depth) if sensitivity else {}
    heights = [2.2] * len(bars) + [max(0.5, 0.22 * heads)]
    width, height = max(6.0, 0.22 * layers + 2), sum(heights) + 1.2
    figure = _figure(min(width, 60), min(height, 60), f"{profile.model.name}: {profile.provenance.kind}")
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, (values, errors)) in zip(rows, bars.items(), strict=False):
        colours = [POLICY_COLOURS[profile.policy(layer)] for layer in range(layers)]
        axes.bar(range(layers), values, yerr=errors, color=colours, ecolor="#333333", capsize=2)
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_ylabel(name)
    used = _policy_cells(rows[-1], profile, heads)
    figure.legend(handles=_patches(used), loc="outside right center", title="policy")
    return figure


def _policy_cells(axes: "Axes", profile: Profile, heads: int) -> dict[Policy, str]:
    """A coloured cell per layer, in so many rows of heads; the colours that were used."""
    policies = [profile.head_policies(layer)[:heads] for layer in range(profile.model.layers)]
    cells = torch.tensor([[POLICIES.index(own) for own in layer] for layer in policies]).T
    _colours(axes, cells, list(POLICY_COLOURS.values()))
    axes.set_aspect("auto")
    axes.set(xlabel="layer", ylabel="head" if profile.heads else "", xticks=_ticks(len(policies)))
    axes.set_yticks(_ticks(heads) if profile.heads else [])
    return {policy: POLICY_COLOURS[policy] for policy in POLICIES if any(policy in layer for layer in policies)}


def sensitivity_map(sensitivity: "Sensitivity", table: str) -> "Figure":
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
    figure = _figure(1.5 + 4.2 * len(across), 4.6, f"{sensitivity.facts.profile.model.name}: {table}")
    for axes, axis in zip(figure.subplots(1, len(across), squeeze=False)[0], across, strict=True):
        mean = measured.over("layers", axis)
        image = axes.imshow(mean.values.numpy(), cmap="viridis", aspect="auto", interpolation="nearest")
        places = _ticks(len(mean.axes[axis]))
        axes.set(xlabel=axis.removesuffix("s"), ylabel="layer", yticks=_ticks(len(mean.values)))
        axes.set_xticks(places, [printable(str(mean.axes[axis][place]), 20) for place in places], parse_math=False)
        figure.colorbar(image, ax=axes)
    return figure


def drift_chart(videos: Mapping[str, Sequence[Tensor]], bold: str = "") -> "Figure":
    """How much colours have changed after so many frames (`freeloc.metrics.drift_curve`): mean over each name's videos.

    >>> still = torch.full((8, 4, 4, 3), 0.5)
    >>> figure = drift_chart({"still": [still], "fading": [still * torch.linspace(0, 1, 8)[:, None, None, None]]})
    >>> [(line.get_label(), round(float(line.get_ydata().max()), 2)) for line in figure.axes[0].lines]
    [('still', 0.0), ('fading', 1.0)]

    Args:
        videos: by name, each (frames, height, width, 3) in 0..1; those of one name as long as each other.
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
        lengths: ticks of a logarithmic axis, in trained lengths; without them it is a plain one.
    """
    figure = _figure(9, 5, f"{up}: mean and standard error")
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
    """Two measures against each other: each mean with a cross of standard errors.

    Args:
        points: by name, (mean, standard error) across and up.
        across, up: what the axes show.
        bold: name of a point to compare with, drawn in black.
    """
    figure = _figure(9, 6, f"{up} over {across}: mean and standard error")
    axes = figure.add_subplot()
    for index, (name, ((x, x_error), (y, y_error))) in enumerate(points.items()):
        style: dict[str, Any] = {"color": f"C{index % 10}", "marker": "os^"[index // 10 % 3], "markersize": 7}
        if name == bold:
            style = {"color": "black", "marker": "*", "markersize": 14}
        axes.errorbar(x, y, xerr=x_error, yerr=y_error, label=name, linestyle="", elinewidth=1, **style)
    axes.set(xlabel=across, ylabel=up)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure that no window shows."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FreelocError(f'pictures need matplotlib ({error}): pip install "freeloc[plot]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)  # a stranger's name is no formula
    return figure


def _bars(
    profile: Profile, sensitivity: "Sensitivity", depth: str | None
) -> dict[str, tuple[list[float], list[float] | None]]:
    """Values and standard errors by what they measure; without what was not measured at all."""
    found = sensitivity.summary(depth)
    if len(found.position) != profile.model.layers:
        raise ProbeError(
            f"expected measurements of {profile.model.layers} layers, as the profile has, found {len(found.position)}"
        )
    both = {"positions": (found.position, found.position_error), "context": (found.context, found.context_error)}
    return {
        f"sensitivity\nto {name}": (values.nan_to_num().tolist(), None if errors.isnan().any() else errors.tolist())
        for name, (values, errors) in both.items()
        if not values.isnan().all()
    }


def _colours(axes: "Axes", values: Tensor, colours: list[str]) -> None:
    """Small whole numbers as cells of these colours."""
    from matplotlib.colors import ListedColormap

    axes.imshow(
        values.numpy(), cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest"
    )


def _patches(colours: Mapping[Any, str]) -> list[Any]:
    """What a legend shows for colours by name."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=colour, edgecolor="#333333", label=name) for name, colour in colours.items()]


def _ticks(count: int) -> list[int]:
    """Places to name along an axis: all of a few, else every fifth or tenth."""
    return list(range(0, count, 1 if count <= 20 else 5 if count <= 60 else 10))
