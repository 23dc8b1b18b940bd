"""One call of a model's attention kernel, read as its adapter's `Kernel` describes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from freeloc.adapter.site import Kernel
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


def read_call(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> KernelCall:
    """Read the arguments of a kernel's call.

    Raises:
        LayoutError: if an argument has a value that freeloc does not support, or arguments are missing.
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


def of_sample(call: KernelCall, sample: int, tokens: int) -> KernelCall:
    """One sample of a batch, without the padding after its first tokens."""
    query, key, value = (tensor[sample : sample + 1, :, :tokens] for tensor in call[:3])
    mask = call.mask
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[sample : sample + 1]
    if mask is not None:
        mask = mask[..., :tokens] if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., :tokens, :tokens]
    return KernelCall(query, key, value, mask, None, call.scale)
