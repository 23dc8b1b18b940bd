"""Finds the wrong field of a TemporalRope, from queries and keys of equal frames."""

from dataclasses import replace

import einops
import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import MOST_ROUNDING
from freeloc.attention.rotation import rotate
from freeloc.testing.cases import SiteCall


def rotation_problem(call: SiteCall, tolerance: float) -> str:
    """What is wrong with the described rotation between equal frames; empty if nothing is."""
    if call.rope is None:
        return ""
    error = max(_error(call.video(tensor), call.rope, call.frequencies) for tensor in (call.query, call.key))
    if error <= tolerance:
        still = max(_error(call.video(tensor), call.rope, 0 * call.frequencies) for tensor in (call.query, call.key))
        return too_small("rotation", still, tolerance)
    frames = call.video(call.key).double()
    hint = (
        _channels(frames, call.rope)
        or _pairing(frames, call.rope)
        or _frequencies(_pairs(frames, call.rope), call.frequencies)
    )
    return f"the rotation differs from the model's own by {error:.1e} of the largest; {hint}{or_rounds(error)}"


def or_rounds(error: float) -> str:
    """A hint that an error may be the model's own rounding; empty if it is too large for that."""
    return "; or it rounds by that much itself: then say so with Adapter.rounding" if error <= MOST_ROUNDING else ""


def too_small(kind: str, size: float, tolerance: float) -> str:
    """Why what is checked cannot be told from rounding; empty if it is large enough."""
    if size >= 10 * tolerance:
        return ""
    return (
        f"the {kind} is {size:.1e} of the largest value, less than ten times the tolerance of {tolerance:.1e}, so a "
        "wrong one could not be told from rounding: give Example.tolerance and Adapter.rounding no more than the model "
        "rounds, and the example a stronger attention"
    )


def _error(frames: Tensor, rope: TemporalRope, frequencies: Tensor) -> float:
    """Error of frames 2, 3 ... computed from frame 1 by the described rotation. Frame 0 may have another distance."""
    later = torch.arange(frames.shape[2] - 2, dtype=torch.float64) + 1
    angles = (later[:, None] * frequencies[..., None, :])[..., None, :]  # ([heads,] frames, 1, pairs)
    base = frames[:, :, 1:2].double().expand(-1, -1, len(later), -1, -1)
    rotated = rotate(base, torch.polar(torch.ones_like(angles), angles), rope.span(frames.shape[-1]), rope.pairing)
    return float((rotated - frames[:, :, 2:]).abs().max() / frames.abs().max())


def _channels(frames: Tensor, rope: TemporalRope) -> str:
    """A hint if the channels that change from frame to frame are not those described."""
    head_dim = frames.shape[-1]
    change = (frames[:, :, 2:] - frames[:, :, 1:2]).abs().amax(dim=(0, 1, 2, 3))
    found = (change > 1e-3 * change.max()).nonzero().flatten().tolist()
    first, stop = rope.span(head_dim)
    names = einops.rearrange(torch.arange(first, stop), f"{rope.pairing} -> pair two", two=2)
    described = sorted(names[: rope.pairs(head_dim)].flatten().tolist())
    if set(found) <= set(described):
        return ""
    return f"channels: the rotated ones of a head are {_ranges(found)}, the adapter describes {_ranges(described)}"


def _pairing(frames: Tensor, rope: TemporalRope) -> str:
    """A hint if the described pairs do not keep their length, and whether the other pairing does."""
    if _stretch(frames, rope) < 1e-2:
        return ""
    other = replace(rope, pairing="(two pair)" if rope.pairing == "(pair two)" else "(pair two)")
    if _stretch(frames, other) < 1e-2:
        return f"pairing: the described {rope.pairing} does not fit, {other.pairing} does"
    return f"pairing, channels: the pairs {rope.pairing} of channels {rope.span(frames.shape[-1])} are not rotated"


def _frequencies(pairs: Tensor, frequencies: Tensor) -> str:
    """A hint about the frequencies, given that these pairs (batch, heads, frames, tokens, pairs) are right."""
    found = (pairs[:, :, 2] * pairs[:, :, 1].conj()).sum(dim=(0, 2)).angle()  # (heads, pairs)
    described = frequencies.expand_as(found)
    worst = int((found - described).abs().amax(dim=0).argmax())
    text = f"pair {worst} rotates by {found[0, worst]:.4g} radians per frame, described {described[0, worst]:.4g}"
    base = found.mean(dim=0).clamp(min=1e-12)
    theta = float((base[0] / base[1]) ** len(base)) if len(base) > 1 else 0.0
    return f"theta, step, frequencies: {text}; with one base for all pairs, theta={theta:.4g} and step={base[0]:.4g}"


def _pairs(frames: Tensor, rope: TemporalRope) -> Tensor:
    block = frames[..., slice(*rope.span(frames.shape[-1]))]
    pairs = einops.rearrange(block, f"... {rope.pairing} -> ... pair two", two=2)[
        ..., : rope.pairs(frames.shape[-1]), :
    ]
    return torch.complex(pairs[..., 0], pairs[..., 1])


def _stretch(frames: Tensor, rope: TemporalRope) -> float:
    """How much the lengths of pairs change from frame to frame, as a share of the largest."""
    lengths = _pairs(frames, rope).abs()
    return float((lengths[:, :, 2:] - lengths[:, :, 1:2]).abs().max() / lengths.max())


def _ranges(channels: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    parts: list[list[int]] = []
    for channel in channels:
        if parts and parts[-1][-1] == channel - 1:
            parts[-1].append(channel)
        else:
            parts.append([channel])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
