"""``freeloc bench --losses``: the denoising loss on true long clips under each setting, the cheapest sensitive measure.

No video is sampled. The noise on a clip is the same for every setting, so losses are compared clip by clip. Each clip
of a setting is saved as soon as it is measured, and measured again if weights, plans or this code changed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from freeloc.files import replacing
from freeloc.probing import denoising, places
from freeloc.probing.depths.denoising_loss import noise_seed
from freeloc.tiny import parallel, scores
from freeloc.tiny.models import digest, model_named
from freeloc.tiny.setting import Setting

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)
"""Noise levels, 0 clean to 1 noise."""

WHOLE, MOVING = "denoising loss", "denoising loss, moving"
"""Names of the two means over a clip: of whole frames, and of the places that move and have detail."""

BASELINE = "vrpr everywhere"
"""The setting that others are compared with."""


@dataclass(frozen=True)
class LossCell:
    """One clip under one setting at one length, and its file."""

    folder: Path
    times: int
    setting: Setting
    clip: int
    model: str = "tiny-wan"

    @property
    def path(self) -> Path:
        """Path of the saved losses."""
        return self.folder / "losses" / f"{self.times}x" / folder_name(self.setting.name) / f"{self.clip:03}.json"


def folder_name(setting: str) -> str:
    """Name of a setting as that of a folder.

    >>> folder_name("layer-wise, noise of freenoise")
    'layer-wise,-noise-of-freenoise'
    """
    return setting.replace(" ", "-")


def bench_losses(
    folder: Path, settings: Sequence[Setting], model: str, times: Sequence[int], clips: int, workers: int = 1
) -> str:
    """Measure what is not saved in `folder`, write ``losses.csv`` there, and return a table.

    Args:
        folder: folder of the results.
        settings: the settings; the table compares them with `BASELINE`.
        model: name of the model.
        times: lengths, in trained lengths.
        clips: number of clips.
        workers: processes; two or more have one thread each.
    """
    model_named(model).true_clips(range(clips), latent_frames=1)  # an error if there are fewer
    every = [
        LossCell(folder, length, setting, clip, model)
        for length in times
        for clip in range(clips)
        for setting in settings
    ]
    rows: list[dict[str, Any]] = []
    with parallel.parallel(workers) as run_all, tqdm(total=len(every), unit="clip") as progress:
        for cell, found in zip(every, run_all(saved, every), strict=True):
            rows.append({"times": cell.times, "setting": cell.setting.name, "clip": cell.clip} | found)
            progress.set_description(f"{cell.times}x {cell.setting.name}"[:28].ljust(28))
            progress.update()
    folder.mkdir(parents=True, exist_ok=True)
    scores.write_csv(folder / "losses.csv", rows)
    return table(rows, f"{model}: loss - {BASELINE}, x 1e-4")


def saved(cell: LossCell) -> dict[str, float]:
    """The losses of a cell, read from disk if they were measured with the same weights, plans and code."""
    of = [model_named(cell.model).digest, cell.setting.fingerprint, digest(Path(__file__), places, denoising)]
    found: dict[str, Any] = json.loads(cell.path.read_text()) if cell.path.exists() else {}
    if found.get("of") != of:
        found = {"of": of, "losses": measured(cell)}
        cell.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cell.path) as part:
            part.write_text(json.dumps(found), encoding="utf-8")
    losses: dict[str, float] = found["losses"]
    return losses


def measured(cell: LossCell) -> dict[str, float]:
    """The losses of a cell, means over `LEVELS`. A plan that changes by step is that of step 0 at the first level."""
    model = model_named(cell.model)
    clean = model.latents([cell.clip], model.long_frames(cell.times))
    weight = places.motion_weight(clean[0], model.axes)
    objective, whole, moving = model.objective, 0.0, 0.0
    with cell.setting.patched(model.transformer) as after_step:
        for step, level in enumerate(LEVELS):
            generator = torch.Generator().manual_seed(noise_seed(0, cell.clip, level))
            noise = torch.randn(clean.shape, generator=generator)
            noisy = objective.noisy(clean, noise, level)
            found = model.predict(noisy, objective.timestep(level), model.prompts([cell.clip]))
            error = (found - objective.target(clean, noise, level)).square()[0]
            whole += float(error.mean()) / len(LEVELS)
            moving += float((error * weight).mean()) / len(LEVELS)
            after_step(step)
    return {WHOLE: whole, MOVING: moving}


def table(rows: list[dict[str, Any]], title: str) -> str:
    """A Markdown table: difference to `BASELINE` in 1e-4, whole frame / moving places, a column per length.

    The row of the baseline has the losses themselves. A length at which a setting was not measured stays empty.
    """
    lines = {
        (line["setting"], line["times"], line["measure"]): line for line in scores.summary(rows, baseline=BASELINE)
    }
    lengths = sorted({row["times"] for row in rows})
    clips = {times: len({row["clip"] for row in rows if row["times"] == times}) for times in lengths}
    shown = [[title, *(f"{times}x, {clips[times]} clips" for times in lengths)]]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        cells = []
        for times in lengths:
            both = [lines[setting, times, name] for name in (WHOLE, MOVING) if (setting, times, name) in lines]
            cells.append(" / ".join(_difference(line) if setting != BASELINE else _value(line) for line in both))
        shown.append([setting, *cells])
    return scores.markdown(shown)


def _value(line: dict[str, Any]) -> str:
    return f"{1e4 * line['mean']:.0f}"


def _difference(line: dict[str, Any]) -> str:
    """Difference and standard error, with a decimal where the error is small."""
    mean, error = 1e4 * line["difference"], 1e4 * line["difference error"]
    digits = 0 if error >= 10 else 1
    return f"{mean:+.{digits}f} ± {error:.{digits}f}"
