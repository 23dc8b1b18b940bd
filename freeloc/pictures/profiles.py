"""Pictures of profiles."""

from typing import TYPE_CHECKING

import torch

from freeloc.errors import ProbeError
from freeloc.pictures.figures import add_legend, draw_cells, empty_figure, ticks
from freeloc.pictures.measurements import MeasurementsLike
from freeloc.plans.method import colour_of
from freeloc.profile.policies import resolve_policy
from freeloc.profile.schema import Policy, Profile
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def layer_chart(profile: Profile, sensitivity: MeasurementsLike | None = None, depth: str | None = None) -> "Figure":
    """The policy of each layer as coloured cells; with measurements also its sensitivity, as bars with standard errors.

    >>> import freeloc
    >>> len(layer_chart(freeloc.load_profile("wan2.1")).axes)
    1

    Args:
        profile: the profile. If heads of a layer differ, there is a row of cells per head.
        sensitivity: measurements of the same model.
        depth: the depth whose measurements are shown; by default the one with the highest rank.

    Raises:
        ProbeError: if the measurements are of a model with other layers, or the depth was not measured.
    """
    colours = policy_colours(profile)
    layers, heads = profile.model.layers, profile.model.heads if profile.heads else 1
    bars = _bars(profile, sensitivity, depth) if sensitivity else {}
    heights = [2.2] * len(bars) + [max(0.5, 0.22 * heads)]
    width, height = max(6.0, 0.22 * layers + 2), sum(heights) + 1.2
    figure = empty_figure(min(width, 30), min(height, 30), f"{profile.model.name}: {profile.provenance.kind}")
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, (values, errors)) in zip(rows, bars.items(), strict=False):
        of_layers = [colours[profile.policy(layer)] for layer in range(layers)]
        axes.bar(range(layers), values, yerr=errors, color=of_layers, ecolor="#333333", capsize=2)
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_ylabel(name, parse_math=False)
    _draw_policies(rows[-1], profile, heads, colours)
    add_legend(figure, colours, loc="outside right center", title="policy")
    return figure


def policy_colours(profile: Profile) -> dict[Policy, str]:
    """A colour for each policy of a layer or head: its method's colour, or another if that is already used.

    >>> import freeloc
    >>> policy_colours(freeloc.load_profile("wan2.1"))
    {'vrpr': '#0072b2', 'vrpr+tsa': '#009e73'}

    Raises:
        ProfileError: if there is no such policy.
    """
    colours: dict[Policy, str] = {}
    for policy in profile.used_policies:
        colour = resolve_policy(profile, policy).method.colour
        colours[policy] = colour_of(policy) if colour in colours.values() else colour
    return colours


def _draw_policies(axes: "Axes", profile: Profile, heads: int, colours: dict[Policy, str]) -> None:
    """Draw a coloured cell per layer, in one row per head."""
    names = list(colours)
    policies = [profile.head_policies(layer)[:heads] for layer in range(profile.model.layers)]
    draw_cells(axes, torch.tensor([[names.index(own) for own in layer] for layer in policies]).T, [*colours.values()])
    axes.set_aspect("auto")
    axes.set(xlabel="layer", ylabel="head" if profile.heads else "", xticks=ticks(len(policies)))
    axes.set_yticks(ticks(heads) if profile.heads else [])


def _bars(
    profile: Profile, sensitivity: MeasurementsLike, depth: str | None
) -> dict[str, tuple[list[float], list[float] | None]]:
    """Values and standard errors by what they measure. What was not measured is left out."""
    found = sensitivity.summary(depth)
    if len(found.position) != profile.model.layers:
        raise ProbeError(
            f"expected measurements of {profile.model.layers} layers, as the profile has, found {len(found.position)}"
        )
    rows = {
        "sensitivity\nto positions": (found.position, found.position_error),
        "sensitivity\nto context": (found.context, found.context_error),
        **{printable(name, 40): numbers for name, numbers in found.more.items()},
    }
    return {
        name: (values.nan_to_num().tolist(), None if errors.isnan().any() else errors.tolist())
        for name, (values, errors) in rows.items()
        if not values.isnan().all()
    }
