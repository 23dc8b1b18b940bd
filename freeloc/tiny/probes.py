"""Probes the tiny model at every depth, and compares them: ``python -m freeloc.tiny.probes``.

Prompts, noise and clips differ from those of the bench. The expensive reference is `freeloc bench --layers`: whole
videos with another policy on one layer.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from freeloc.metrics.scorers import Scorer
from freeloc.probing import Depth, Local, Loss, Output, Sensitivity, Video, probe
from freeloc.tiny.measures import identity, pan_accuracy
from freeloc.tiny.model import load_pipeline, long_frames, noise, sample
from freeloc.tiny.synthetic import PROMPTS, clips, to_latents

SEED = 600_000
"""Random seed of noise and clips."""


def judged(measure: Callable[[Tensor, str], float]) -> Callable[[Tensor, str], float]:
    """A measure of the synthetic dataset as a scorer's function."""
    return lambda video, prompt: measure(video.movedim(-1, 0), prompt)


def depths(count: int, times: int) -> dict[str, tuple[Depth, list[str]]]:
    """Every depth by name, with its prompts: `count` clips for ``loss``, and fewer runs for the others.

    The additional entry ``heads`` is the depth ``loss`` for each head.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = [PROMPTS[index] for index in torch.randperm(len(PROMPTS), generator=generator)]
    latents = to_latents(clips(order[:count], long_frames(times), generator))
    scorers: list[Scorer | str] = [
        Scorer("identity", judged(identity)),
        Scorer("land as prompted", judged(pan_accuracy)),
        "sharpness",
    ]
    return {
        "local": (Local(), order[:3]),
        "output": (Output(steps=(0, 3, 6, 9)), order[:2]),
        "loss": (Loss(list(latents)), order[:count]),
        "heads": (Loss(list(latents), levels=(0.5, 0.85), heads=True), order[:count]),
        "video": (Video(scorers), order[:6]),
    }


def measure(name: str, count: int, times: int, folder: Path) -> Sensitivity:
    """Measure one depth. What is already in the folder is not measured again."""
    pipeline = load_pipeline()
    frames = long_frames(times)

    def run(prompt: str) -> Tensor:
        return sample(pipeline, [prompt], noise([SEED + PROMPTS.index(prompt)], frames))[0].movedim(0, -1)

    depth, prompts = depths(count, times)[name]
    own = folder if name == depth.name else folder / name
    return probe(pipeline, run, depth, prompts=prompts, profile="tiny-wan", folder=own)


def main() -> None:
    """Measure, and write one file per depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("depths", nargs="*", default=["local", "output", "loss", "video"])
    parser.add_argument("--clips", type=int, default=12, help="for loss and heads")
    parser.add_argument("--times", type=int, default=4, help="length, in trained lengths")
    parser.add_argument("--folder", type=Path, default=Path("freeloc-probes"), help="folder to write to")
    arguments = parser.parse_args()
    for name in arguments.depths:
        found = measure(name, arguments.clips, arguments.times, arguments.folder)
        found.save(arguments.folder / f"{name}.safetensors")
        print(found)


if __name__ == "__main__":
    main()
