"""What a depth's numbers are read as: the sensitivities of layers, and the rule that chooses policies by them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from freeloc.probing.statistics import mean_and_error


@dataclass(frozen=True)
class Rule:
    """How sensitive a layer must be for a correction, and which correction it then gets.

    Depths ``local`` and ``output`` say which layers depend more on positions and on context than others: a layer is
    sensitive where its number is at least a share of the mean over layers. Depths ``loss`` and ``video`` say what harms
    or helps: there a difference counts where it is more than so many standard errors.

    - ``local``, ``output``, ``video``: VRPR where a layer is sensitive to positions, TSA beside it where it is
      sensitive to context, nothing where it is neither.
    - ``loss``: of the policies that were measured on one layer while all others have the base policy (VRPR, unless
      other policies were asked for), the one with the lowest loss, if it is lower than the base policy's by more than
      `errors`; else the base policy. Where VRPR was not measured, as on a model without RoPE, the base is ``none``.

    >>> print(Rule(position=0.8, for_context="sliding-window"))
    position=0.8, context=1.0, errors=3.0, scorer=None, for_context=sliding-window

    Args:
        position, context: shares of the mean.
        errors: standard errors.
        scorer: of ``video``; by default the first.
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
        told = [(part.name, getattr(self, part.name), part.default) for part in fields(self)]
        return ", ".join(f"{name}={value}" for name, value, usual in told if name in thresholds or value != usual)

    def policy(self, position: bool, context: bool, has_rope: bool) -> str:
        """The policy of a layer that is or is not sensitive to positions and to context.

        >>> Rule().policy(position=True, context=False, has_rope=True)
        'vrpr'
        """
        if context:
            return self.for_context if has_rope else self.without_rope
        return self.for_position if position and has_rope else self.for_neither


USUAL = Rule()
"""The rule with its usual thresholds."""


@dataclass(frozen=True)
class Summary:
    """How sensitive every layer is, (layers,), or every head, (layers, heads): larger is more.

    Attributes:
        position, context: ``local``: difference of logits under shifts; change of entropy by the window. ``output``:
            change of the output. ``loss``: how much the loss rises if the layer is left alone instead of having VRPR;
            how much it falls if it has TSA too, or TSA alone without RoPE. ``video``: by how much the score falls.
            NaN where nothing was measured, as positions of a model without RoPE.
        position_error, context_error: standard errors over clips or prompts; NaN where there is one.
        more: other numbers by name, each with its standard errors. ``loss``: by how much the loss falls with each
            policy that was measured beside ``none``, ``vrpr``, ``tsa`` and ``vrpr+tsa``.
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
        """All numbers and their standard errors by name; without what was not measured where there is something else.

        >>> import torch
        >>> list(Summary.of_samples(position=torch.full((8, 1), torch.nan), context=torch.ones(8, 1)).columns())
        ['context']
        """
        both = {"position": (self.position, self.position_error), "context": (self.context, self.context_error)}
        found = both | dict(self.more)
        return {name: pair for name, pair in found.items() if not pair[0].isnan().all()} or both
