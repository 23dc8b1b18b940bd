"""Scorers with weights of their own, called judges. Their names have two parts: ``clip:openai/clip-vit-base-patch32``.

A judge is loaded when the probe starts, so that a missing package is an error before hours of generation.
"""

import difflib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.metrics.scorers import Scorer
from freeloc.metrics.video import write_video

CLIP_FRAMES = 16
"""Largest number of frames that are given to CLIP, evenly spaced over the video."""

VBENCH_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""The dimensions of VBench that apply to any video."""

VBENCH_PYTHON = "FREELOC_VBENCH_PYTHON"
"""Environment variable with the path of the Python that has vbench, if it is not this one."""

_VBENCH = """
import json, sys, torch
from vbench import VBench
video, dimension, prompt, folder = sys.argv[1:]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
bench = VBench(device, "", folder)
bench.evaluate(video, "freeloc", prompt_list=[prompt], dimension_list=[dimension], mode="custom_input")
"""


@functools.lru_cache(maxsize=8)
def judge(name: str) -> Scorer:
    """The judge with this name of two parts.

    >>> judge("clips:some/model")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    freeloc.errors.ProbeError: no judge is named 'clips:some/model'; did you mean clip? known: clip:MODEL, ...

    Raises:
        ProbeError: if there is none, or a package or model that it requires is missing.
    """
    family, _, argument = name.partition(":")
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(f"{other}:{argument}" for other, (_, argument, _) in FAMILIES.items())
        raise ProbeError(f"no judge is named '{name:.100}'; {hint}known: {known}")
    make, expected, _ = FAMILIES[family]
    if not argument:
        raise ProbeError(f"expected '{family}:{expected}', found '{name}'")
    return make(argument)


def clip(model: str) -> Scorer:
    """How well the frames match the prompt: mean cosine of CLIP's image and text embeddings, -1 to 1.

    Source: CLIPScore, arXiv 2104.08718, without its factor of 2.5. Requires transformers.

    Args:
        model: a Hugging Face repository or a folder.
    """
    embed = _clip(model)

    def score(video: Tensor, prompt: str) -> float:
        images, text = embed(video, prompt)
        return float((images @ text).mean())

    return Scorer(f"clip:{model}", score, source="CLIPScore, arXiv 2104.08718: how well frames match the prompt")


def clip_frames(model: str) -> Scorer:
    """How similar frames are: mean cosine of each frame's CLIP embedding with the first and with the previous frame's.

    Source: background consistency of VBench, arXiv 2311.17982. Requires transformers.

    Args:
        model: a Hugging Face repository or a folder.
    """
    embed = _clip(model)

    def score(video: Tensor, prompt: str) -> float:
        images, _ = embed(video, prompt)
        if len(images) < 2:
            raise ProbeError(f"expected a video of at least 2 frames to compare, found {len(images)}")
        first, before = images[1:] @ images[0], (images[1:] * images[:-1]).sum(dim=-1)
        return float((first + before).mean() / 2)

    return Scorer(f"clip-frames:{model}", score, source="VBench, arXiv 2311.17982: how similar frames are")


@functools.lru_cache(maxsize=1)
def _clip(model: str) -> Callable[[Tensor, str], tuple[Tensor, Tensor]]:
    """(video, prompt) -> embeddings of length 1, (frames, channels) and (channels,)."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise ProbeError(f"'clip:{model}' requires transformers ({error}): pip install transformers") from error
    try:
        network: Any = CLIPModel.from_pretrained(model)  # in evaluation mode
        processor: Any = CLIPProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ProbeError(f"cannot load the CLIP model {model}: {' '.join(str(error).split())[:300]}") from error
    if torch.cuda.is_available():
        network.cuda()

    def embed(video: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        chosen = torch.linspace(0, len(video) - 1, min(CLIP_FRAMES, len(video))).round().long()
        images = list((video[chosen].clamp(0, 1) * 255).round().byte().movedim(-1, 1).cpu())
        given = processor(text=[prompt], images=images, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            found = network(**given.to(network.device))
        return found.image_embeds.cpu(), found.text_embeds[0].cpu()

    return embed


def vbench(dimension: str) -> Scorer:
    """A dimension of VBench, arXiv 2311.17982, computed by the package vbench.

    vbench requires old versions of other packages. Therefore it may be installed in another environment; then set the
    environment variable FREELOC_VBENCH_PYTHON to the Python there. vbench loads its weights again for each video.

    Args:
        dimension: one of `VBENCH_DIMENSIONS`.
    """
    if dimension not in VBENCH_DIMENSIONS:
        near = difflib.get_close_matches(dimension, VBENCH_DIMENSIONS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ProbeError(f"VBench has no dimension '{dimension}' for any video; {hint}{', '.join(VBENCH_DIMENSIONS)}")
    _run_vbench("import vbench")
    return Scorer(f"vbench:{dimension}", functools.partial(_vbench_score, dimension), source="VBench, arXiv 2311.17982")


def _vbench_score(dimension: str, video: Tensor, prompt: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, video)
        _run_vbench(_VBENCH, str(path), dimension, prompt, folder)
        found: Any = json.loads((Path(folder) / "freeloc_eval_results.json").read_text(encoding="utf-8"))
    return float(found[dimension][0])


def _run_vbench(script: str, *arguments: str) -> None:
    python = os.environ.get(VBENCH_PYTHON, sys.executable)
    try:
        done = subprocess.run([python, "-c", script, *arguments], capture_output=True, text=True, check=False)
        problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it stopped"])[-1]
    except OSError as error:
        problem = str(error)
    if problem:
        raise ProbeError(
            f"cannot use VBench with {python}: {problem[:300]}. In a separate environment: pip install vbench, then "
            f"set {VBENCH_PYTHON} to the Python there"
        )


FAMILIES: dict[str, tuple[Callable[[str], Scorer], str, str]] = {
    "clip": (clip, "MODEL", "how well frames match the prompt: requires transformers"),
    "clip-frames": (clip_frames, "MODEL", "how similar frames are: requires transformers"),
    "vbench": (vbench, "DIMENSION", "VBench: requires vbench, possibly in a separate environment"),
}
"""Judges by the first part of their name: how to make one, what the second part is, and what it measures."""
