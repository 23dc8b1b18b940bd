"""FramePlan: a correction of one layer's attention, as small tables over pairs of latent frames."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from freeloc.errors import FreelocError

NONE, STRIPED, DENSE = 0, 1, 2
"""Values of `FramePlan.visibility`."""


def relative_positions(frames: int) -> Tensor:
    """True relative positions i - j of query frame i and key frame j, (frames, frames) float64.

    >>> relative_positions(3)
    tensor([[ 0., -1., -2.],
            [ 1.,  0., -1.],
            [ 2.,  1.,  0.]], dtype=torch.float64)
    """
    if frames < 1:
        raise FreelocError(f"expected at least 1 latent frame, found {frames}")
    index = torch.arange(frames, dtype=torch.float64)
    return index[:, None] - index[None, :]


@dataclass(frozen=True, eq=False)
class FramePlan:
    """For each pair of frames: the relative position at which they attend, and which of their tokens attend.

    >>> plan = FramePlan.identity(3)
    >>> plan.frames, plan.is_identity, plan.largest_position
    (3, True, 2.0)

    Args:
        positions: (frames, frames) float64; the temporal relative position of query frame i and key frame j under the
            plan, in latent frames. Fractions are allowed.
        visibility: the frame mask, (frames, frames) uint8; 0 not attended, 1 striped (only tokens near each other in
            raster order), 2 dense.
        stripe: half-width of a stripe as a share of a frame's tokens. Tokens k and l of a striped pair attend to each
            other where ``|k - l| < stripe_tokens(tokens_per_frame)``.
        frequencies: maps the temporal frequencies of the model's RoPE, (pairs,) float64 radians per latent frame,
            highest first, to new ones; by default they are unchanged.
        logit_scale: factor on all logits; or a function from the tokens of a frame to it, for rules that count tokens.
            A frozen dataclass with ``__call__`` can be compared and pickled.
        decay: (frames, frames) float64; factor on the positive logits of each pair; None means 1 everywhere.
        bias: (frames, frames) float64; added to the logits of each pair after all factors; None means 0 everywhere.
            A bias of log w counts the tokens of a key frame w times. Text tokens have none.
        positions_optional: whether the positions only limit distances to the trained range. Such a plan also runs on a
            model without RoPE, where the positions have no effect.

    Raises:
        FreelocError: if the tables have different sizes or invalid values, or a frame attends to no frame.
    """

    positions: Tensor
    visibility: Tensor
    stripe: float = 0.125
    frequencies: Callable[[Tensor], Tensor] | None = None
    logit_scale: float | Callable[[int], float] = 1.0
    decay: Tensor | None = None
    bias: Tensor | None = None
    positions_optional: bool = False
    is_identity: bool = field(init=False)

    def __post_init__(self) -> None:
        positions, visibility = self.positions, self.visibility
        if not isinstance(positions, Tensor) or not isinstance(visibility, Tensor):
            raise FreelocError(
                f"expected positions and visibility as tensors, found {type(positions).__name__} and "
                f"{type(visibility).__name__}"
            )
        frames = len(positions)
        if positions.shape != (frames, frames) or visibility.shape != (frames, frames) or frames == 0:
            raise FreelocError(
                "expected positions and visibility of the same shape (frames, frames), "
                f"found {tuple(positions.shape)} and {tuple(visibility.shape)}"
            )
        if positions.dtype != torch.float64 or visibility.dtype != torch.uint8:
            raise FreelocError(
                f"expected float64 positions and uint8 visibility, found {positions.dtype} and {visibility.dtype}"
            )
        if not positions.isfinite().all():
            raise FreelocError("expected finite positions, found nan or inf")
        if visibility.max() > DENSE:
            raise FreelocError(f"expected visibility 0, 1 or 2, found {visibility.max()}")
        if not 0 < self.stripe <= 1:
            raise FreelocError(f"expected a stripe in (0, 1], found {self.stripe}")
        if not callable(self.logit_scale):
            _check_scale(self.logit_scale)
        self._check_table("decay", self.decay)
        if self.decay is not None and not (self.decay.isfinite() & (self.decay >= 0)).all():
            raise FreelocError("expected finite decay of at least 0, found another value")
        self._check_table("bias", self.bias)
        if self.bias is not None and not self.bias.isfinite().all():
            raise FreelocError("expected finite bias, found nan or inf: hide a pair with visibility 0")
        blind = (visibility == NONE).all(dim=1)
        if blind.any():
            raise FreelocError(f"frame {int(blind.nonzero()[0])} attends to no frame: its attention is undefined")
        plain = self.frequencies is None and self.logit_scale == 1
        alike = (self.decay is None or (self.decay == 1).all()) and (self.bias is None or (self.bias == 0).all())
        untouched = (visibility == DENSE).all() and torch.equal(positions, relative_positions(frames))
        object.__setattr__(self, "is_identity", bool(plain and alike and untouched))

    def _check_table(self, name: str, table: Tensor | None) -> None:
        if table is None:
            return
        if table.shape != self.positions.shape or table.dtype != torch.float64:
            raise FreelocError(
                f"expected {name} as float64 of shape {tuple(self.positions.shape)}, found {table.dtype} of shape "
                f"{tuple(table.shape)}"
            )

    @classmethod
    def identity(cls, frames: int) -> "FramePlan":
        """The plan that changes nothing."""
        return cls(relative_positions(frames), torch.full((frames, frames), DENSE, dtype=torch.uint8))

    def same_as(self, other: "FramePlan") -> bool:
        """Whether both plans are equal.

        >>> FramePlan.identity(3).same_as(FramePlan.identity(3)), FramePlan.identity(3).same_as(FramePlan.identity(4))
        (True, False)
        """
        numbers = (self.stripe, self.logit_scale, self.frequencies, self.positions_optional) == (
            other.stripe,
            other.logit_scale,
            other.frequencies,
            other.positions_optional,
        )
        names = ("positions", "visibility", "decay", "bias")
        tables = [(getattr(self, name), getattr(other, name)) for name in names]
        return numbers and all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in tables)

    @property
    def frames(self) -> int:
        """Number of latent frames."""
        return len(self.positions)

    @property
    def largest_position(self) -> float:
        """Largest relative position of any attended pair, in latent frames."""
        return float(self.positions[self.visibility != NONE].abs().max())

    def stripe_tokens(self, tokens_per_frame: int) -> int:
        """Half-width of a stripe in tokens, at least 1.

        >>> FramePlan.identity(1).stripe_tokens(1560)
        195
        """
        return max(1, math.ceil(self.stripe * tokens_per_frame))

    def scale_at(self, tokens_per_frame: int) -> float:
        """The factor on all logits for frames of so many tokens: see `logit_scale`.

        >>> FramePlan.identity(1).scale_at(1560)
        1.0

        Raises:
            FreelocError: if a function gives no finite number above 0.
        """
        if not callable(self.logit_scale):
            return self.logit_scale
        scale = self.logit_scale(tokens_per_frame)
        _check_scale(scale, f" at {tokens_per_frame} tokens per frame")
        return float(scale)

    def token_mask(self, tokens_per_frame: int) -> Tensor:
        """Which token attends to which, (frames * tokens, frames * tokens) bool. It is large: for tests and plots only.

        >>> FramePlan.identity(2).token_mask(3).shape
        torch.Size([6, 6])
        """
        token = torch.arange(tokens_per_frame)
        near = (token[:, None] - token[None, :]).abs() < self.stripe_tokens(tokens_per_frame)
        pairs = self.visibility[:, None, :, None]  # (frames, 1, frames, 1)
        mask = (pairs == DENSE) | ((pairs == STRIPED) & near[None, :, None, :])
        return mask.reshape(self.frames * tokens_per_frame, self.frames * tokens_per_frame)

    def density(self, tokens_per_frame: int) -> float:
        """Share of all token pairs that are attended, 0..1.

        >>> FramePlan.identity(4).density(tokens_per_frame=10)
        1.0
        """
        reach = min(self.stripe_tokens(tokens_per_frame), tokens_per_frame)
        in_stripe = tokens_per_frame + 2 * sum(tokens_per_frame - offset for offset in range(1, reach))
        dense, striped = int((self.visibility == DENSE).sum()), int((self.visibility == STRIPED).sum())
        return (dense * tokens_per_frame**2 + striped * in_stripe) / (self.frames * tokens_per_frame) ** 2


def _check_scale(scale: object, where: str = "") -> None:
    if not isinstance(scale, Real) or not 0 < float(scale) < math.inf:
        raise FreelocError(f"expected a finite logit_scale above 0{where}, found {scale}")
