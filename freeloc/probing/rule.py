"""The summary of a depth's measurements (sensitivities of layers), and the rule that chooses policies from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.statistics import mean_and_error

LOSSES = ("both", "whole", "moving")
"""The losses by which depth ``loss`` can decide."""


@dataclass(frozen=True)
class Rule:
    """Which layers get a correction, and which one. VRPR is what a layer has until something better was measured.

    - ``local``, ``output``, and depths of plugins by default: a layer is left alone if its sensitivity to positions is
      below `position` times the mean over layers, else it gets VRPR. They never give TSA, or another window: that a
      window changes much does not say that it helps.
    - ``video``: the same, where the fall of the score is below that share by more than `errors` standard errors.
    - ``loss``: each policy was measured on one layer while all others had the base policy (VRPR, unless other policies
      were given; ``none`` on a model without RoPE). There are two losses: over whole frames, and weighted by how much
      places move and have detail. A policy is better if it lowers one of them by more than `errors` standard errors,
      and raises neither by more than one standard error. The layer gets the better policy with the largest sum of both
      falls, each as a share of the base policy's loss; the base policy if none is better.

    Standard errors of few samples are uncertain, so there `errors` are more of them:
    `freeloc.probing.statistics.threshold`.

    >>> print(Rule(position=0.2, for_position="riflex"))
    position=0.2, errors=3.0, scorer=None, loss=both, for_position=riflex

    Args:
        position: threshold, as a share of the mean.
        errors: threshold, in standard errors.
        scorer: the scorer of ``video`` that decides; by default the first.
        loss: the loss of ``loss`` that decides: ``"both"`` as above, ``"whole"`` or ``"moving"`` by one of them alone.
        for_neither, for_position: policies for a layer that is left alone, and for one that is sensitive to positions.

    Raises:
        ProbeError: if `loss` is another word.
    """

    position: float = 0.1
    errors: float = 3.0
    scorer: str | None = None
    loss: str = "both"
    for_neither: str = "none"
    for_position: str = "vrpr"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ProbeError(f"expected Rule(loss=...) to be one of {', '.join(LOSSES)}, found {self.loss!r}")

    def __str__(self) -> str:
        thresholds = ("position", "errors", "scorer", "loss")
        shown = [(part.name, getattr(self, part.name), part.default) for part in fields(self)]
        return ", ".join(f"{name}={value}" for name, value, usual in shown if name in thresholds or value != usual)

    def policy(self, position: bool) -> str:
        """The policy of a layer that is or is not sensitive to positions.

        >>> Rule().policy(position=True)
        'vrpr'
        """
        return self.for_position if position else self.for_neither


USUAL = Rule()
"""The rule with its default thresholds."""


@dataclass(frozen=True)
class Summary:
    """How sensitive every layer is, (layers,), or every head, (layers, heads). Larger is more sensitive.

    Attributes:
        position, context: ``local``: difference of logits under shifts; change of entropy by the window. ``output``:
            change of the output. ``loss``: rise of the loss if the layer has no correction instead of VRPR; fall of the
            loss if it has VRPR and TSA instead (without RoPE, TSA instead of none). ``video``: fall of the score. NaN
            where nothing was measured, such as positions of a model without RoPE. Only ``loss`` chooses by context.
        position_error, context_error: standard errors over clips or prompts; NaN if there is only one.
        more: other measures by name, each with its standard errors. ``loss``: fall of the loss with each measured
            policy other than ``none``, ``vrpr``, ``tsa`` and ``vrpr+tsa``, and all of these for the loss on moving
            places, ``"position, moving"``.
    """

    position: Tensor
    context: Tensor
    position_error: Tensor
    context_error: Tensor
    more: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of_samples(cls, position: Tensor, context: Tensor, more: Mapping[str, Tensor] | None = None) -> "Summary":
        """Means and standard errors over the last axis.

        >>> import torch
        >>> Summary.of_samples(position=torch.ones(8, 3), context=torch.zeros(8, 3)).position.shape
        torch.Size([8])

        Args:
            position, context, more: (layers, samples) or (layers, heads, samples).
        """
        (position, position_error), (context, context_error) = mean_and_error(position), mean_and_error(context)
        others = {name: mean_and_error(values) for name, values in (more or {}).items()}
        return cls(position, context, position_error, context_error, others)

    def columns(self) -> dict[str, tuple[Tensor, Tensor]]:
        """All measures and their standard errors by name. Measures without any number are left out, unless all are.

        >>> import torch
        >>> list(Summary.of_samples(position=torch.full((8, 1), torch.nan), context=torch.ones(8, 1)).columns())
        ['context']
        """
        both = {"position": (self.position, self.position_error), "context": (self.context, self.context_error)}
        found = both | dict(self.more)
        return {name: pair for name, pair in found.items() if not pair[0].isnan().all()} or both
