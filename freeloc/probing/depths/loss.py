"""Depth ``loss``: the denoising loss on real long clips, with another policy on one layer at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.calls import Call
from freeloc.probing.cells import Cell
from freeloc.probing.denoising import Objective, flow, objective_of
from freeloc.probing.depths.base import Depth, per_head
from freeloc.probing.depths.denoising_loss import denoising_loss, noise_seed, require_finite, require_noise
from freeloc.probing.depths.lowest_loss import Losses
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject
from freeloc.probing.table import Label, Table
from freeloc.profile.planning import layer_plans
from freeloc.profile.policies import resolve_policy
from freeloc.profile.schema import POLICIES, Profile

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)

COMPARED: tuple[tuple[str, str], ...] = (
    *(("none", policy) for policy in POLICIES if policy != "none"),
    *(("vrpr", policy) for policy in POLICIES if policy != "vrpr"),
    ("tsa", "none"),
    ("vrpr+tsa", "none"),
)
"""(policy of all other layers, policy of one layer): corrections of one layer alone, other policies among VRPR."""

WITHOUT_ROPE: tuple[tuple[str, str], ...] = (("none", "tsa"),)
"""The same for a model without RoPE: a correction of one layer alone."""


class _Place(NamedTuple):
    """A cell: a clip, the policy of all layers, and another policy of one layer or head."""

    clip: int
    rest: str
    changed: str
    layer: int
    head: int | None

    @property
    def cell(self) -> str:
        """Name of the cell."""
        of_head = "" if self.head is None else f".{self.head}"
        where = "all" if self.rest == self.changed else f"{self.layer}{of_head}"
        return f"loss/{self.clip:03}/{_of_file(self.rest)}/{_of_file(self.changed)}/{where}"

    def profile(self, profile: Profile) -> Profile:
        """The profile with these policies on its layers and heads."""
        every = range(profile.model.layers)
        if self.head is None:
            others = [layer for layer in every if layer != self.layer and self.rest != self.changed]
            layers = {self.rest: others, self.changed: [layer for layer in every if layer not in others]}
            return profile.model_copy(update={"layers": layers, "heads": {}})
        heads = {str(self.layer): {self.changed: [self.head]}}
        return profile.model_copy(update={"layers": {self.rest: [*every]}, "heads": heads})


@dataclass(frozen=True)
class Loss(Depth):
    """Measures the denoising loss on real long clips, with another policy on one layer at a time. It samples no video.

    The first call of a run is recorded. It is repeated with each clip at each noise level in place of the run's own
    latents. The noise is the same for all policies, so that they can be compared clip by clip.

    Table: ``loss.value`` (rest, policies, layers, levels, clips). One layer has the policy on the axis ``policies``,
    and all others have the policy on the axis ``rest``. If both are the same, no layer differs. NaN where nothing was
    measured. With `heads` also ``loss.head value`` (rest, policies, layers, heads, levels, clips).

    >>> Loss(torch.randn(2, 4, 9, 6, 10), policies=["vrpr", "sliding-window", "riflex"]).policies
    ['vrpr', 'sliding-window', 'riflex']

    Args:
        clips: latents of two or more real videos longer than the trained length, each one sample of the transformer's
            input, without the batch: see `encode`.
        levels: noise levels, 0 clean to 1 noise.
        compared: (rest, policy) pairs to measure. By default, with `policies`: the first as the rest, with each other
            one. Without `policies`: all pairs that a choice among ``none``, ``vrpr``, ``tsa`` and ``vrpr+tsa`` requires
            (`COMPARED`); for a model without RoPE, a choice among ``none`` and ``tsa``.
        heads: whether to measure also with one head of a layer changed at a time.
        objective: what the model predicts; by default the objective of the pipeline's scheduler, else rectified flow.
            With the default, the first call of a run must have the timestep of pure noise.
        argument: name of the transformer's argument that holds the noisy video; by default as the adapter says.
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

    def __post_init__(self) -> None:
        if len(self.clips) == 1:
            raise ProbeError("expected at least 2 clips, for a standard error, found 1")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ProbeError(f"expected noise levels above 0 and up to 1, found {list(self.levels)}")
        if self.policies is not None and not 2 <= len(set(self.policies)) == len(self.policies):
            raise ProbeError(f"expected at least 2 policies, each once, found {list(self.policies)}")
        for pair in self.compared or ():
            if len(set(pair)) != 2 or not set(pair) <= set(self.policies or pair):
                raise ProbeError(f"expected pairs of two of {', '.join(self._names)}, found {pair}")

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
        for policy in self._names:
            if resolve_policy(subject.profile, policy).method.noise:
                raise ProbeError(
                    f"expected policies that require no initial noise of their own, found '{policy}': the loss is "
                    "measured on real videos with plain noise"
                )
        sums = [float(clip.double().abs().sum()) for clip in self.clips]
        found = {"levels": list(self.levels), "clips": [f"{value:.9g}" for value in sums]}
        # Defaults are not recorded, so that folders of earlier versions, which did not record them, stay valid.
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
        places = self._places(subject)
        call = lru_cache(maxsize=1)(partial(self._first_call, subject))
        by_name = {place.cell: place for place in places}
        cells = subject.measure(list(by_name), lambda name: self._loss(subject, call, by_name[name]), "loss")
        names, shape = self._names, subject.shape
        # For the default policies the table is square; with `policies` it has only the rests that were measured.
        rests = names if self.policies is None else [name for name in names if any(name == p.rest for p in places)]
        heads = shape.heads if self.heads else 0
        sizes = len(rests), len(names), shape.layers, 1 + heads, len(self.levels), len(self.clips)
        values = torch.full(sizes, torch.nan, dtype=torch.float64)
        for name, (clip, rest, changed, layer, head) in by_name.items():
            of_pair = values[rests.index(rest), names.index(changed), ..., clip]  # (layers, whole and heads, levels)
            where = 0 if head is None else 1 + head
            (of_pair if rest == changed else of_pair[layer, where])[:] = cells[name]["loss"]
        axes: dict[str, list[Label]] = {"rest": [*rests], "policies": [*names]}
        axes |= {"layers": [*range(shape.layers)], "heads": [*range(shape.heads)], "levels": [*self.levels]}
        axes |= {"clips": [f"{clip:03}" for clip in range(len(self.clips))]}
        by_head = {"loss.head value": Table(values[:, :, :, 1:], axes)} if self.heads else {}
        of_layers = {name: labels for name, labels in axes.items() if name != "heads"}
        return {"loss.value": Table(values[:, :, :, 0], of_layers)} | by_head

    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """How much the loss rises without VRPR, and falls with TSA or with each other policy."""
        return self._losses(measured, heads).summary()

    def choose(self, measured: Measurements, rule: Rule, heads: bool = False) -> list[list[str]]:
        """The policy with the lowest loss: see `Rule`."""
        self.require_errors(measured)
        return per_head(self._losses(measured, heads).lowest(rule), measured, heads)

    @property
    def _names(self) -> list[str]:
        """All policies, in the order of the tables."""
        compared = [policy for pair in self.compared or () for policy in pair]
        return list(dict.fromkeys([*(POLICIES if self.policies is None else self.policies), *compared]))

    def _pairs(self, subject: Subject) -> Sequence[tuple[str, str]]:
        """(rest, policy) pairs to measure."""
        if self.compared:
            return self.compared
        if self.policies is not None:
            return [(self.policies[0], policy) for policy in self.policies[1:]]
        return COMPARED if subject.has_rope else WITHOUT_ROPE

    def _places(self, subject: Subject) -> list[_Place]:
        """All cells; first those in which no layer differs from the rest."""
        heads: list[int | None] = [None, *range(subject.shape.heads)] if self.heads else [None]
        pairs = self._pairs(subject)
        uniform = dict.fromkeys((rest, rest) for rest, _ in pairs)
        return [
            _Place(clip, rest, changed, layer, head)
            for clip in range(len(self.clips))
            for rest, changed in [*uniform, *pairs]
            for layer in (range(subject.shape.layers) if rest != changed else [0])
            for head in (heads if rest != changed else [None])
        ]

    def _losses(self, measured: Measurements, heads: bool) -> Losses:
        return Losses.of_table(measured.table("loss.head value" if heads else "loss.value"), heads)

    def _objective(self, subject: Subject) -> Objective:
        return self.objective or objective_of(subject.pipeline)

    def _first_call(self, subject: Subject, prompt: int) -> Call:
        """The first call of the run, which must be from noise."""
        call = next(iter(subject.first_calls(prompt, [0]).values()))
        if self.objective is None:  # a given objective has the model's scale of time
            require_noise(call, objective_of(subject.pipeline))
        return call

    def _loss(self, subject: Subject, call: Any, place: _Place) -> Cell:
        """The loss under one plan on one clip, at every level."""
        observed = call(place.clip if len(subject.prompts) > 1 else 0)
        with subject.under(partial(layer_plans, place.profile(subject.profile))):
            losses = [self._at(subject, observed, place.clip, level) for level in self.levels]
        return {"loss": torch.tensor(losses, dtype=torch.float64)}

    def _at(self, subject: Subject, call: Call, clip: int, level: float) -> float:
        """The loss on one clip at one level."""
        seed = noise_seed(subject.seed, clip, level)
        adapter, objective = subject.found[0][1], self._objective(subject)
        loss = denoising_loss(call, adapter, objective, self.clips[clip][None], level, seed, self.argument)
        require_finite(loss, level, clip)
        return loss


def _of_file(policy: str) -> str:
    """A policy's name, escaped as one part of a path."""
    return quote(policy, safe="+").replace(".", "%2E")
