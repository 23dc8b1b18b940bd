"""TemporalRope: how an adapter describes the temporal part of a rotary position embedding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from freeloc.adapter.checks import check_types, require
from freeloc.errors import AdapterError

PAIRINGS = ("(pair two)", "(two pair)")


@dataclass(frozen=True)
class TemporalRope:
    """The pairs of channels of each head that the temporal axis of a 3-D RoPE rotates.

    >>> rope = TemporalRope(channels=lambda head_dim: head_dim - 4 * (head_dim // 6))
    >>> rope.span(128), rope.frequencies(128).shape
    ((0, 44), torch.Size([22]))

    Args:
        channels: number of temporal channels: a number, an attribute path of the model, or a function of head_dim.
        first: the first channel of the block in which the channels are paired.
        pairing: einops pattern of the channels that rotate together: ``"(pair two)"`` for interleaved ones (2i, 2i +
            1), ``"(two pair)"`` for half-split ones (i, i + pairs of the block). Where a setting of the model decides:
            an attribute path that is true on half-split models, or a path and its value on them,
            ``"config.rope_type=split"``.
        theta: base of the frequencies ``theta ** (-pair / pairs)``, in radians per position; or an attribute path.
        within: number of channels in the block, or a function of head_dim that returns it. The first ``channels / 2``
            pairs of the block are the temporal ones. By default the block holds the temporal channels only.
        frequencies_from: function of the model that returns its frequencies in radians per position, where `theta` does
            not determine them: (pairs,), or (heads, pairs) where heads differ; 0 for pairs that are not temporal.
        step: function that returns the positions per latent frame, from the model and the arguments of its forward (by
            name, including defaults); 1 by default.
        trained_step: positions per latent frame in training, or a function of the model that returns them, where `step`
            depends on the frame rate. The trained length is then counted in positions, not in latent frames: a video of
            the trained number of frames at half the rate is too long.
        unit: what positions are, for messages.
        tables: name of the argument of the attention modules (or of an item or attribute of one, ``"video.pe"``) that
            holds the rotary tables, from which freeloc reads by
            how much the model really rotates. Known forms: cosines and sines, complex numbers, 2 x 2 matrices or
            angles; of each channel or each pair.
        tables_from: function of that argument that returns one of these forms, if it has another.
        table_rows: what a row of the tables is: a ``"token"``, or a temporal ``"position"``.
        present: attribute path that is false on models of the class that have no RoPE.
    """

    channels: int | str | Callable[[int], int]
    first: int = 0
    pairing: str = "(pair two)"
    theta: float | str = 10_000.0
    within: int | Callable[[int], int] | None = None
    frequencies_from: Callable[[Any], Tensor] | None = None
    step: Callable[[Any, Mapping[str, Any]], float] | None = None
    trained_step: float | Callable[[Any], float] | None = None
    unit: str = "latent frames"
    tables: str = ""
    tables_from: Callable[[Any], Any] | None = None
    table_rows: Literal["token", "position"] = "token"
    present: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        known = self.pairing in PAIRINGS or not self.pairing.startswith("(")
        require(known, "TemporalRope.pairing", f"{' or '.join(PAIRINGS)}, or an attribute path", self.pairing)

    def pairs(self, head_dim: int) -> int:
        """Number of temporal pairs of a head."""
        count = _of_head_dim("channels", self.channels, head_dim) if callable(self.channels) else int(self.channels)
        if count < 2 or count % 2 or self.first + count > head_dim:
            raise AdapterError(f"expected an even number of temporal channels within {head_dim}, found {count}")
        return count // 2

    def span(self, head_dim: int) -> tuple[int, int]:
        """First channel of the block of paired channels, and the channel after its last."""
        own = 2 * self.pairs(head_dim)
        block = _of_head_dim("within", self.within, head_dim) if callable(self.within) else self.within
        block = own if block is None else block
        if block < own or block % 2 or self.first + block > head_dim:
            raise AdapterError(
                f"expected {own} to {head_dim - self.first} paired channels, an even number, found {block}"
            )
        return self.first, self.first + block

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per position of each temporal pair, (pairs,) float64."""
        pairs = self.pairs(head_dim)
        return float(self.theta) ** (-torch.arange(pairs, dtype=torch.float64) / pairs)

    def resolved(self, head_dim: int) -> "TemporalRope":
        """The same for one head_dim, in numbers; without functions."""
        start, stop = self.span(head_dim)
        own, block = 2 * self.pairs(head_dim), stop - start
        numbers = replace(self, channels=own, within=block, present=None)
        return replace(numbers, frequencies_from=None, step=None, trained_step=None, tables_from=None)

    def frequencies_of(self, model: nn.Module, head_dim: int) -> Tensor:
        """The frequencies of a model, float64 on the CPU: (pairs,), or (heads, pairs) where heads differ."""
        if self.frequencies_from is None:
            return self.frequencies(head_dim)
        read = self.frequencies_from(model).detach()
        if read.is_meta:
            raise AdapterError(
                f"the frequencies of this {type(model).__name__}'s RoPE are weights, and now offloaded or not loaded: "
                "patch it before offloading"
            )
        found = read.to("cpu", torch.float64)
        if found.ndim not in (1, 2) or found.shape[-1] != self.pairs(head_dim) or not found.isfinite().all():
            raise AdapterError(
                f"expected finite frequencies for {self.pairs(head_dim)} pairs, or (heads, {self.pairs(head_dim)}), "
                f"found shape {tuple(found.shape)}"
            )
        return found


def _of_head_dim(field: str, rule: Callable[[int], int], head_dim: int) -> int:
    expected = f"a function from head_dim, here {head_dim}, to a whole number"
    remedy = "if an attribute of the model holds it, give its path, such as 'config.rope_dim'"
    try:
        found = rule(head_dim)
    except (AttributeError, TypeError) as error:
        require(False, f"TemporalRope.{field}", expected, error, remedy)
    require(isinstance(found, int), f"TemporalRope.{field}", expected, found, remedy)
    return found
