"""Depth ``loss``: the denoising loss on real long clips, with one layer at a time treated differently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.plans.frame_plan import FramePlan
from freeloc.probing.calls import TIMES, UNTIL, Call
from freeloc.probing.cells import Cell
from freeloc.probing.denoising import Objective, flow, objective_of
from freeloc.probing.subject import Subject, one_layer
from freeloc.probing.table import Label, Table
from freeloc.profile.planning import policy_plan
from freeloc.profile.schema import POLICIES, Policy

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)

COMPARED: tuple[tuple[Policy, Policy], ...] = (
    *(("none", policy) for policy in POLICIES if policy != "none"),
    *(("vrpr", policy) for policy in POLICIES if policy != "vrpr"),
    ("tsa", "none"),
    ("vrpr+tsa", "none"),
)
"""(what all layers get, what one gets instead): only this layer corrected; all but this; on top of VRPR, each other."""

WITHOUT_ROPE: tuple[tuple[Policy, Policy], ...] = (("none", "tsa"),)
"""For a model whose positions cannot be changed: only this layer corrected."""


class _Place(NamedTuple):
    """A cell: what all layers get, what one of them or one head of it gets instead, on which clip."""

    clip: int
    rest: Policy
    changed: Policy
    layer: int
    head: int | None


@dataclass(frozen=True)
class Loss:
    """Measures the denoising loss on real long clips under plans that treat one layer differently. Nothing is sampled.

    The first call of a run shows how the transformer is called; it is repeated with each clip, at each noise level, in
    place of the run's own latents. Every plan sees the same noise, so that plans are compared clip by clip.

    Table: ``loss.value`` (rest, policies, layers, levels, clips): all layers have the policy on the axis ``rest``, but
    one has that on the axis ``policies``; where both are the same, no layer differs. NaN where nothing was measured.
    With heads ``loss.head value`` (rest, policies, layers, heads, levels, clips) too.

    Args:
        clips: latents of real videos longer than the trained length, as the transformer takes one sample of them,
            without the batch: see `encode`.
        levels: of noise, 0 clean to 1 noise.
        compared: (rest, policy) pairs to measure; by default all that a choice of layers needs (`COMPARED`), of a model
            without RoPE those of ``none`` and ``tsa``.
        heads: change one head of a layer at a time, too.
        objective: what the model predicts; by default what the pipeline's scheduler stands for, else rectified flow:
            then a run whose first call is told another time than that of noise is refused.
        argument: name of the transformer's argument that holds the noisy video; by default as the adapter says.
    """

    name: ClassVar[str] = "loss"

    clips: Sequence[Tensor] | Tensor
    levels: Sequence[float] = LEVELS
    compared: Sequence[tuple[Policy, Policy]] | None = None
    heads: bool = False
    objective: Objective | None = None
    argument: str | None = None

    def __post_init__(self) -> None:
        if len(self.clips) < 2:
            raise ProbeError(f"expected at least 2 clips, for a standard error, found {len(self.clips)}")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ProbeError(f"expected noise levels above 0 and up to 1, found {list(self.levels)}")
        for pair in self.compared or ():
            if pair[0] == pair[1] or not set(pair) <= set(POLICIES):
                raise ProbeError(f"expected pairs of two of {', '.join(POLICIES)}, found {pair}")

    def settings(self, subject: Subject) -> dict[str, Any]:
        """What the numbers depend on."""
        sums = [float(clip.double().abs().sum()) for clip in self.clips]
        found = {"levels": list(self.levels), "clips": [f"{value:.9g}" for value in sums]}
        # What is usual is left out: so folders that were begun before these were noted go on.
        objective = self._objective(subject).numbers(self.levels)
        if objective != flow().numbers(self.levels):
            found["objective"] = objective
        if self.argument is not None:
            found["argument"] = self.argument
        return found

    def measure(self, subject: Subject) -> dict[str, Table]:
        """See `Loss`."""
        if len(subject.prompts) not in (0, 1, len(self.clips)):
            raise ProbeError(
                f"expected no prompt, one, or one for each of {len(self.clips)} clips, found {len(subject.prompts)}"
            )
        shape = subject.shape
        heads: list[int | None] = [None, *range(shape.heads)] if self.heads else [None]
        compared = self.compared or (COMPARED if subject.turns else WITHOUT_ROPE)
        uniform = dict.fromkeys(policy for pair in compared for policy in pair[:1])
        places = [
            _Place(clip, rest, changed, layer, head)
            for clip in range(len(self.clips))
            for rest, changed in [*((policy, policy) for policy in uniform), *compared]
            for layer in (range(shape.layers) if rest != changed else [0])
            for head in (heads if rest != changed else [None])
        ]
        call = lru_cache(maxsize=1)(partial(self._first_call, subject))
        by_name = {_name(place): place for place in places}
        cells = subject.measure(list(by_name), lambda name: self._loss(subject, call, by_name[name]), "loss")
        sizes = len(POLICIES), len(POLICIES), shape.layers, len(heads), len(self.levels), len(self.clips)
        values = torch.full(sizes, torch.nan, dtype=torch.float64)
        for name, (clip, rest, changed, layer, head) in by_name.items():
            pair = POLICIES.index(rest), POLICIES.index(changed)
            of_pair = values[pair][..., clip]  # (layers, heads, levels)
            where = 0 if head is None else 1 + head  # the layer whole, then its heads
            (of_pair if rest == changed else of_pair[layer, where])[:] = cells[name]["loss"]
        axes: dict[str, list[Label]] = {"rest": [*POLICIES], "policies": [*POLICIES]}
        axes |= {"layers": [*range(shape.layers)], "heads": [*range(shape.heads)], "levels": [*self.levels]}
        axes |= {"clips": [f"{clip:03}" for clip in range(len(self.clips))]}
        by_head = {"loss.head value": Table(values[:, :, :, 1:], axes)} if self.heads else {}
        of_layers = {name: labels for name, labels in axes.items() if name != "heads"}
        return {"loss.value": Table(values[:, :, :, 0], of_layers)} | by_head

    def _objective(self, subject: Subject) -> Objective:
        return self.objective or objective_of(subject.pipeline)

    def _first_call(self, subject: Subject, prompt: int) -> Call:
        """How the run calls the transformer when it begins, from noise."""
        call = next(iter(subject.first_calls(prompt, [0]).values()))
        if self.objective is None:  # who gives one knows the model's times
            _require_noise(call, objective_of(subject.pipeline))
        return call

    def _loss(self, subject: Subject, call: Any, place: _Place) -> Cell:
        """One plan on one clip, at every level."""
        plans = {policy: partial(_plan, subject, policy) for policy in (place.rest, place.changed)}
        plan = one_layer(place.layer, plans[place.changed], plans[place.rest], place.head, subject.shape.heads)
        observed = call(place.clip if len(subject.prompts) > 1 else 0)
        with subject.under(plan):
            losses = [self._at(subject, observed, place.clip, level) for level in self.levels]
        return {"loss": torch.tensor(losses, dtype=torch.float64)}

    def _at(self, subject: Subject, call: Call, clip: int, level: float) -> float:
        """Mean squared error of the prediction at one level, mean over the batch that the run calls the model with."""
        objective, grid = self._objective(subject), subject.found[0][1].grid
        name = self.argument or (grid.argument if isinstance(grid.argument, str) else "hidden_states")
        axes = grid.axes.split()
        channels = axes.index("c") if "c" in axes else 1
        clean = self.clips[clip][None].float()
        generator = torch.Generator().manual_seed(subject.seed + 1_000_003 * clip + round(1000 * level))
        noise = torch.randn(clean.shape, generator=generator)
        video = _in_place_of(call.arguments.get(name), objective.noisy(clean, noise, level), channels, name)
        given = {key: value for key in (*TIMES, *UNTIL) if (value := call.arguments.get(key)) is not None}
        times = {key: _filled(value, objective.timestep(level)) for key, value in given.items()}
        found = call.run(**({name: video} | times)).float().cpu()
        target = objective.target(clean, noise, level)
        # A model may predict its variance too, in channels of its own.
        found = found.narrow(channels, 0, min(target.shape[channels], found.shape[channels]))
        if found.shape[1:] != target.shape[1:]:
            raise ProbeError(f"expected the model to return {tuple(target.shape[1:])}, found {tuple(found.shape[1:])}")
        loss = float((found - target).square().mean())
        if not math.isfinite(loss):
            raise ProbeError(f"expected the model to return numbers, found {loss} at noise level {level}, clip {clip}")
        return loss


def _plan(subject: Subject, policy: Policy, frames: int) -> FramePlan:
    return policy_plan(subject.profile, policy, frames)


def _require_noise(call: Call, objective: Objective) -> None:
    """Refuse a run whose first call has a time of another scale or direction than the objective's."""
    clean, noise = objective.timestep(0.0), objective.timestep(1.0)
    for name in TIMES:
        if call.arguments.get(name) is None:
            continue
        told = torch.as_tensor(call.arguments[name], dtype=torch.float64).flatten()
        nearest = float(told[(told - noise).abs().argmin()])
        if abs(nearest - noise) > 0.9 * abs(clean - noise):
            raise ProbeError(
                f"expected the run to begin with noise, at a {name} near {noise:g}, found {nearest:g}: if the model "
                "counts time in another way, give Loss(objective=...), such as freeloc.probing.flow(timesteps=1)"
            )


