"""Scorers by name: registered ones, and judges with weights of their own."""

from freeloc.errors import ProbeError
from freeloc.metrics.judges import FAMILIES, judge
from freeloc.metrics.scorers import Scorer
from freeloc.registry import registry


def find_scorer(scorer: str | Scorer) -> Scorer:
    """A scorer by its name.

    >>> find_scorer("drift").higher_is_better
    False

    Raises:
        RegistryError: if none has that name (the message suggests similar names).
        ProbeError: if it is a judge that cannot be loaded: see `freeloc.metrics.judges`.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if not isinstance(scorer, str):
        raise ProbeError(f"expected a scorer's name or a Scorer, found {scorer!r}")
    if scorer not in registry().scorers.owners and (":" in scorer or scorer in FAMILIES):
        return judge(scorer)
    return registry().scorers.get(scorer, way_out="; or give a freeloc.metrics.Scorer(name, function)")
