"""``freeloc demo``: the tiny model at four times its trained length, with direct sampling and with freeloc."""

import time
from pathlib import Path

import torch
from torch import Tensor

import freeloc
from freeloc.registry import registry
from freeloc.tiny.measures import MEASURES
from freeloc.tiny.model import TRAINED_FRAMES, load_pipeline, long_frames, noise, sample
from freeloc.tiny.pictures import contact_sheet, side_by_side
from freeloc.tiny.synthetic import clips

PROMPTS = ("yellow disc fast", "cyan ring slow")
SHOWN = ("identity", "land as prompted", "sharpness", "drift")
"""Measures in the printed table."""


def measures_table(videos: dict[str, Tensor], prompts: list[str]) -> str:
    """A table of measures, with a column for each set of videos. Prompts repeat if there are more clips."""
    lines = [f"{'':20}" + "".join(f"{name:>16}" for name in videos)]
    for title in SHOWN:
        means = []
        for several in videos.values():
            values = [MEASURES[title](video, prompts[i % len(prompts)]) for i, video in enumerate(several)]
            means.append(sum(values) / len(values))
        lines.append(f"{title:20}" + "".join(f"{mean:16.3f}" for mean in means))
    return "\n".join(lines)


def run(folder: Path, times: int = 4, seed: int = 0, steps: int = 12, method: str | None = None) -> None:
    """Generate videos, write ``side-by-side.gif`` and ``contact-sheet.png`` to `folder`, and print a report."""
    chosen = registry().methods.get(method) if method else None
    folder.mkdir(parents=True, exist_ok=True)
    prompts, length = list(PROMPTS), long_frames(times)
    pipeline = load_pipeline()
    print(f"A tiny Wan, trained on clips of {TRAINED_FRAMES} latent frames, makes videos of {length}:")
    print(", ".join(prompts))
    seeds = range(seed, seed + len(prompts))
    videos = {"true clips": clips(prompts * 8, length, torch.Generator().manual_seed(seed))}
    videos["1x"] = sample(pipeline, prompts, noise(seeds, TRAINED_FRAMES), steps, title="1x")
    started = time.perf_counter()
    videos[f"{times}x direct"] = sample(pipeline, prompts, noise(seeds, length), steps, title=f"{times}x direct")
    switched = time.perf_counter()
    corrected = f"{times}x {method or 'freeloc'}"
    initial = noise(seeds, length)
    if chosen and chosen.noise:
        initial = chosen.noise(initial, TRAINED_FRAMES, torch.Generator().manual_seed(seed))
    with freeloc.patch(pipeline, profile="tiny-wan", method=chosen, noise_prepared=True) as patch:
        videos[corrected] = sample(pipeline, prompts, initial, steps, title=corrected)
    finished = time.perf_counter()
    print(f"\n{patch.report()}\n")
    print(measures_table(videos, prompts))
    print(f"\nseconds: {switched - started:.1f} direct, {finished - switched:.1f} with freeloc")
    videos.pop("true clips")
    contact_sheet(videos, folder / "contact-sheet.png")
    videos.pop("1x")
    side_by_side(videos, folder / "side-by-side.gif")
    print(f"written: {folder / 'side-by-side.gif'}, {folder / 'contact-sheet.png'}")
