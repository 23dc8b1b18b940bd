"""Scorer: a named judge of videos."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scorer:
    """A named judge of videos. Plugins bring more of them.

    >>> from freeloc.metrics import sharpness
    >>> scorer = Scorer("sharpness", lambda video, prompt: sharpness(video), source="energy of the Laplacian")

    Args:
        name: for ``Video(scorers=[name])``.
        score: (video of shape (frames, height, width, 3) in 0..1, prompt) -> number.
        higher_is_better: false for measures of a defect.
        source: publication, or what it does in a few words.
    """

    name: str
    score: Callable[[Tensor, str], float]
    higher_is_better: bool = True
    source: str = ""
