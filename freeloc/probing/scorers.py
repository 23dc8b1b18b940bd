"""What judges probe videos: the measures that need no weights, and larger judges where they are installed."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.metrics import MEASURES
from freeloc.probing.judges import FAMILIES, judge
from freeloc.registry import hookimpl, registry
from freeloc.scorer import Scorer

DEFECTS = ("flicker", "frozen share", "loop strength", "drift")
"""Measures of which less is better."""


def _measured(measure: Callable[[Tensor], float], video: Tensor, prompt: str) -> float:
    return measure(video)


@hookimpl
def freeloc_scorers() -> list[Scorer]:
    """The measures of one video."""
    return [
        Scorer(name, partial(_measured, measure), name not in DEFECTS, source="freeloc.metrics, no weights")
        for name, measure in MEASURES.items()
    ]


def find_scorer(scorer: str | Scorer) -> Scorer:
    """A scorer by its name.

    >>> find_scorer("drift").higher_is_better
    False

    Raises:
        RegistryError: if none has that name (near names are suggested).
        ProbeError: if it is a judge with weights of its own that cannot be had: see `freeloc.probing.judges`.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if not isinstance(scorer, str):
        raise ProbeError(f"expected a scorer's name or a Scorer, found {scorer!r}")
    if scorer not in registry().scorers.owners and (":" in scorer or scorer in FAMILIES):
        return judge(scorer)
    return registry().scorers.get(scorer, way_out="; or give a freeloc.Scorer(name, function)")
