"""From measurements to a policy per layer or head, by stated rules."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.perturbations import WINDOW
from freeloc.profile import POLICIES, Policy

if TYPE_CHECKING:
    from freeloc.probing.sensitivity import Sensitivity
    from freeloc.probing.table import Table

BY_DEPTH = ("video", "loss", "output", "local")
"""What tells most comes first."""


@dataclass(frozen=True)
class Rule:
    """How sensitive a layer must be for what it gets.

    Depths ``local`` and ``output`` say which layers depend more on positions and on context than others: a layer is
    sensitive where its number is at least a share of the mean over layers. Depths ``loss`` and ``video`` say what harms
    or helps: there a difference counts where it is more than so many standard errors.

    - ``local``, ``output``, ``video``: VRPR where a layer is sensitive to positions, TSA beside it where it is
      sensitive to context, nothing where it is neither.
    - ``loss``: of the policies measured on top of VRPR everywhere, the one with the lowest loss, if it is lower by more
      than `errors`; else VRPR.

    Args:
        position, context: shares of the mean.
        errors: standard errors.
        scorer: of ``video``; by default the first.
    """

    position: float = 0.5
    context: float = 1.0
    errors: float = 3.0
    scorer: str | None = None

    def __str__(self) -> str:
        return f"position={self.position}, context={self.context}, errors={self.errors}, scorer={self.scorer}"


@dataclass(frozen=True)
class Summary:
    """How sensitive every layer is, (layers,), or every head, (layers, heads): larger is more.

    Attributes:
        position, context: ``local``: difference of logits under shifts; change of entropy by the window. ``output``:
            change of the output. ``loss``: how much the loss rises if the layer is left alone instead of having VRPR;
            how much it falls if it has TSA too. ``video``: by how much the score falls.
        position_error, context_error: standard errors over clips or prompts; NaN where there is one.
    """

    position: Tensor
    context: Tensor
    position_error: Tensor
    context_error: Tensor


def summary(sensitivity: "Sensitivity", depth: str, heads: bool = False, scorer: str | None = None) -> Summary:
    """The numbers of one depth.

    Raises:
        ProbeError: if they were not measured.
    """
    if depth == "local":
        return _summary(
            _samples(sensitivity.table("local.logits"), heads), _samples(sensitivity.table("local.change"), heads)
        )
    if depth == "output":
        change = sensitivity.table("output.head change" if heads else "output.change")
        return _summary(
            _samples(change.without(perturbations=WINDOW), heads), _samples(change.at(perturbations=WINDOW), heads)
        )
    if depth == "loss":
        losses = _on_vrpr(sensitivity, heads)
        return _summary(losses["none"] - losses["vrpr"], losses["vrpr"] - losses["vrpr+tsa"])
    if depth == "video" and not heads:
        base, score = sensitivity.table("video.base"), sensitivity.table("video.score")
        chosen = base.axes["scorers"][0] if scorer is None else scorer
        whole, score = base.at(scorers=chosen).values, score.at(scorers=chosen)
        shifted, windowed = score.without(perturbations=WINDOW), score.at(perturbations=WINDOW)
        return _summary(whole - _samples(shifted, heads), whole - _samples(windowed, heads))
    by_heads = ", by heads without video" if heads else ""
    raise ProbeError(f"expected a depth of {', '.join(BY_DEPTH)}{by_heads}, found '{depth}'")


def choose(sensitivity: "Sensitivity", depth: str, rule: Rule, heads: bool = False) -> list[list[Policy]]:
    """The policy of each head of each layer; with `heads` false all heads of a layer have the same one.

    Raises:
        ProbeError: if the depth was not measured.
    """
    if depth == "loss":
        chosen = _lowest_loss(_on_vrpr(sensitivity, heads), rule)
    else:
        found = summary(sensitivity, depth, heads, rule.scorer)
        if depth == "video":
            position = found.position > rule.errors * found.position_error
            context = found.context > rule.errors * found.context_error
        else:
            position = found.position >= rule.position * found.position.nanmean()
            context = found.context >= rule.context * found.context.nanmean()
        flags = zip(position.flatten().tolist(), context.flatten().tolist(), strict=True)
        chosen = [_named(*both, turns=bool(found.position.nan_to_num().any())) for both in flags]
    count = sensitivity.facts.profile.model.heads
    if not heads:
        return [[policy] * count for policy in chosen]
    return [chosen[first : first + count] for first in range(0, len(chosen), count)]


def _named(position: bool, context: bool, turns: bool) -> Policy:
    """The paper's rule: those sensitive to positions get VRPR, those to context both; TSA alone if nothing turns."""
    if context:
        return "vrpr+tsa" if turns else "tsa"
    return "vrpr" if position and turns else "none"


def _on_vrpr(sensitivity: "Sensitivity", heads: bool) -> dict[Policy, Tensor]:
    """Mean loss over levels by the policy that one unit gets while the rest have VRPR, (layers, [heads,] clips)."""
    value = sensitivity.table("loss.head value" if heads else "loss.value").mean("levels").at(rest="vrpr")
    return {policy: _samples(value.at(policies=policy), heads, "clips") for policy in POLICIES}


def _lowest_loss(losses: dict[Policy, Tensor], rule: Rule) -> list[Policy]:
    """What `Rule` says of the depth ``loss``, for every unit."""
    rises = {policy: _mean_and_error(loss - losses["vrpr"]) for policy, loss in losses.items()}
    chosen: list[Policy] = []
    for unit in range(losses["vrpr"][..., 0].numel()):
        mean = {policy: float(rise[0].flatten()[unit]) for policy, rise in rises.items()}
        error = {policy: float(rise[1].flatten()[unit]) for policy, rise in rises.items()}
        lower = [policy for policy in POLICIES if mean[policy] < -rule.errors * error[policy]]
        chosen.append(min(lower, key=mean.__getitem__, default="vrpr"))
    return chosen


def _samples(table: "Table", heads: bool, samples: str = "prompts") -> Tensor:
    """Mean over all but layers, heads and samples, (layers, [heads,] samples)."""
    return table.over("layers", *(["heads"] if heads else []), samples).values


def _summary(position: Tensor, context: Tensor) -> Summary:
    (position, position_error), (context, context_error) = _mean_and_error(position), _mean_and_error(context)
    return Summary(position, context, position_error, context_error)


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over samples (..., samples), and its standard error; NaN for one sample."""
    count = values.shape[-1]
    mean = values.mean(dim=-1)
    return mean, values.std(dim=-1) / count**0.5 if count > 1 else torch.full_like(mean, torch.nan)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, 1 for the same order: how well one measure tells the order that another gives.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.3, 0.2]))
    0.5
    """
    ranks = torch.stack([_ranks(first.flatten()), _ranks(second.flatten())])
    return round(float(torch.corrcoef(ranks)[0, 1]), 6)


def _ranks(values: Tensor) -> Tensor:
    """Mean rank of equal values."""
    return ((values[:, None] > values).double().sum(dim=1) + (values[:, None] >= values).double().sum(dim=1)) / 2
