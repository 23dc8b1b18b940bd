"""From measurements to a policy per layer or head, by stated rules."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.perturbations import WINDOW
from freeloc.profile.schema import POLICIES, Policy

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
      than `errors`; else VRPR. Where VRPR was not measured, as on a model without RoPE, nothing stands in its place.

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
            how much it falls if it has TSA too, or TSA alone without RoPE. ``video``: by how much the score falls.
            NaN where nothing was measured, as positions of a model without RoPE.
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
        base, losses = _losses(sensitivity, heads)
        with_tsa = losses["vrpr+tsa" if base == "vrpr" else "tsa"]
        return _summary(losses["none"] - losses["vrpr"], losses[base] - with_tsa)
    if depth == "video" and not heads:
        unperturbed, score = sensitivity.table("video.base"), sensitivity.table("video.score")
        chosen = unperturbed.axes["scorers"][0] if scorer is None else scorer
        whole, score = unperturbed.at(scorers=chosen).values, score.at(scorers=chosen)
        shifted, windowed = score.without(perturbations=WINDOW), score.at(perturbations=WINDOW)
        return _summary(whole - _samples(shifted, heads), whole - _samples(windowed, heads))
    by_heads = ", by heads without video" if heads else ""
    raise ProbeError(f"expected a depth of {', '.join(BY_DEPTH)}{by_heads}, found '{depth}'")


def choose(sensitivity: "Sensitivity", depth: str, rule: Rule, heads: bool = False) -> list[list[Policy]]:
    """The policy of each head of each layer; with `heads` false all heads of a layer have the same one.

    Raises:
        ProbeError: if the depth was not measured, or not in every layer, or not often enough for a standard error.
    """
    name, count = samples(sensitivity, depth)
    if depth in ("loss", "video") and count < 2:
        raise ProbeError(f"expected at least 2 {name}, for a standard error, found {count}")
    if depth == "loss":
        chosen = _lowest_loss(*_losses(sensitivity, heads), rule)
    else:
        found = summary(sensitivity, depth, heads, rule.scorer)
        _require_numbers(found.context, "the sensitivity to context")
        turns = not bool(found.position.isnan().all())
        if turns:
            _require_numbers(found.position, "the sensitivity to positions")
            turns = bool(found.position.any())
        if depth == "video":
            position = found.position > rule.errors * found.position_error
            context = found.context > rule.errors * found.context_error
        else:
            position = found.position >= rule.position * found.position.mean()
            context = found.context >= rule.context * found.context.mean()
        flags = zip(position.flatten().tolist(), context.flatten().tolist(), strict=True)
        chosen = [_named(*both, turns=turns) for both in flags]
    count = sensitivity.facts.profile.model.heads
    if not heads:
        return [[policy] * count for policy in chosen]
    return [chosen[first : first + count] for first in range(0, len(chosen), count)]


def _named(position: bool, context: bool, turns: bool) -> Policy:
    """The paper's rule: those sensitive to positions get VRPR, those to context both; TSA alone if nothing turns."""
    if context:
        return "vrpr+tsa" if turns else "tsa"
    return "vrpr" if position and turns else "none"


def samples(sensitivity: "Sensitivity", depth: str) -> tuple[str, int]:
    """What a depth repeats, clips or prompts, and how often."""
    name = "clips" if depth == "loss" else "prompts"
    tables = [table for of, table in sensitivity.tables.items() if of.startswith(f"{depth}.") and name in table.axes]
    return name, len(tables[0].axes[name]) if tables else 0


def _require_numbers(values: Tensor, what: str) -> None:
    """Refuse units (layers, ...) that have no number: a layer that never ran, or that computes NaN."""
    missing = [layer for layer, of_layer in enumerate(values) if not of_layer.isfinite().all()]
    if missing:
        raise ProbeError(
            f"expected a number for {what} of every layer, found none for layer {missing[0]}: one that never runs has "
            "none, nor has one that computes NaN, as some models do in half precision"
        )


def _losses(sensitivity: "Sensitivity", heads: bool) -> tuple[Policy, dict[Policy, Tensor]]:
    """What the rest has, VRPR where that was measured, and the mean loss over levels by what one unit has instead.

    (layers, [heads,] clips); NaN where a policy was not measured.
    """
    value = sensitivity.table("loss.head value" if heads else "loss.value").mean("levels")
    base: Policy = "vrpr" if value.at(rest="vrpr").values.isfinite().any() else "none"
    of_base = value.at(rest=base)
    return base, {policy: _samples(of_base.at(policies=policy), heads, "clips") for policy in POLICIES}


def _lowest_loss(base: Policy, losses: dict[Policy, Tensor], rule: Rule) -> list[Policy]:
    """What `Rule` says of the depth ``loss``, for every unit."""
    measured = {policy: loss for policy, loss in losses.items() if not loss.isnan().all()}
    if base not in measured or len(measured) < 2:
        raise ProbeError(
            f"expected losses with {base} on all other layers to choose from, found those of "
            f"{', '.join(measured) or 'nothing'}: Loss(compared=...) says what is measured"
        )
    for policy, loss in measured.items():
        _require_numbers(loss, f"the loss with {policy}")
    rises = {policy: _mean_and_error(loss - measured[base]) for policy, loss in measured.items()}
    chosen: list[Policy] = []
    for unit in range(measured[base][..., 0].numel()):
        mean = {policy: float(rise[0].flatten()[unit]) for policy, rise in rises.items()}
        error = {policy: float(rise[1].flatten()[unit]) for policy, rise in rises.items()}
        lower = [policy for policy in measured if mean[policy] < -rule.errors * error[policy]]
        chosen.append(min(lower, key=mean.__getitem__, default=base))
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
