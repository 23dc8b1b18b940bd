"""Depth ``tune``: reads the measurements of a tuning, so that ``freeloc profiles`` can show and draw them."""

from typing import ClassVar

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.markers import hookimpl
from freeloc.probing.depths.base import Depth, per_head
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject
from freeloc.probing.table import Table


class Tune(Depth):
    """The search of ``freeloc tune``: policies of single layers, by denoising loss. Only that command measures it."""

    name: ClassVar[str] = "tune"
    rank: ClassVar[int] = 5
    samples: ClassVar[str] = "clips"
    by_heads: ClassVar[bool] = False

    def measure(self, subject: Subject) -> dict[str, Table]:
        """Refused: a tuning is a search with a budget, and has a command of its own.

        Raises:
            ProbeError: always.
        """
        raise ProbeError("expected a depth that probes, found 'tune': run freeloc tune, or freeloc.tune(...)")

    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """How much the loss on whole frames falls with each policy on one layer: `Summary.more`."""
        if heads:
            raise ProbeError("expected heads=False with depth tune, which changes whole layers")
        table = measured.table("tune.one layer").at(losses="whole")
        base, *others = table.labels("policies")
        rest = table.at(policies=base).values
        nothing = torch.full((rest.shape[0],), torch.nan, dtype=torch.float64)
        gains = {str(name): _gain(rest - table.at(policies=name).values) for name in others}
        known = {name: gain for name, gain in gains.items() if gain[0].isfinite().any()}
        return Summary(nothing, nothing, nothing, nothing, known)

    def choose(self, measured: Measurements, rule: Rule, heads: bool = False) -> list[list[str]]:
        """The policies that the tuning chose."""
        table = measured.table("tune.choice")
        names = table.labels("policies")
        return per_head([str(names[int(row.argmax())]) for row in table.values], measured, heads=False)


def _gain(apart: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over clips of (layers, lengths, levels, clips), (layers,), of what was measured."""
    by_clip = apart.nanmean(dim=(1, 2))
    count = by_clip.isfinite().sum(dim=1)
    mean = by_clip.nanmean(dim=1)
    variance = (by_clip - mean[:, None]).square().nansum(dim=1) / (count - 1).clamp(min=1)
    error = (variance / count.clamp(min=1)).sqrt()
    return mean, torch.where(count > 1, error, torch.zeros_like(error))


@hookimpl
def freeloc_depths() -> list[Depth]:
    """The depth that reads tunings."""
    return [Tune()]
