"""Helpers of all pictures: figures without a window, coloured cells, legends, and PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.files import replacing
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write(figure: "Figure", path: str | Path) -> None:
    """Write a PNG file. The write is atomic, and the same figure gives the same bytes.

    Raises:
        FreelocError: if it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            figure.savefig(part, format="png", dpi=100, metadata={"Software": None})
    except OSError as error:
        raise FreelocError(f"cannot write the picture {printable(str(path))}: {error.strerror}") from error


def empty_figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure that is not shown in a window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FreelocError(f'pictures require matplotlib ({error}): pip install "freeloc[plot]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)  # an untrusted name must not be parsed as a formula
    return figure


def draw_cells(axes: "Axes", values: Tensor, colours: list[str]) -> None:
    """Draw a table of small integers as cells; integer i has the colour ``colours[i]``."""
    from matplotlib.colors import ListedColormap

    axes.imshow(
        values.numpy(), cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest"
    )


def add_legend(owner: "Axes | Figure", colours: Mapping[str, str], **place: Any) -> None:
    """Add a legend of colours by name. Names may be untrusted."""
    from matplotlib.patches import Patch

    labels = [
        f" {name}" if name.startswith("_") else name for name in map(printable, colours)
    ]  # matplotlib leaves out labels that start with _
    handles = [Patch(facecolor=colour, edgecolor="#333333") for colour in colours.values()]
    for text in owner.legend(handles, labels, **place).get_texts():
        text.set_parse_math(False)


def ticks(count: int) -> list[int]:
    """Ticks of an axis: all if there are few, else every fifth or tenth."""
    return list(range(0, count, 1 if count <= 20 else 5 if count <= 60 else 10))
