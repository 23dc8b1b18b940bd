"""attend_layer: the attention of one layer under a plan, without hooks."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention import Backend, LayerPlan, LayerPlans, TokenLayout, attend
from freeloc.attention.devices import OnCpu
from freeloc.errors import FreelocError, LayoutError
from freeloc.patching import backends_named
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Plans
from freeloc.profile.planning import plans_of_call
from freeloc.profile.schema import Profile

LayerChoice = Profile | FramePlan | Sequence[FramePlan]
"""What determines the plan of a layer: a profile, one plan for all heads, or one plan for each head of the model."""

MOST_PLANS = 256
"""Largest number of prepared plans in the cache."""


def attend_layer(
    profile_or_plan: LayerChoice,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: tuple[int, int, int],
    rope: TemporalRope | None,
    text_first: int = 0,
    text_last: int = 0,
    heads: Sequence[int] | None = None,
    frequencies: Tensor | None = None,
    positions_per_frame: float = 1.0,
    spacing: float = 1.0,
    reference_frames: tuple[int, int] = (0, 0),
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str | Backend = "auto",
) -> Tensor:
    """Compute what a patched model would compute in one layer, from its rotated queries and keys.

    >>> import torch, freeloc
    >>> from freeloc.adapter import TemporalRope
    >>> wan = freeloc.load_profile("wan2.1")
    >>> rope = TemporalRope(channels=lambda head_dim: head_dim - 4 * (head_dim // 6))
    >>> query, key, value = torch.randn(3, 1, 12, 41 * 2 * 3, 128)
    >>> freeloc.attend_layer(wan, 0, query, key, value, grid=(41, 2, 3), rope=rope).shape
    torch.Size([1, 12, 246, 128])

    Args:
        profile_or_plan: a profile, whose choice for this layer is used; or the `FramePlan` of this layer, or one for
            each head of the model. It is read once and cached: pass the same object in each call.
        layer: number of the layer in the profile.
        query, key, value: (batch, heads, tokens, head_dim): text, then the video frame by frame in raster order, then
            text, without padding; the model has already rotated queries and keys.
        grid: latent frames, rows and columns of video tokens.
        rope: which channels of a head the temporal RoPE rotates; None if the model has none.
        text_first, text_last: text tokens before and after the video.
        heads: indices of the model's heads that the tensors hold, such as ``range(6, 12)`` where several devices share
            the heads; by default all of them.
        frequencies: frequencies of the temporal pairs, in radians per position, (pairs,) or (heads of the model,
            pairs); by default those of `rope`.
        positions_per_frame: temporal positions per latent frame.
        spacing: distance between latent frames, as a multiple of that in training, for models whose positions are
            seconds. For a profile.
        reference_frames: latent frames at the start and at the end of the grid that are reference images. For a
            profile.
        mask: the model's attention mask, bool or additive, broadcastable to (batch, heads, tokens, tokens).
        scale: scale of the logits; by default head_dim ** -0.5.
        backend: as in `freeloc.patch`.

    Returns:
        (batch, heads, tokens, head_dim).

    Raises:
        LayoutError: if the numbers of tokens or heads do not match the grid or the profile.
        ProfileError: if the profile has no such layer.
        PatchError: if the plan changes positions and there is no RoPE.
    """
    if len(grid) != 3:
        raise LayoutError(f"expected grid to be latent frames, rows and columns of tokens, found {grid}")
    own = list(range(query.shape[1])) if heads is None else list(heads)
    if len(own) != query.shape[1] or min(own, default=-1) < 0:
        raise LayoutError(f"expected heads to number the {query.shape[1]} heads of the queries, found {own}")
    layout = TokenLayout(*grid, text_first, text_last)
    length = VideoLength(layout.frames, *reference_frames, spacing)
    everything = (layer, length, positions_per_frame, tuple(own), query.shape[-1], rope, id(frequencies))
    with _lock:
        plan = _prepared(profile_or_plan, heads is not None, frequencies, everything)
    return attend(query, key, value, plan, layout, mask, scale, backends_named(backend))


_plans: "OrderedDict[tuple[Any, ...], tuple[LayerPlan, Any]]" = OrderedDict()
# Global, since engines call a function. Each entry keeps the objects alive whose ids are in its key.
_lock = threading.Lock()


def _prepared(choice: LayerChoice, some: bool, frequencies: Tensor | None, everything: tuple[Any, ...]) -> LayerPlan:
    """The prepared plan of these heads, from the cache."""
    key = (id(choice), *everything)
    if key not in _plans:
        with OnCpu():
            _plans[key] = _made(choice, some, frequencies, *everything[:-1]), (choice, everything, frequencies)
        while len(_plans) > MOST_PLANS:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    return _plans[key][0]


def _made(
    choice: LayerChoice,
    some: bool,
    frequencies: Tensor | None,
    layer: int,
    length: VideoLength,
    positions_per_frame: float,
    heads: tuple[int, ...],
    head_dim: int,
    rope: TemporalRope | None,
) -> LayerPlan:
    """The prepared plan of these heads; `some` says whether the caller named them."""
    found = _plans_of(choice, layer, length)
    whole = choice.model.heads if isinstance(choice, Profile) else None
    whole = whole or (None if isinstance(found, FramePlan) else len(found))
    if whole is not None and (max(heads) >= whole or (not some and len(heads) != whole)):
        raise LayoutError(
            f"expected tensors with the model's {whole} heads, or heads=... to say which of them, found "
            f"{len(heads)} heads{f', up to number {max(heads)}' if some else ''}"
        )
    if not isinstance(found, FramePlan):
        found = [found[head] for head in heads]
    if frequencies is None:
        frequencies = torch.zeros(1, dtype=torch.float64) if rope is None else rope.frequencies(head_dim)
    own = frequencies if frequencies.ndim == 1 else frequencies[list(heads)]
    ready = LayerPlans(lambda _, __: found, ModelShape(1, len(heads), head_dim), rope, own.double().cpu())
    return ready.at(layer, length, positions_per_frame)


def _plans_of(choice: LayerChoice, layer: int, length: VideoLength) -> Plans:
    if isinstance(choice, Profile):
        return plans_of_call(choice, layer, length)
    several = [choice] if isinstance(choice, FramePlan) else choice
    if not isinstance(several, Sequence) or not several or not all(isinstance(plan, FramePlan) for plan in several):
        raise FreelocError(f"expected a Profile, a FramePlan, or a list of one per head, found {choice!r:.200}")
    return choice
