"""The results of attention.py as a picture: time and share of pairs, both over dense, by length.

    python benchmarks/figure.py --out runs/cpu

It reads attention.json in that folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tables import groups

from freeloc.pictures.figures import empty_figure, write

TITLE = "Time of attention over that of dense attention; dashed: share of pairs"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each dtype and number of tokens per frame, with a line for each plan, of the preferred kernel."""
    panels = list(groups(rows, "dtype", "tokens_per_frame", "heads"))
    figure = empty_figure(max(8, 4.5 * len(panels) + 2), 4.5, TITLE)
    labels: dict[str, Any] = {}
    for place, (first, own) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.axhline(1, color="black", linewidth=1)
        for index, (plan, line) in enumerate(lines_of(own).items()):
            frames = sorted(line)
            style = {"color": f"C{index}"}
            ratios, shares = ([line[n][word] for n in frames] for word in ("ratio", "share"))
            labels[plan] = axes.plot(frames, ratios, marker="o", markersize=4, **style)[0]
            axes.plot(frames, shares, linestyle="--", linewidth=1, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({row["frames"] for row in own})
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set(xlabel="latent frames", ylabel="time / time of dense attention" if place == 1 else "")
        axes.set_title(f"{first['tokens_per_frame']} tokens per frame, {first['dtype']}", fontsize=9)
    figure.legend(list(labels.values()), list(labels), loc="outside right center", fontsize=8)
    write(figure, path)


def lines_of(rows: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """The rows of each plan beyond the trained length, by latent frames."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["side"] == "this" and row["plan"] not in ("dense", "identity") and "ratio" in row:
            found.setdefault(row["plan"], {}).setdefault(row["frames"], row)
    return found


def main() -> None:
    """Draw a picture beside the results."""
    parser = argparse.ArgumentParser(description="Draw the results of attention.py.")
    parser.add_argument("--out", type=Path, default=Path("runs/cpu"), help="folder of the results")
    parser.add_argument("--name", default="attention", help="name of the results (default: attention)")
    given = parser.parse_args()
    rows, path = given.out / f"{given.name}.json", given.out / f"{given.name}.png"
    draw(json.loads(rows.read_text())["rows"], path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
