"""The measurements of a tuning as tables, in the form of a probe's."""

import math
from collections.abc import Sequence

import torch

from freeloc.probing.table import Label, Table
from freeloc.tuning.candidates import Assignment, uniform, with_layer
from freeloc.tuning.losses import Losses
from freeloc.tuning.racing import Unit
from freeloc.tuning.samples import MEASURES
from freeloc.tuning.session import Session

BOTH = ("whole", "places")
"""The two losses of a unit: see `freeloc.tuning.losses.Loss`."""


def tables_of(session: Session) -> dict[str, Table]:
    """All tables, NaN where nothing was measured:

    - ``tune.all layers`` (policies, losses, lengths, levels, clips): losses of candidates on all layers,
    - ``tune.one layer`` (policies, layers, losses, lengths, levels, clips): with another policy on one layer; the first
      policy is that of all other layers,
    - ``tune.other clips`` (settings, losses, lengths, levels, clips): the check,
    - ``tune.videos`` (settings, measures, prompts): measures of sampled videos,
    - ``tune.choice`` (layers, policies): 1 for the policy of a layer.
    """
    search, layers = session.search, session.runner.profile.model.layers
    losses, base = search.losses, search.base
    clips = sorted({unit.clip for unit in search.units})
    everywhere = {one.name: uniform(one, layers) for one in search.candidates}
    names = list(dict.fromkeys([base, *search.tried]))
    single = {one.name: [with_layer(uniform(base, layers), layer, one) for layer in range(layers)] for one in names}
    by_layer = [_losses(losses, list(of_layers), session, clips) for of_layers in single.values()]
    other = sorted({unit.clip for one in session.held_out for unit in losses.of(one.assignment)} - set(clips))
    settings = {one.name: one.assignment for one in session.held_out}
    tables = {
        "tune.all layers": Table(
            _losses(losses, list(everywhere.values()), session, clips),
            _axes(session, clips, policies=[*everywhere]),
        ),
        "tune.one layer": Table(
            torch.stack(by_layer), _axes(session, clips, policies=[*single], layers=[*range(layers)])
        ),
        "tune.other clips": Table(
            _losses(losses, list(settings.values()), session, other), _axes(session, other, settings=[*settings])
        ),
        "tune.choice": _choice(session.chosen),
    }
    measured = session.shipping.measured
    if measured:
        prompts: list[Label] = [f"{index:03}" for index in range(len(next(iter(measured.values()))))]
        values = torch.stack([of_setting.T for of_setting in measured.values()])  # (settings, measures, prompts)
        axes: dict[str, list[Label]] = {"settings": [*measured], "measures": [*MEASURES], "prompts": prompts}
        tables["tune.videos"] = Table(values, axes)
    return tables


def _axes(session: Session, clips: Sequence[int], **first: list[Label]) -> dict[str, list[Label]]:
    return first | {
        "losses": [*BOTH],
        "lengths": [*session.frames],
        "levels": [*session.levels],
        "clips": [f"{clip:03}" for clip in clips],
    }


def _losses(losses: Losses, assignments: Sequence[Assignment], session: Session, clips: Sequence[int]) -> torch.Tensor:
    """(assignments, losses, lengths, levels, clips), NaN where nothing was measured."""
    sizes = len(assignments), len(BOTH), len(session.frames), len(session.levels), len(clips)
    values = torch.full(sizes, math.nan, dtype=torch.float64)
    for place, assignment in enumerate(assignments):
        known = losses.of(assignment)
        for length, frames in enumerate(session.frames):
            for of_level, level in enumerate(session.levels):
                for of_clip, clip in enumerate(clips):
                    loss = known.get(Unit(clip, frames, level))
                    if loss is not None:
                        values[place, :, length, of_level, of_clip] = torch.tensor(loss, dtype=torch.float64)
    return values


def _choice(chosen: Assignment) -> Table:
    names = list(dict.fromkeys(one.name for one in chosen))
    values = torch.tensor([[float(one.name == name) for name in names] for one in chosen], dtype=torch.float64)
    return Table(values, {"layers": [*range(len(chosen))], "policies": [*names]})
