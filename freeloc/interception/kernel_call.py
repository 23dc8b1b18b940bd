"""One call of a model's attention kernel: read as its adapter's `Kernel` describes it, and shown to who observes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import Kernel
from freeloc.attention.engine import TokenLayout
from freeloc.errors import LayoutError


class KernelCall(NamedTuple):
    """Arguments of the call; query, key and value as (batch, heads, tokens, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    valid: Tensor | None
    """Valid leading keys of each sample, (batch,)."""
    scale: float | None


class SeenAttention(NamedTuple):
    """One attention call, before any correction: (batch, heads, tokens, head_dim), rotated by the model."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    layout: TokenLayout
    mask: Tensor | None
    scale: float | None
    rope: TemporalRope | None
    frequencies: Tensor
    """Of the temporal pairs, in radians per latent frame, (pairs,) or (heads, pairs)."""


Observer = Callable[[SeenAttention], None]


def read_call(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> KernelCall:
    """What the kernel was called with.

    Raises:
        LayoutError: if it was to do what the engine does not do, or arguments are missing.
    """
    given = dict(zip(kernel.arguments, args, strict=False)) | dict(kwargs)
    for name, neutral in kernel.neutral.items():
        if given.get(name, neutral) != neutral:
            raise LayoutError(f"expected {name}={neutral} in its attention, found {given[name]}")
    names = (kernel.query, kernel.key, kernel.value)
    if missing := [name for name in names if name not in given]:
        raise LayoutError(f"expected {missing} among the arguments of its attention, found {[*given]}")
    query, key, value = (given[name] for name in names)
    if kernel.layout == "b l h d":
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    valid = given.get(kernel.valid_keys) if kernel.valid_keys else None
    if kernel.segments and given.get(kernel.segments) is not None:
        ends = given[kernel.segments]
        valid = ends[1::2] - ends[0:-1:2]
    mask = given.get(kernel.mask) if kernel.mask else None
    return KernelCall(query, key, value, mask, valid, given.get(kernel.scale) if kernel.scale else None)


def as_output(kernel: Kernel, out: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim) as the kernel would have returned it."""
    out = out.transpose(1, 2) if kernel.layout == "b l h d" else out
    return out.flatten(2) if kernel.output == "b l (h d)" else out
