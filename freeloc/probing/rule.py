"""The summary of a depth's measurements (sensitivities of layers), and the rule that chooses policies from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from freeloc.probing.statistics import mean_and_error


@dataclass(frozen=True)
class Rule:
    """How sensitive a layer must be to get a correction, and which correction it gets.

    Depths ``local`` and ``output`` compare layers: a layer is sensitive if its number is at least a share of the mean
    over layers. Depths ``loss`` and ``video`` measure harm and benefit: a difference counts if it is larger than a
    number of standard errors.

    - ``local``, ``output``, ``video``: VRPR if the layer is sensitive to positions, VRPR and TSA if it is sensitive to
      context, none if it is sensitive to neither.
    - ``loss``: each policy was measured on one layer while all others had the base policy (VRPR, unless other policies
      were given). The layer gets the policy with the lowest loss, if that is lower than the base policy's by more than
      `errors`; else the base policy. If VRPR was not measured, as on a model without RoPE, the base is ``none``.

    >>> print(Rule(position=0.8, for_context="sliding-window"))
    position=0.8, context=1.0, errors=3.0, scorer=None, for_context=sliding-window

    Args:
        position, context: thresholds, as shares of the mean.
        errors: threshold, in standard errors.
        scorer: the scorer of ``video`` that decides; by default the first.
        for_neither, for_position, for_context, without_rope: policies that ``local``, ``output`` and ``video`` choose
            for a layer that is sensitive to neither, to positions, to context, and to context in a model without RoPE.
    """

    position: float = 0.5
    context: float = 1.0
    errors: float = 3.0
    scorer: str | None = None
    for_neither: str = "none"
    for_position: str = "vrpr"
    for_context: str = "vrpr+tsa"
    without_rope: str = "tsa"

    def __str__(self) -> str:
        thresholds = ("position", "context", "errors", "scorer")
        shown = [(part.name, getattr(self, part.name), part.default) for part in fields(self)]
        return ", ".join(f"{name}={value}" for name, value, usual in shown if name in thresholds or value != usual)

    def policy(self, position: bool, context: bool, has_rope: bool) -> str:
        """The policy of a layer that is or is not sensitive to positions and to context.

        >>> Rule().policy(position=True, context=False, has_rope=True)
        'vrpr'
        """
        if context:
            return self.for_context if has_rope else self.without_rope
        return self.for_position if position and has_rope else self.for_neither


USUAL = Rule()
"""The rule with its default thresholds."""


@dataclass(frozen=True)
class Summary:
    """How sensitive every layer is, (layers,), or every head, (layers, heads). Larger is more sensitive.

    Attributes:
        position, context: ``local``: difference of logits under shifts; change of entropy by the window. ``output``:
            change of the output. ``loss``: rise of the loss if the layer has no correction instead of VRPR; fall of the
            loss if it has VRPR and TSA instead (without RoPE, TSA instead of none). ``video``: fall of the score. NaN
            where nothing was measured, such as positions of a model without RoPE.
        position_error, context_error: standard errors over clips or prompts; NaN if there is only one.
        more: other measures by name, each with its standard errors. ``loss``: fall of the loss with each measured
            policy other than ``none``, ``vrpr``, ``tsa`` and ``vrpr+tsa``.
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
