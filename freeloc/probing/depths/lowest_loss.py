"""Chooses a policy for each layer from denoising losses: the lowest, if it is lower by enough standard errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.depths.base import require_numbers, samples_of
from freeloc.probing.rule import Rule, Summary
from freeloc.probing.statistics import mean_and_error
from freeloc.probing.table import Table
from freeloc.profile.schema import POLICIES


@dataclass(frozen=True)
class Losses:
    """Mean losses over noise levels, by the policy of one layer or head while all others have the base policy.

    Args:
        base: policy of the other layers.
        by_policy: losses (layers, [heads,] clips) by policy; NaN where it was not measured.
    """

    base: str
    by_policy: dict[str, Tensor]

    @classmethod
    def of_table(cls, table: Table, heads: bool) -> "Losses":
        """Read a table with the axes rest, policies, layers, [heads,] levels and clips.

        The base policy is ``vrpr`` if that was measured, else ``none`` if the table has it, else the table's first.
        """
        value, rests = table.mean("levels"), table.labels("rest")
        base = "none" if "none" in rests else rests[0]
        if "vrpr" in rests and value.at(rest="vrpr").values.isfinite().any():
            base = "vrpr"
        of_base = value.at(rest=base)
        policies = {str(policy): of_base.at(policies=policy) for policy in of_base.labels("policies")}
        return cls(str(base), {policy: samples_of(part, heads, "clips") for policy, part in policies.items()})

    def summary(self) -> Summary:
        """How much the loss rises without VRPR, and falls with TSA or with each other policy."""
        missing = torch.full_like(next(iter(self.by_policy.values())), torch.nan)
        loss = {policy: self.by_policy.get(policy, missing) for policy in (*POLICIES, *self.by_policy)}
        falls = {policy: loss[self.base] - value for policy, value in self.by_policy.items() if policy != self.base}
        if self.base not in ("vrpr", "none"):
            return Summary.of_samples(missing, missing, falls)
        others = {policy: value for policy, value in falls.items() if policy not in POLICIES}
        with_tsa = loss["vrpr+tsa" if self.base == "vrpr" else "tsa"]
        return Summary.of_samples(loss["none"] - loss["vrpr"], loss[self.base] - with_tsa, others)

    def lowest(self, rule: Rule) -> list[str]:
        """The policy with the lowest loss for each layer or head, if it is lower by enough errors; else the base.

        Raises:
            ProbeError: if fewer than two policies were measured, or one was not measured in every layer.
        """
        measured = {policy: loss for policy, loss in self.by_policy.items() if not loss.isnan().all()}
        if self.base not in measured or len(measured) < 2:
            raise ProbeError(
                f"expected losses with {self.base} on all other layers to choose from, found those of "
                f"{', '.join(measured) or 'nothing'}: Loss(policies=..., compared=...) sets what is measured"
            )
        for policy, loss in measured.items():
            require_numbers(loss, f"the loss with {policy}")
        base = measured.pop(self.base)
        rises = {policy: mean_and_error((loss - base).flatten(0, -2)) for policy, loss in measured.items()}
        chosen = []
        for unit in range(base[..., 0].numel()):
            mean = {policy: float(rise[unit]) for policy, (rise, _) in rises.items()}
            lower = [policy for policy, (_, error) in rises.items() if mean[policy] < -rule.errors * float(error[unit])]
            chosen.append(min(lower, key=mean.__getitem__, default=self.base))
        return chosen
