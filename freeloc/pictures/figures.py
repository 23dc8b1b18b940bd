"""What all pictures share: a matplotlib figure without a screen, cells of colours, and a PNG file of it."""

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


def empty_figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure that no window shows."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FreelocError(f'pictures need matplotlib ({error}): pip install "freeloc[plot]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)  # an untrusted name is no formula
    return figure


def draw_cells(axes: "Axes", values: Tensor, colours: list[str]) -> None:
    """Small whole numbers as cells of these colours."""
    from matplotlib.colors import ListedColormap

    axes.imshow(
        values.numpy(), cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest"
    )


def add_legend(owner: "Axes | Figure", colours: Mapping[str, str], **place: Any) -> None:
    """Say what colours stand for, by name; names may be untrusted."""
    from matplotlib.patches import Patch

    labels = [f" {name}" if name.startswith("_") else name for name in map(printable, colours)]  # else left out
    handles = [Patch(facecolor=colour, edgecolor="#333333") for colour in colours.values()]
    for text in owner.legend(handles, labels, **place).get_texts():
        text.set_parse_math(False)


def ticks(count: int) -> list[int]:
    """Places to name along an axis: all of a few, else every fifth or tenth."""
    return list(range(0, count, 1 if count <= 20 else 5 if count <= 60 else 10))
