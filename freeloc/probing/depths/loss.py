"""Depth ``loss``: the denoising loss on real long clips, with another policy on one layer at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.calls import Call
from freeloc.probing.cells import Cell
from freeloc.probing.denoising import Objective, flow, objective_of
from freeloc.probing.depths.base import Depth, per_head
from freeloc.probing.depths.comparisons import COMPARED, WITHOUT_ROPE, policies_of, settings_of
from freeloc.probing.depths.denoising_loss import (
    noise_seed,
    require_different,
    require_finite,
    require_noise,
    squared_error,
)
from freeloc.probing.depths.lowest_loss import Losses
from freeloc.probing.places import axes_of, motion_weight
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.statistics import threshold
from freeloc.probing.store import Measurements
from freeloc.probing.subject import PlanOfLayer, Subject
from freeloc.probing.table import Label, Table
from freeloc.profile.planning import layer_plans
from freeloc.profile.policies import resolve_policy
from freeloc.profile.schema import POLICIES

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)

ENOUGH_CLIPS = 8
"""Fewer clips need more than 5 standard errors to tell a difference from chance: see `threshold`."""

MEASURES = ("value", "moving")
"""Kinds of losses, each a table: mean over all places, and over places by `motion_weight`."""


@dataclass(frozen=True)
class Loss(Depth):
    """Measures the denoising loss on real long clips, with another policy on one layer at a time. It samples no video.

    The first call of a run is recorded. It is repeated with each clip at each noise level in place of the run's own
    latents. The noise is the same for all policies, so that they can be compared clip by clip.

    Tables: ``loss.value`` (rest, policies, layers, levels, clips), the mean over all places, and ``loss.moving``, the
    mean over places weighted by how much they move and have detail (`freeloc.probing.places.motion_weight`): a small
    moving object hardly counts in the first. One layer has the policy on the axis ``policies``, and all others have the
    policy on the axis ``rest``. If both are the same, no layer differs. NaN where nothing was measured. With `heads`
    also ``loss.head value`` and ``loss.head moving`` (rest, policies, layers, heads, levels, clips).

    >>> Loss(torch.randn(2, 4, 9, 6, 10), policies=["vrpr", "sliding-window", "riflex"]).policies
    ['vrpr', 'sliding-window', 'riflex']

    Args:
        clips: latents of two or more real videos longer than the trained length, each one sample of the transformer's
            input, without the batch: see `encode`.
        levels: noise levels, 0 clean to 1 noise.
        compared: (rest, policy) pairs to measure. By default exactly what `choose` reads. With `policies`: the first as
            the rest, with each other one. Without `policies`: ``vrpr`` as the rest, with ``none``, ``tsa`` and
            ``vrpr+tsa`` (`COMPARED`); for a model without RoPE, ``none`` as the rest, with ``tsa``.
        heads: whether to measure also with one head of a layer changed at a time.
        objective: what the model predicts; by default the objective of the pipeline's scheduler, else rectified flow.
            With the default, the first call of a run must have the timestep of pure noise.
        argument: name of the transformer's argument that holds the noisy video; by default as the adapter says.
        axes: einops names of the axes of a clip: channels c, frames f, rows h and columns w. By default as the adapter
            says, else ``"c f h w"``, or ``"(f h w) c"`` for a sequence of tokens.
        policies: the policies to choose among: names of methods (``freeloc methods``) or of policies that the profile
            defines. All other layers have the first one.
    """

    name: ClassVar[str] = "loss"
    rank: ClassVar[int] = 3
    samples: ClassVar[str] = "clips"

    clips: Sequence[Tensor] | Tensor = ()
    levels: Sequence[float] = LEVELS
    compared: Sequence[tuple[str, str]] | None = None
    heads: bool = False
    objective: Objective | None = None
    argument: str | None = None
    policies: Sequence[str] | None = None
    axes: str | None = None

    def __post_init__(self) -> None:
        if len(self.clips) == 1:
            raise ProbeError("expected at least 2 clips, for a standard error, found 1")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ProbeError(f"expected noise levels above 0 and up to 1, found {list(self.levels)}")
        if self.policies is not None and not 2 <= len(set(self.policies)) == len(self.policies):
            raise ProbeError(f"expected at least 2 policies, each once, found {list(self.policies)}")
        for pair in self.compared or ():
            if len(set(pair)) != 2 or not set(pair) <= set(self.policies or pair):
                known = ", ".join(self.policies) if self.policies else "policies"
                raise ProbeError(f"expected pairs of two of {known}, found {pair}")

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The clips, the noise levels, and what the model predicts.

        Raises:
            ProbeError: if there are no clips, if the objective of the model's scheduler is not known, or if a policy
                requires noise of its own.
            ProfileError: if a policy does not exist.
        """
        if not len(self.clips):
            raise ProbeError(
                "depth loss requires clips: give freeloc.probing.Loss(clips), latents of two real videos or more"
            )
        require_different(self.clips)
        if len(subject.prompts) not in (0, 1, len(self.clips)):
            raise ProbeError(
                f"expected no prompt, one, or one for each of {len(self.clips)} clips, found {len(subject.prompts)}"
            )
        for policy in policies_of(self._pairs(subject)):
            if resolve_policy(subject.profile, policy).method.noise:
                raise ProbeError(
                    f"expected policies that require no initial noise of their own, found '{policy}': the loss is "
                    "measured on real videos with plain noise"
                )
        sums = [float(clip.double().abs().sum()) for clip in self.clips]
        found = {"levels": list(self.levels), "clips": [f"{value:.9g}" for value in sums], "losses": list(MEASURES)}
        objective = self._objective(subject).numbers(self.levels)
        if objective != flow().numbers(self.levels):
            found["objective"] = objective
        found |= {name: value for name in ("argument", "axes") if (value := getattr(self, name)) is not None}
        return found

    def measure(self, subject: Subject) -> dict[str, Table]:
        """See `Loss`."""
        pairs, shape = self._pairs(subject), subject.shape
        heads: list[int | None] = [None, *range(shape.heads)] if self.heads else [None]
        by_cell = {own.cell: own for own in settings_of(pairs, len(self.clips), shape.layers, heads)}
        call = lru_cache(maxsize=1)(partial(self.first_call, subject))

        def losses(name: str) -> Cell:
            own = by_cell[name]
            return self.losses_under(subject, call, own.clip, partial(layer_plans, own.profile(subject.profile)))

        cells = subject.measure(list(by_cell), losses, "loss")
        names, rests = policies_of(pairs, self.policies or POLICIES), list(dict.fromkeys(rest for rest, _ in pairs))
        sizes = len(rests), len(names), shape.layers, len(heads), len(self.levels), len(self.clips)
        axes: dict[str, list[Label]] = {"rest": [*rests], "policies": [*names]}
        axes |= {"layers": [*range(shape.layers)], "heads": [*range(shape.heads)], "levels": [*self.levels]}
        axes |= {"clips": [f"{clip:03}" for clip in range(len(self.clips))]}
        of_layers = {name: labels for name, labels in axes.items() if name != "heads"}
        tables = {}
        for measure in MEASURES:
            values = torch.full(sizes, torch.nan, dtype=torch.float64)
            for name, (clip, rest, changed, layer, head) in by_cell.items():
                of_pair = values[rests.index(rest), names.index(changed), ..., clip]  # (layers, 1 + heads, levels)
                where = 0 if head is None else 1 + head
                (of_pair if rest == changed else of_pair[layer, where])[:] = cells[name][measure]
            tables[f"loss.{measure}"] = Table(values[:, :, :, 0], of_layers)
            if self.heads:
                tables[f"loss.head {measure}"] = Table(values[:, :, :, 1:], axes)
        return tables

    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """How much the loss rises without VRPR, and falls with TSA or with each other policy, by both losses."""
        return Losses.of(measured, heads).summary()

    def choose(self, measured: Measurements, rule: Rule, heads: bool = False) -> list[list[str]]:
        """The policy with the lowest loss: see `Rule`."""
        self.require_errors(measured)
        return per_head(Losses.of(measured, heads).lowest(rule), measured, heads)

    def remark(self, measured: Measurements) -> str:
        """How many standard errors a difference needs."""
        count = self.count_of(measured)
        if count < 2:
            return ""
        enough = f"of {count} clips, a policy needs {threshold(USUAL.errors, count):.1f} standard errors"
        return f"{enough}; with {ENOUGH_CLIPS} clips or more, it needs few" if count < ENOUGH_CLIPS else enough

    def _pairs(self, subject: Subject) -> Sequence[tuple[str, str]]:
        """(rest, policy) pairs to measure."""
        if self.compared:
            return self.compared
        if self.policies is not None:
            return [(self.policies[0], policy) for policy in self.policies[1:]]
        return COMPARED if subject.has_rope else WITHOUT_ROPE

    def _objective(self, subject: Subject) -> Objective:
        return self.objective or objective_of(subject.pipeline)

    def first_call(self, subject: Subject, prompt: int) -> Call:
        """The first call of a prompt's run, which must be from noise."""
        call = next(iter(subject.first_calls(prompt, [0]).values()))
        if self.objective is None:  # a given objective has the model's scale of time
            require_noise(call, objective_of(subject.pipeline))
        return call

    def losses_under(self, subject: Subject, call: Callable[[int], Call], clip: int, plan: PlanOfLayer) -> Cell:
        """The losses on one clip under one plan: (levels,) for each of `MEASURES`.

        Args:
            subject: the model.
            call: prompt -> the first call of its run: see `first_call`.
            clip: number of the clip.
            plan: the plans of all layers.
        """
        observed, latents = call(clip if len(subject.prompts) > 1 else 0), self.clips[clip]
        adapter, objective = subject.found[0][1], self._objective(subject)
        where = axes_of(observed, adapter, latents, self.axes)
        weight = motion_weight(latents.cpu(), where.names, **where.sizes)
        losses = []
        with subject.under(plan):
            for level in self.levels:
                seed = noise_seed(subject.seed, clip, level)
                error = squared_error(
                    observed, adapter, objective, latents[None], level, seed, self.argument, where.names
                ).double()
                require_finite(float(error.mean()), level, clip)
                losses.append([error.mean(), (weight * error).mean()])
        return dict(zip(MEASURES, torch.tensor(losses, dtype=torch.float64).unbind(dim=1), strict=True))
