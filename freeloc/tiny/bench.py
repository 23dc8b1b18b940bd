"""``freeloc bench``: compares methods on a tiny model, at 1 to 8 times the trained length, from the same noise.

Each cell (length, setting, four clips) is saved as soon as it is done. An interrupted bench continues where it stopped,
and a bench with more clips reuses the existing ones.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from freeloc.errors import FreelocError
from freeloc.files import replacing
from freeloc.metrics import measures as metrics
from freeloc.metrics import motion
from freeloc.tiny import judge, losses, measures
from freeloc.tiny.models import TinyModel, digest, model_named
from freeloc.tiny.parallel import parallel
from freeloc.tiny.sizes import TRUE, Size

CHUNK = 4
"""Number of clips that are sampled together and share a file."""

FIRST_SEED = 10_000
"""Seed of the first clip's noise. Choices of layers are made on other seeds."""

MEASURED_BY = (metrics, motion, measures, judge.WEIGHTS)
"""The code and weights that determine the measures of a video. If they change, videos are measured again."""


@dataclass(frozen=True)
class Cell:
    """Some clips of one setting at one length, and their files."""

    folder: Path
    times: int
    setting: str
    first: int
    model: str = "tiny-wan"

    @property
    def path(self) -> Path:
        """Path of the videos; the measures are in a .json file beside it."""
        return self.folder / f"{self.times}x" / losses.folder_name(self.setting) / f"{self.first:03}.safetensors"

    @property
    def latent_frames(self) -> int:
        """Length of the videos, in latent frames."""
        return self.of.long_frames(self.times)

    @property
    def of(self) -> TinyModel:
        """The model."""
        return model_named(self.model)

    @property
    def indices(self) -> range:
        """Numbers of the clips."""
        return range(self.first, self.first + CHUNK)

    @property
    def prompts(self) -> list[str]:
        """One prompt per clip."""
        return self.of.prompts(self.indices)

    def video(self) -> Tensor:
        """The saved videos, (clips, 3, latent_frames, height, width)."""
        return load_file(self.path)["video"].float() / 255


def cells(folder: Path, size: Size) -> list[Cell]:
    """All cells by part; the first clips of all settings come before further clips of any."""
    every = [
        Cell(folder, part.times, name, first, size.model)
        for part in size.parts
        for first in range(0, part.clips, CHUNK)
        for name in (TRUE, *part.names)
        if name in (TRUE, *size.settings)
    ]
    return list(dict.fromkeys(every))


def run(folder: Path, size: Size, workers: int = 1, parts: Collection[str] = ()) -> list[dict[str, Any]]:
    """Sample and measure what is not saved yet; return a row of measures per clip.

    Args:
        folder: folder of the results.
        size: how much to measure.
        workers: processes; two or more have one thread each.
        parts: names of the parts to run. Of the others, only what is saved is returned. By default all parts.

    Raises:
        FreelocError: if the folder holds a bench of other weights or settings.
    """
    _require_same(folder, size)
    wanted = set(cells(folder, size.only(parts)))
    every = [cell for cell in cells(folder, size) if cell in wanted or cell.path.exists()]
    rows = []
    with parallel(workers) as run_all, tqdm(total=len(every), unit="cell") as progress:
        for cell, found in zip(every, run_all(finish, every, repeat(size)), strict=True):
            rows += found
            progress.set_description(f"{cell.times}x {cell.setting}"[:28].ljust(28))
            progress.update()
    return rows


def finish(cell: Cell, size: Size) -> list[dict[str, Any]]:
    """Rows of a cell, read from disk if they exist."""
    if not cell.path.exists():
        _save(cell, _make(cell, size))
    path, measured_by = cell.path.with_suffix(".json"), digest(*MEASURED_BY)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found.get("measured by") != measured_by:
        found = {"measured by": measured_by, "rows": _scored(cell)}
        _write(path, json.dumps(found))
    rows: list[dict[str, Any]] = found["rows"]
    if cell.setting == TRUE or cell.first >= size.loss_clips:
        return rows
    setting = size.settings[cell.setting]
    own = [losses.saved(losses.LossCell(cell.folder, cell.times, setting, row["clip"], cell.model)) for row in rows]
    return [row | both for row, both in zip(rows, own, strict=True)]


def _write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _make(cell: Cell, size: Size) -> Tensor:
    """The videos of a cell, (clips, 3, latent_frames, height, width)."""
    model = cell.of
    if cell.setting == TRUE:
        return model.true_clips(cell.indices, cell.latent_frames)
    setting = size.settings[cell.setting]
    initial = model.noise([FIRST_SEED + index for index in cell.indices], cell.latent_frames)
    initial = setting.prepared(initial, model.frames_axis, FIRST_SEED + cell.first)
    with setting.patched(model.pipeline) as after_step:
        return model.sample(cell.prompts, initial, size.steps, size.guidance, after_step)


def _save(cell: Cell, video: Tensor) -> None:
    """Write the videos of a cell atomically."""
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(cell.path) as part:
        save_file({"video": (video * 255).round().byte().contiguous()}, part)


def _scored(cell: Cell) -> list[dict[str, Any]]:
    """Rows of measures of the clips of a cell."""
    return [
        {"times": cell.times, "setting": cell.setting, "clip": index, "prompt": prompt}
        | {name: measure(video, prompt) for name, measure in cell.of.measures.items()}
        for index, prompt, video in zip(cell.indices, cell.prompts, cell.video(), strict=True)
    ]


def _require_same(folder: Path, size: Size) -> None:
    """Refuse to mix videos of different weights, true clips, steps or plans in one folder."""
    requested = {name for part in size.parts for name in part.names}
    used = {name: setting.fingerprint for name, setting in size.settings.items() if name in requested}
    expected: dict[str, Any] = {"model": size.model, "weights or true clips": model_named(size.model).digest}
    expected |= {"steps": size.steps, "guidance": size.guidance}
    path, known = folder / "bench.json", {}
    if path.exists():
        found = json.loads(path.read_text())
        known = found.pop("plans")
        changed = [name for name in expected if found.get(name) != expected[name]]
        changed += [f"plans of '{name}'" for name in used if known.get(name, used[name]) != used[name]]
        if changed:
            raise FreelocError(
                f"{folder} holds a bench with other {', '.join(changed)}: give another folder, or remove that one"
            )
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(expected | {"plans": known | used}, indent=1))
