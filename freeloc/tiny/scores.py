"""The measures of the bench, per clip and over all clips of a setting, with standard errors."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from freeloc import metrics
from freeloc.files import replacing

Part = TypeVar("Part")

OVER_CLIPS = ("colour spread", "frame distance", "motion distance")
"""Measures of a set of clips."""


class Features(NamedTuple):
    """Features for Frechet distances, one tensor (frames, features) per clip."""

    frame: list[Tensor]
    motion: list[Tensor]

    @classmethod
    def of(cls, videos: Tensor) -> "Features":
        """The features of videos (clips, 3, frames, height, width)."""
        shown = videos.movedim(1, -1)
        return cls(
            [metrics.frame_features(video) for video in shown], [metrics.motion_features(video) for video in shown]
        )


def over_clips(videos: Tensor, true: Features) -> dict[str, tuple[float, float]]:
    """Measures of a set of videos (clips, 3, frames, height, width), each with its jackknife standard error.

    The error includes only the variation of these videos, not that of the true clips that they are compared with.
    """
    mine = Features.of(videos)

    def distance(reference: list[Tensor]) -> Callable[[Sequence[Tensor]], float]:
        whole = torch.cat(reference)
        return lambda parts: metrics.frechet_distance(torch.cat(list(parts)), whole)

    return {
        "colour spread": jackknife(metrics.colour_spread, list(videos.movedim(1, -1))),
        "frame distance": jackknife(distance(true.frame), mine.frame),
        "motion distance": jackknife(distance(true.motion), mine.motion),
    }


def jackknife(statistic: Callable[[Sequence[Part]], float], parts: Sequence[Part]) -> tuple[float, float]:
    """A statistic of several parts, and its jackknife standard error (Tukey 1958).

    >>> jackknife(lambda parts: sum(parts) / len(parts), [1.0, 3.0])
    (2.0, 1.0)
    """
    left_out = [statistic([*parts[:index], *parts[index + 1 :]]) for index in range(len(parts))]
    without = torch.tensor(left_out, dtype=torch.float64)
    error = ((len(parts) - 1) / len(parts) * (without - without.mean()).square().sum()).sqrt()
    return statistic(parts), float(error)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error is NaN for fewer than two values.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def summary(rows: list[dict[str, Any]], baseline: str = "direct") -> list[dict[str, Any]]:
    """Per length, setting and measure: mean, standard error, number of clips, and the paired difference to `baseline`.

    Clips of the same number have the same prompt and, except for true clips, the same noise. So differences are
    computed clip by clip. Values that are NaN, such as motion in a video without texture, are left out.
    """
    values: dict[tuple[int, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("times", "setting", "clip", "prompt"):
                values.setdefault((row["times"], row["setting"]), {}).setdefault(name, {})[row["clip"]] = value
    lines = []
    for (times, setting), measures in values.items():
        for name, by_clip in measures.items():
            by_clip = {clip: value for clip, value in by_clip.items() if not math.isnan(value)}
            mean, error = mean_and_error(list(by_clip.values()))
            line = {
                "times": times,
                "setting": setting,
                "measure": name,
                "clips": len(by_clip),
                "mean": mean,
                "error": error,
            }
            base = values.get((times, baseline), {}).get(name, {})
            paired = [value - base[clip] for clip, value in by_clip.items() if not math.isnan(base.get(clip, math.nan))]
            if paired and setting != baseline:
                line["difference"], line["difference error"] = mean_and_error(paired)
            lines.append(line)
    return lines


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows atomically. Columns have the order in which they first occur."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table with columns of even width; the first row is the head.

    >>> print(markdown([["setting", "clips"], ["direct", "4"]]))
    | setting | clips |
    | ------- | ----- |
    | direct  | 4     |
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lines
    )
