"""What the bench writes: a printed table, CSV, a figure per measure, contact sheets and a GIF."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freeloc.pictures import curves, drift_chart, write
from freeloc.tiny import scores
from freeloc.tiny.bench import TRUE, Cell, Size, cells, run
from freeloc.tiny.pictures import contact_sheet, side_by_side

IN_TABLE = (
    "identity",
    "land as prompted",
    "sharpness",
    "contrast",
    "dynamic degree",
    "loop strength",
    "drift",
    "colour spread",
    "frame distance",
    "motion distance",
    "denoising loss",
)
"""Measures in the printed table; all are in the CSV."""


def bench(folder: Path, size: Size, workers: int = 1, results: Path | None = None) -> str:
    """Run what is missing in `folder`, write everything to `results` (by default there too), and return the tables."""
    rows = run(folder, size, workers)
    lines = scores.summary(rows) + _over_clips(folder, size)
    results = results or folder
    results.mkdir(parents=True, exist_ok=True)
    scores.write_csv(results / "clips.csv", rows)
    scores.write_csv(results / "summary.csv", lines)
    figures(lines, results)
    drift_curves(folder, size, results)
    pictures(folder, size, results)
    return "\n\n".join(table(lines, times) for times in size.clips)


def _over_clips(folder: Path, size: Size) -> list[dict[str, Any]]:
    """Lines of the measures that compare sets of clips, against a second set of true clips."""
    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells(folder, size):
        groups.setdefault((cell.times, cell.setting), []).append(cell)
    lines, reference = [], {}
    for (times, setting), several in groups.items():
        if times not in reference:
            reference[times] = scores.Features.of(torch.cat([cell.true_clips(seed=2) for cell in several]))
        videos = torch.cat([cell.video() for cell in several])
        for name, (value, error) in scores.over_clips(videos, reference[times]).items():
            line = {"times": times, "setting": setting, "measure": name, "clips": len(videos)}
            lines.append(line | {"mean": value, "error": error})
    return lines


def table(lines: list[dict[str, Any]], times: int) -> str:
    """Mean and standard error of each setting at one length, a Markdown table."""
    here = [line for line in lines if line["times"] == times]
    found = {(line["setting"], line["measure"]): f"{line['mean']:.3g} ± {line['error']:.1g}" for line in here}
    settings = list(dict.fromkeys(line["setting"] for line in here))
    counts = sorted({line["clips"] for line in here})
    rows = [[f"{times}x, {counts[0]} clips", *IN_TABLE]]
    rows += [[setting, *(found.get((setting, name), "") for name in IN_TABLE)] for setting in settings]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def figures(lines: list[dict[str, Any]], folder: Path) -> None:
    """A PNG per measure: its mean over length, with standard errors, one line per setting.

    Distances of sets depend on how many clips there are, so they are drawn for lengths with the largest number only.
    """
    most = max(line["clips"] for line in lines)
    for measure in dict.fromkeys(line["measure"] for line in lines):
        points: dict[str, tuple[list[float], list[float], list[float]]] = {}
        for line in lines:
            if line["measure"] == measure and (line["clips"] == most or measure not in scores.OVER_CLIPS):
                three = points.setdefault(line["setting"], ([], [], []))
                for values, name in zip(three, ("times", "mean", "error"), strict=True):
                    values.append(line[name])
        lengths = sorted({line["times"] for line in lines})
        figure = curves(points, "length, in trained lengths", measure, bold=TRUE, lengths=lengths)
        write(figure, folder / f"{measure.replace(' ', '-')}.png")


def drift_curves(folder: Path, size: Size, results: Path) -> None:
    """A PNG per length: how much colours have changed after so many frames, mean over clips."""
    for times in size.clips:
        videos: dict[str, list[Tensor]] = {}
        for cell in cells(folder, size):
            if cell.times == times:
                videos.setdefault(cell.setting, []).extend(cell.video().movedim(1, -1))
        write(drift_chart(videos, bold=TRUE), results / f"{times}x-drift-curve.png")


def pictures(folder: Path, size: Size, results: Path) -> None:
    """Contact sheets of the first two clips at every length, and a GIF of them at the middle one."""
    lengths = list(size.clips)
    for times in lengths:
        first = [cell for cell in cells(folder, size) if cell.times == times and cell.first == 0]
        videos = {cell.setting: cell.video() for cell in first}
        for clip in range(2):
            prompt = first[0].prompts[clip].replace(" ", "-")
            rows = {setting: video[clip : clip + 1] for setting, video in videos.items()}
            contact_sheet(rows, results / f"{times}x-{clip}-{prompt}.png")
        if times == lengths[len(lengths) // 2]:
            side_by_side({name: video[:2] for name, video in videos.items()}, results / f"{times}x.gif")
