"""Settings of `freeloc.plans.combined`: parts that are chosen on their own, and their short names."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from freeloc.plans.smooth import Curve
from freeloc.plans.tsa import Frames, TsaSettings
from freeloc.plans.vrpr import VrprPart


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TruePositions(_Part):
    """Positions as they are, also beyond the trained range."""

    kind: Literal["true"] = "true"


class VrprPositions(_Part):
    """VRPR.

    Attributes:
        settings: by default those of the profile.
    """

    kind: Literal["vrpr"] = "vrpr"
    settings: VrprPart | None = None


class ClippedPositions(_Part):
    """Distances limited to the largest one (Shaw et al., arXiv 1803.02155).

    Attributes:
        distance: in latent frames; by default the largest trained distance, and never more than that.
    """

    kind: Literal["clip"] = "clip"
    distance: Frames | None = None


class SmoothPositions(_Part):
    """See `freeloc.plans.smooth.smooth_positions`.

    Attributes:
        near_frames: up to this distance positions are exact; by default half the largest trained distance.
        curve: ``"linear"`` or ``"logarithmic"``.
    """

    kind: Literal["smooth"] = "smooth"
    near_frames: Frames | None = None
    curve: Curve = "logarithmic"


Positions = Annotated[TruePositions | VrprPositions | ClippedPositions | SmoothPositions, Field(discriminator="kind")]


class AllFrames(_Part):
    """Every frame attends to every frame."""

    kind: Literal["all"] = "all"


class Window(_Part):
    """See `freeloc.plans.windows.window_visibility`.

    Attributes:
        frames: frames that each frame attends to, itself included; by default the trained length.
        sink_frames: first frames, which every frame attends to.
        anchor_every: every frame also attends to one of so many frames; by default to none.
        anchor_offset: the first of these.
    """

    kind: Literal["window"] = "window"
    frames: Annotated[int, Field(ge=1, le=10**9)] | None = None
    sink_frames: Frames = 0
    anchor_every: Annotated[int, Field(ge=1, le=10**9)] | None = None
    anchor_offset: Frames = 0


class Tiers(_Part):
    """TSA.

    Attributes:
        settings: by default those of the profile.
    """

    kind: Literal["tsa"] = "tsa"
    settings: TsaSettings | None = None


Attention = Annotated[AllFrames | Window | Tiers, Field(discriminator="kind")]


class Slope(_Part):
    """See `freeloc.plans.logits.slope_bias`.

    Attributes:
        per_frame: what the logits of a pair lose with each frame of distance.
        near_frames: up to this distance nothing; by default the largest trained distance.
    """

    per_frame: Annotated[float, Field(ge=0, le=100)]
    near_frames: Frames | None = None


class Temperature(_Part):
    """Factors on all logits, which make attention sharper: see `freeloc.plans.logits.LogarithmOfKeys`.

    Attributes:
        factor: the same at every length.
        strength: that of the rule for the number of keys; 0 for none.
    """

    factor: Annotated[float, Field(gt=0, le=100)] = 1.0
    strength: Annotated[float, Field(ge=0, le=100)] = 0.0


Share = Annotated[float, Field(ge=0, le=1)]


class CombinedSettings(_Part):
    """Parts that do not depend on each other.

    >>> CombinedSettings(attention=Window(frames=8, sink_frames=1), balance=0.25).attention
    Window(kind='window', frames=8, sink_frames=1, anchor_every=None, anchor_offset=0)

    Attributes:
        positions: at which relative positions frames attend; by default VRPR's.
        attention: which frames attend to each other; by default all.
        balance: how much frames that share a position lose, 0 to 1: see `freeloc.plans.logits.balance_bias`.
        slope: what logits lose with distance; by default nothing.
        temperature: factors on all logits; by default none.
    """

    positions: Positions = VrprPositions()
    attention: Attention = AllFrames()
    balance: Share = 0.0
    slope: Slope | None = None
    temperature: Temperature = Temperature()


class BalancedSettings(_Part):
    """Settings of the rule that needs no tuning.

    Attributes:
        vrpr: how positions are re-encoded; by default as the profile says.
        balance: how much frames that share a position lose, 0 to 1.
        factor: factor on all logits.
    """

    vrpr: VrprPart = VrprPart()
    balance: Share = 0.25
    factor: Annotated[float, Field(gt=0, le=100)] = 1.05


def combined_label(settings: CombinedSettings) -> str:
    """The parts in a few words.

    >>> combined_label(CombinedSettings(attention=Window(frames=8, sink_frames=1), balance=0.25))
    'vrpr, window 8 + first 1, balance 0.25'
    """
    words = [_label_of_positions(settings.positions), _label_of_attention(settings.attention)]
    words += [f"balance {settings.balance:g}"] if settings.balance else []
    words += [f"slope {settings.slope.per_frame:g}"] if settings.slope and settings.slope.per_frame else []
    words += [f"x {settings.temperature.factor:g}"] if settings.temperature.factor != 1 else []
    words += [f"log n x {settings.temperature.strength:g}"] if settings.temperature.strength else []
    return ", ".join(word for word in words if word)


def _label_of_positions(part: Positions) -> str:
    match part:
        case ClippedPositions(distance=distance) if distance is not None:
            return f"clip {distance}"
        case SmoothPositions(near_frames=near, curve=curve):
            return f"{curve}{'' if near is None else f' from {near}'}"
    return part.kind


def _label_of_attention(part: Attention) -> str:
    match part:
        case Window():
            words = ["window" if part.frames is None else f"window {part.frames}"]
            words += [f"first {part.sink_frames}"] if part.sink_frames else []
            words += [f"every {part.anchor_every}"] if part.anchor_every else []
            return " + ".join(words)
        case Tiers(settings=own):
            return "tsa" if own is None else f"tsa {own.dense_frames}/{own.striped_frames}"
    return ""


def balanced_label(settings: BalancedSettings) -> str:
    """The settings in a few words.

    >>> balanced_label(BalancedSettings())
    'vrpr, balance 0.25, x 1.05'
    """
    return combined_label(CombinedSettings(balance=settings.balance, temperature=Temperature(factor=settings.factor)))
