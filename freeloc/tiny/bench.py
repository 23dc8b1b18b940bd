"""``freeloc bench``: compares methods on the tiny model, at 1 to 8 times the trained length, from the same noise.

Each cell (length, setting, four clips) is saved as soon as it is done. An interrupted bench continues where it stopped,
and a bench with more clips reuses the existing ones.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import freeloc
from freeloc.errors import FreelocError
from freeloc.files import replacing
from freeloc.metrics import measures as metrics
from freeloc.metrics import motion
from freeloc.tiny import judge, measures, scores, synthetic
from freeloc.tiny.model import TRAINED_FRAMES, WEIGHTS, load_pipeline, long_frames, noise, sample
from freeloc.tiny.parallel import parallel
from freeloc.tiny.sizes import TRUE, Size
from freeloc.tiny.synthetic import PROMPTS, clips, to_latents

CHUNK = 4
"""Number of clips that are sampled together and share a file."""

FIRST_SEED = 10_000
"""Seed of the first clip's noise. Choices of layers are made on other seeds."""

LOSS_CLIPS = 12
"""Number of first clips on which the denoising loss is measured: it varies little, and needs five calls per clip."""

MEASURED_BY = (metrics, motion, measures, scores, judge.WEIGHTS, synthetic)
"""The code and weights that determine the measures of a video. If they change, videos are measured again."""


@dataclass(frozen=True)
class Cell:
    """Some clips of one setting at one length, and their files."""

    folder: Path
    times: int
    setting: str
    first: int

    @property
    def path(self) -> Path:
        """Path of the videos; the measures are in a .json file beside it."""
        return self.folder / f"{self.times}x" / self.setting.replace(" ", "-") / f"{self.first:03}.safetensors"

    @property
    def latent_frames(self) -> int:
        """Length of the videos, in latent frames."""
        return long_frames(self.times)

    @property
    def indices(self) -> range:
        """Numbers of the clips."""
        return range(self.first, self.first + CHUNK)

    @property
    def prompts(self) -> list[str]:
        """One prompt per clip; after sixty clips they repeat."""
        order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(FIRST_SEED)).tolist()
        return [PROMPTS[order[index % len(PROMPTS)]] for index in self.indices]

    def true_clips(self, seed: int = FIRST_SEED) -> Tensor:
        """True clips of these prompts, (clips, 3, latent_frames, height, width)."""
        generator = torch.Generator().manual_seed(seed + self.first)
        return clips(self.prompts, self.latent_frames, generator)

    def video(self) -> Tensor:
        """The saved videos, with the shape of `true_clips`."""
        return load_file(self.path)["video"].float() / 255


def cells(folder: Path, size: Size) -> list[Cell]:
    """All cells by part; the first clips of all settings come before further clips of any."""
    every = [
        Cell(folder, part.times, name, first)
        for part in size.parts
        for first in range(0, part.clips, CHUNK)
        for name in (TRUE, *part.names)
        if name in (TRUE, *size.settings)
    ]
    return list(dict.fromkeys(every))


def run(folder: Path, size: Size, workers: int = 1) -> list[dict[str, Any]]:
    """Sample and measure what is not saved yet; return a row of measures per clip.

    Args:
        folder: folder of the results.
        size: how much to measure.
        workers: processes; two or more have one thread each.

    Raises:
        FreelocError: if the folder holds a bench of other weights or settings.
    """
    _require_same(folder, size)
    every = cells(folder, size)
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
    path, measured_by = cell.path.with_suffix(".json"), _digest(*MEASURED_BY)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found.get("measured by") != measured_by:
        found = {"measured by": measured_by, "rows": _scored(cell, size)}
        _write(path, json.dumps(found))
    rows: list[dict[str, Any]] = found["rows"]
    return rows


_pipeline = functools.cache(load_pipeline)


@functools.cache
def _digest(*modules: ModuleType | Path) -> str:
    """Digest of the source files of modules, and of other files."""
    paths = [module if isinstance(module, Path) else Path(str(module.__file__)) for module in modules]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _make(cell: Cell, size: Size) -> Tensor:
    """The videos of a cell, (clips, 3, latent_frames, height, width)."""
    if cell.setting == TRUE:
        return cell.true_clips()
    setting = size.settings[cell.setting]
    initial = noise((FIRST_SEED + index for index in cell.indices), cell.latent_frames)
    if setting.noise:
        initial = setting.noise(initial, TRAINED_FRAMES, torch.Generator().manual_seed(FIRST_SEED + cell.first))
    with freeloc.patch(_pipeline(), setting.profile, method=setting.method, noise_prepared=True):
        return sample(_pipeline(), cell.prompts, initial, size.steps, size.guidance)


def _save(cell: Cell, video: Tensor) -> None:
    """Write the videos of a cell atomically."""
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(cell.path) as part:
        save_file({"video": (video * 255).round().byte().contiguous()}, part)


def _scored(cell: Cell, size: Size) -> list[dict[str, Any]]:
    """Rows of measures of the clips of a cell."""
    rows: list[dict[str, Any]] = [
        {"times": cell.times, "setting": cell.setting, "clip": index, "prompt": prompt} | scores.of_clip(video, prompt)
        for index, prompt, video in zip(cell.indices, cell.prompts, cell.video(), strict=True)
    ]
    if cell.setting == TRUE:
        return rows
    if cell.first >= LOSS_CLIPS:
        return rows
    setting, generator = size.settings[cell.setting], torch.Generator().manual_seed(FIRST_SEED + cell.first)
    transformer, clean = _pipeline().transformer, to_latents(cell.true_clips(seed=1))
    with freeloc.patch(transformer, setting.profile, method=setting.method, noise_prepared=True):
        losses = scores.denoising_loss(transformer, clean, cell.prompts, generator)
    return [row | {"denoising loss": loss} for row, loss in zip(rows, losses.tolist(), strict=True)]


def _require_same(folder: Path, size: Size) -> None:
    """Refuse to mix videos of different weights, datasets, steps or plans in one folder."""
    requested = {name for part in size.parts for name in part.names}
    used = {name: setting.fingerprint for name, setting in size.settings.items() if name in requested}
    expected: dict[str, Any] = {"weights": _digest(WEIGHTS), "dataset": _digest(synthetic), "steps": size.steps}
    expected |= {"guidance": size.guidance}
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