def _name(place: _Place) -> str:
    """Of the cell's file."""
    where = (
        "all" if place.rest == place.changed else f"{place.layer}" + ("" if place.head is None else f".{place.head}")
    )
    return f"loss/{place.clip:03}/{place.rest}/{place.changed}/{where}"


def _in_place_of(given: Any, noisy: Tensor, channels: int, name: str) -> Any:
    """A sample (1, ...) as often as the model was given one, with the channels beside the video's that were given."""
    if isinstance(given, list):  # one tensor per sample
        return [_in_place_of(sample[None], noisy, channels, name)[0] for sample in given]
    if not isinstance(given, Tensor):
        raise ProbeError(
            f"expected the run to call the transformer with the noisy video as {name}, found {type(given).__name__}: "
            "give Loss(argument=...)"
        )
    mine, its = list(noisy.shape[1:]), list(given.shape[1:])
    beside = (its[channels - 1] - mine[channels - 1]) if len(mine) == len(its) else -1
    mine[channels - 1 : channels] = its[channels - 1 : channels]
    if beside < 0 or mine != its:
        raise ProbeError(f"expected clips of shape {its}, as the run calls the model with, found {[*noisy.shape[1:]]}")
    video = noisy.to(given).expand(len(given), *noisy.shape[1:])
    return torch.cat([video, given.narrow(channels, noisy.shape[channels], beside)], dim=channels) if beside else video


def _filled(value: Any, timestep: float) -> Any:
    """Another timestep in the form that was given."""
    return torch.full_like(value, timestep) if isinstance(value, Tensor) else type(value)(timestep)
