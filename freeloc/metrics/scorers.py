"""Scorer: a named function that scores a video. Scorers with weights of their own are in `freeloc.metrics.judges`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from freeloc.markers import hookimpl
from freeloc.metrics.measures import MEASURES

DEFECTS = ("flicker", "frozen share", "loop strength", "drift")
"""Measures for which lower is better."""


@dataclass(frozen=True)
class Scorer:
    """A named function that scores a video. Plugins can register more scorers.

    >>> from freeloc.metrics.measures import sharpness
    >>> scorer = Scorer("sharpness", lambda video, prompt: sharpness(video), source="energy of the Laplacian")

    Args:
        name: for ``Video(scorers=[name])``.
        score: (video of shape (frames, height, width, 3) in 0..1, prompt) -> number.
        higher_is_better: False for measures of a defect.
        source: publication, or what it does in a few words.
    """

    name: str
    score: Callable[[Tensor, str], float]
    higher_is_better: bool = True
    source: str = ""


def _measured(measure: Callable[[Tensor], float], video: Tensor, prompt: str) -> float:
    return measure(video)


@hookimpl
def freeloc_scorers() -> list[Scorer]:
    """The measures of one video, as scorers."""
    return [
        Scorer(name, partial(_measured, measure), name not in DEFECTS, source="freeloc.metrics, no weights")
        for name, measure in MEASURES.items()
    ]
