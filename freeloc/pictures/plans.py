"""Pictures of plans."""

from typing import TYPE_CHECKING

from torch import Tensor

from freeloc.pictures.figures import add_legend, draw_cells, empty_figure
from freeloc.plans.frame_plan import NONE, FramePlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME_MASK_COLOURS = {"not attended": "#ffffff", "striped": "#f0b400", "dense": "#30408f"}
"""Colours of the values of `FramePlan.visibility`."""


def plan_tables(plan: FramePlan, title: str = "") -> "Figure":
    """The tables of a plan: the positions of pairs of frames, the frame mask, and the bias of logits if there is one.

    >>> import freeloc
    >>> figure = plan_tables(freeloc.frame_plan(freeloc.load_profile("wan2.1"), layer=0, frames=81))
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['positions, in latent frames', 'visibility: 52% of pairs of frames']

    Raises:
        FreelocError: if matplotlib is not installed.
    """
    count = 2 if plan.bias is None else 3
    figure = empty_figure(5 * count, 4.6, title)
    left, right, *rest = figure.subplots(1, count)
    _signed(figure, left, plan.positions, max(1.0, float(plan.positions.abs().max())), "positions, in latent frames")
    draw_cells(right, plan.visibility, list(FRAME_MASK_COLOURS.values()))
    share = float((plan.visibility > 0).double().mean())
    right.set_title(f"visibility: {share:.0%} of pairs of frames")
    add_legend(right, FRAME_MASK_COLOURS, loc="upper right", fontsize=8)
    if plan.bias is not None:
        bias = plan.bias.masked_fill(plan.visibility == NONE, 0)
        _signed(figure, rest[0], bias, float(bias.abs().max()) or 1.0, "bias, added to the logits")
    for axes in (left, right, *rest):
        axes.set(xlabel="key frame", ylabel="query frame")
    return figure


def _signed(figure: "Figure", axes: "Axes", table: Tensor, largest: float, title: str) -> None:
    """Draw numbers from -largest to largest, with a colour bar."""
    image = axes.imshow(table.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    figure.colorbar(image, ax=axes, shrink=0.85)
    axes.set_title(title)
