"""Chooses a policy for each layer from denoising losses: one that lowers them by enough standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.depths.base import require_numbers, samples_of
from freeloc.probing.rule import Rule, Summary
from freeloc.probing.statistics import mean_and_error, threshold
from freeloc.probing.store import Measurements
from freeloc.probing.table import Table
from freeloc.profile.schema import POLICIES

ByPolicy = dict[str, Tensor]
"""Losses (layers, [heads,] clips), by the policy of one layer or head while all others have the base policy."""


@dataclass(frozen=True)
class Losses:
    """Mean losses over noise levels. NaN where nothing was measured.

    Args:
        base: policy of the other layers.
        whole: losses over all places.
        moving: losses over places weighted by motion and detail; None if they were not measured.
    """

    base: str
    whole: ByPolicy
    moving: ByPolicy | None

    @classmethod
    def of(cls, measured: Measurements, heads: bool) -> "Losses":
        """Read the tables ``loss.value`` and ``loss.moving``, or those of heads.

        The base policy is the one that all other layers had; ``vrpr`` if there are several.

        Raises:
            ProbeError: if nothing was measured, or with several other policies.
        """
        kind = "head " if heads else ""
        whole, moving = measured.table(f"loss.{kind}value"), measured.tables.get(f"loss.{kind}moving")
        base = _base(whole)
        of_places = None if moving is None else _by_policy(moving, base, heads)
        return cls(base, _by_policy(whole, base, heads), of_places)

    def summary(self) -> Summary:
        """How much the loss rises without VRPR, and falls with TSA or with each other policy; then on moving places."""
        found = _summary(self.whole, self.base)
        moving = _summary(self.moving, self.base).columns() if self.moving else {}
        more = {**found.more, **{f"{name}, moving": pair for name, pair in moving.items()}}
        return Summary(found.position, found.context, found.position_error, found.context_error, more)

    def lowest(self, rule: Rule) -> list[str]:
        """The policy of each layer or head by `Rule`; the base policy where none is better.

        Raises:
            ProbeError: if a comparison that the rule reads was not measured, or not in every layer.
        """
        kinds = self._read_by(rule)
        for losses in kinds:
            self._require_measured(losses)
        falls = [{policy: losses[self.base] - loss for policy, loss in losses.items()} for losses in kinds]
        shares = [float(losses[self.base].mean()) for losses in kinds]
        found = {
            policy: [mean_and_error(of_kind[policy].flatten(0, -2)) for of_kind in falls]
            for policy in self.whole
            if policy != self.base
        }
        enough = threshold(rule.errors, self.whole[self.base].shape[-1])
        chosen = []
        for unit in range(self.whole[self.base][..., 0].numel()):
            gains = {}
            for policy, pairs in found.items():
                own = [(float(mean[unit]), float(error[unit])) for mean, error in pairs]
                if any(fall > enough * error for fall, error in own) and all(fall >= -error for fall, error in own):
                    gains[policy] = sum(fall / share for (fall, _), share in zip(own, shares, strict=True))
            chosen.append(max(gains, key=gains.__getitem__, default=self.base))
        return chosen

    def _read_by(self, rule: Rule) -> Sequence[ByPolicy]:
        """The losses that a rule reads."""
        if rule.loss == "whole":
            return [self.whole]
        if self.moving is None:
            raise ProbeError(
                "expected the loss on moving places, table 'loss.moving', which was not measured: measure again with "
                "freeloc.probing.Loss, or decide by whole frames alone, with freeloc.probing.Rule(loss='whole')"
            )
        return [self.moving] if rule.loss == "moving" else [self.whole, self.moving]

    def _require_measured(self, losses: ByPolicy) -> None:
        pairs = [(self.base, policy) for policy in losses if policy != self.base]
        missing = [policy for policy, loss in losses.items() if loss.isnan().all()]
        if missing or not pairs:
            raise ProbeError(
                f"expected the loss with {' and with '.join(missing) or 'another policy'} on one layer and {self.base} "
                "on all others, which was not measured: measure it with "
                f"freeloc.probing.Loss(clips, compared={pairs or [(self.base, 'tsa')]})"
            )
        for policy, loss in losses.items():
            require_numbers(loss, f"the loss with {policy}")


def _base(table: Table) -> str:
    """The policy that all other layers had."""
    rests = [str(rest) for rest in table.labels("rest") if table.at(rest=rest).values.isfinite().any()]
    if len(rests) == 1 or "vrpr" in rests:
        return "vrpr" if "vrpr" in rests else rests[0]
    needed = [("vrpr", policy) for policy in POLICIES if policy != "vrpr"]
    raise ProbeError(
        f"expected losses with vrpr, or with one other policy, on all other layers, found "
        f"{' and '.join(rests) or 'nothing'}: measure them with freeloc.probing.Loss(clips, compared={needed})"
    )


def _by_policy(table: Table, base: str, heads: bool) -> ByPolicy:
    """The losses of a table with the axes rest, policies, layers, [heads,] levels and clips."""
    of_base = table.at(rest=base)
    policies = {str(policy): of_base.at(policies=policy) for policy in of_base.labels("policies")}
    return {policy: samples_of(part, heads, "clips") for policy, part in policies.items()}


def _summary(losses: ByPolicy, base: str) -> Summary:
    missing = torch.full_like(next(iter(losses.values())), torch.nan)
    loss = {policy: losses.get(policy, missing) for policy in (*POLICIES, *losses)}
    falls = {policy: loss[base] - value for policy, value in losses.items() if policy != base}
    if base not in ("vrpr", "none"):
        return Summary.of_samples(missing, missing, falls)
    others = {policy: value for policy, value in falls.items() if policy not in POLICIES}
    with_tsa = loss["vrpr+tsa" if base == "vrpr" else "tsa"]
    return Summary.of_samples(loss["none"] - loss["vrpr"], loss[base] - with_tsa, others)
