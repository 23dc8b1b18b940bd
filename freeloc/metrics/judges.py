"""Judges of probe videos that need weights of their own, by names of two parts: ``clip:openai/clip-vit-base-patch32``.

They are looked for when the probe starts, not after hours of generating.
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
"""Frames of a video that CLIP sees, at most: evenly spaced."""

VBENCH_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""Those of VBench that judge any video."""

VBENCH_PYTHON = "FREELOC_VBENCH_PYTHON"
"""Environment variable: the Python that has vbench, where it is another than this one."""

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
    """The judge that a name of two parts means.

    >>> judge("clips:some/model")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    freeloc.errors.ProbeError: no judge is named 'clips:some/model'; did you mean clip? known: clip:MODEL, ...

    Raises:
        ProbeError: if there is none, or what it needs cannot be had.
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
    """How well the frames show the prompt: mean cosine of CLIP's image and text embeddings, -1 to 1.

    Source: CLIPScore, arXiv 2104.08718, without its factor of 2.5. Needs transformers.

    Args:
        model: a repository or a folder.
    """
    embed = _clip(model)

    def score(video: Tensor, prompt: str) -> float:
        images, text = embed(video, prompt)
        return float((images @ text).mean())

    return Scorer(f"clip:{model}", score, source="CLIPScore, arXiv 2104.08718: how well frames show the prompt")


def clip_frames(model: str) -> Scorer:
    """How alike the frames are: mean of each one's cosine with the first and with the one before, by CLIP's embeddings.

    Source: background consistency of VBench, arXiv 2311.17982. Needs transformers.

    Args:
        model: a repository or a folder.
    """
    embed = _clip(model)

    def score(video: Tensor, prompt: str) -> float:
        images, _ = embed(video, prompt)
        if len(images) < 2:
            raise ProbeError(f"expected a video of at least 2 frames to compare, found {len(images)}")
        first, before = images[1:] @ images[0], (images[1:] * images[:-1]).sum(dim=-1)
        return float((first + before).mean() / 2)

    return Scorer(f"clip-frames:{model}", score, source="VBench, arXiv 2311.17982: how alike frames are")


@functools.lru_cache(maxsize=1)
def _clip(model: str) -> Callable[[Tensor, str], tuple[Tensor, Tensor]]:
    """(video, prompt) -> embeddings of length 1, (frames, channels) and (channels,)."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise ProbeError(f"'clip:{model}' needs transformers ({error}): pip install transformers") from error
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
    """A dimension of VBench, arXiv 2311.17982, by its own package.

    That package is pinned to old versions of others, so it may live in another environment: the environment variable
    FREELOC_VBENCH_PYTHON says which Python has it. It loads its weights itself, for each video anew.

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
            f"cannot use VBench with {python}: {problem[:300]}. In an environment of its own: pip install vbench, then "
            f"set {VBENCH_PYTHON} to the Python there"
        )


FAMILIES: dict[str, tuple[Callable[[str], Scorer], str, str]] = {
    "clip": (clip, "MODEL", "how well frames show the prompt: needs transformers"),
    "clip-frames": (clip_frames, "MODEL", "how alike frames are: needs transformers"),
    "vbench": (vbench, "DIMENSION", "VBench: needs vbench, perhaps in an environment of its own"),
}
"""Judges by the first part of their name: how to make one, what the second part is, what it is good for."""
