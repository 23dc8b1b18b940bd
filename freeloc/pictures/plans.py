"""Pictures of plans."""

from typing import TYPE_CHECKING

from freeloc.pictures.figures import add_legend, draw_cells, empty_figure
from freeloc.plans.frame_plan import FramePlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME_MASK_COLOURS = {"not attended": "#ffffff", "striped": "#f0b400", "dense": "#30408f"}
"""Colours of the values of `FramePlan.visibility`."""


def plan_tables(plan: FramePlan, title: str = "") -> "Figure":
    """The two tables of a plan: the positions of pairs of frames, and the frame mask.

    >>> import freeloc
    >>> figure = plan_tables(freeloc.frame_plan(freeloc.load_profile("wan2.1"), layer=0, frames=81))
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['positions, in latent frames', 'visibility: 52% of pairs of frames']

    Raises:
        FreelocError: if matplotlib is not installed.
    """
    figure = empty_figure(10, 4.6, title)
    left, right = figure.subplots(1, 2)
    largest = max(1.0, float(plan.positions.abs().max()))
    image = left.imshow(plan.positions.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    figure.colorbar(image, ax=left, shrink=0.85)
    left.set_title("positions, in latent frames")
    draw_cells(right, plan.visibility, list(FRAME_MASK_COLOURS.values()))
    share = float((plan.visibility > 0).double().mean())
    right.set_title(f"visibility: {share:.0%} of pairs of frames")
    add_legend(right, FRAME_MASK_COLOURS, loc="upper right", fontsize=8)
    for axes in (left, right):
        axes.set(xlabel="key frame", ylabel="query frame")
    return figure
