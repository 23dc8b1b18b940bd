"""The output of the bench: printed tables, CSV files, a figure per measure, contact sheets and a GIF."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freeloc.pictures import curves, drift_chart, scatter, write
from freeloc.pictures.charts import Point
from freeloc.tiny import scores, wins
from freeloc.tiny.bench import Cell, cells, run
from freeloc.tiny.models import model_named
from freeloc.tiny.pictures import contact_sheet, side_by_side
from freeloc.tiny.sizes import TRUE, Size

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

COMPARED = tuple(name for name in IN_TABLE if name not in scores.OVER_CLIPS)
"""Measures of one clip, by which settings win or lose."""


def bench(folder: Path, size: Size, workers: int = 1, results: Path | None = None, parts: Collection[str] = ()) -> str:
    """Run what is missing in `folder`, write the output to `results` (by default `folder`), and return the tables.

    Args:
        folder: folder of the videos and their measures.
        size: how much to measure.
        workers: processes; two or more have one thread each.
        results: folder of the output.
        parts: names of the parts to run; of the others, the output has what is saved. By default all parts.
    """
    order = [(times, name) for times in size.lengths for name in size.clips_at(times)]
    rows = run(folder, size, workers, parts)
    rows.sort(key=lambda row: (order.index((row["times"], row["setting"])), row["clip"]))
    saved = [cell for cell in cells(folder, size) if cell.path.exists()]
    lengths = sorted({cell.times for cell in saved})
    lines = scores.summary(rows) + _over_clips(saved)
    results = results or folder
    results.mkdir(parents=True, exist_ok=True)
    scores.write_csv(results / "clips.csv", rows)
    scores.write_csv(results / "summary.csv", lines)
    found = [gain for times in lengths for gain in wins.gains(rows, times, COMPARED)]
    scores.write_csv(results / "wins.csv", [gain._asdict() | {"verdict": gain.verdict} for gain in found])
    figures(lines, results)
    for times in lengths:
        here = [cell for cell in saved if cell.times == times]
        trade_off(lines, times, results, model_named(size.model).motion)
        drift_curve(here, results / f"{times}x-drift-curve.png")
        sheets([cell for cell in here if cell.first == 0], results)
        if times == lengths[len(lengths) // 2]:
            side_by_side(
                {cell.setting: cell.video()[:2] for cell in here if cell.first == 0}, results / f"{times}x.gif"
            )
    return "\n\n".join(tables(rows, lines, lengths))


def tables(rows: list[dict[str, Any]], lines: list[dict[str, Any]], lengths: list[int]) -> list[str]:
    """Tables per length: means, then wins and losses by measure."""
    found = []
    for times in lengths:
        found += [table(lines, times, f"{times}x"), *wins.tables(rows, times, COMPARED)]
    return found


def _over_clips(saved: list[Cell]) -> list[dict[str, Any]]:
    """Lines of the measures that compare a set of clips with a second set of true clips.

    They depend on the number of clips. So only settings with the largest number at a length have them.
    """
    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in saved:
        groups.setdefault((cell.times, cell.setting), []).append(cell)
    lines, reference = [], {}
    for (times, setting), several in groups.items():
        if len(several) < len(groups[times, TRUE]):
            continue
        if times not in reference:
            clips = [index for cell in several for index in cell.indices]
            true = several[0].of.true_clips(clips, several[0].latent_frames, part="tune")
            reference[times] = scores.Features.of(true)
        videos = torch.cat([cell.video() for cell in several])
        for name, (value, error) in scores.over_clips(videos, reference[times]).items():
            line = {"times": times, "setting": setting, "measure": name, "clips": len(videos)}
            lines.append(line | {"mean": value, "error": error})
    return lines


def table(lines: list[dict[str, Any]], times: int, title: str) -> str:
    """A Markdown table: mean and standard error of each setting at one length. Empty columns are left out."""
    here = [line for line in lines if line["times"] == times]
    found = {(line["setting"], line["measure"]): f"{line['mean']:.3g} ± {line['error']:.1g}" for line in here}
    clips: dict[str, int] = {}
    for line in here:
        clips[line["setting"]] = max(line["clips"], clips.get(line["setting"], 0))
    names = [name for name in IN_TABLE if any(line["measure"] == name for line in here)]
    rows = [[title, "clips", *names]]
    for setting, count in clips.items():
        rows.append([setting, str(count), *(found.get((setting, name), "") for name in names)])
    return scores.markdown(rows)


def figures(lines: list[dict[str, Any]], folder: Path) -> None:
    """Write a PNG per measure: its mean over length, with standard errors, one line per setting.

    Distances of sets depend on the number of clips, so they are drawn only for lengths with the largest number.
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


def trade_off(lines: list[dict[str, Any]], times: int, folder: Path, motion: str) -> None:
    """Write a PNG: a measure of motion against drift of colours, a point per setting."""
    found: dict[str, dict[str, Point]] = {}
    for line in lines:
        if line["times"] == times:
            found.setdefault(line["setting"], {})[line["measure"]] = line["mean"], line["error"]
    points = {name: (of["drift"], of[motion]) for name, of in found.items()}
    write(scatter(points, "drift", motion, bold=TRUE), folder / f"{times}x-trade-off.png")


def drift_curve(here: list[Cell], path: Path) -> None:
    """Write a PNG: change of colours by distance in frames, mean over clips of one length."""
    videos: dict[str, list[Tensor]] = {cell.setting: [] for cell in here}
    for cell in here:
        videos[cell.setting].extend(cell.video().movedim(1, -1))
    write(drift_chart(videos, bold=TRUE), path)


def sheets(first: list[Cell], results: Path) -> None:
    """Write contact sheets of the first two clips of these cells, one per setting at one length."""
    videos = {cell.setting: cell.video() for cell in first}
    for clip in range(2):
        words = [f"{first[0].times}x", str(clip), *first[0].prompts[clip].split()]
        rows = {setting: video[clip : clip + 1] for setting, video in videos.items()}
        contact_sheet(rows, results / f"{'-'.join(words)}.png")
