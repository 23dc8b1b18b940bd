"""One call of a model's attention kernel, read as its adapter's `Kernel` describes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.adapter.kernel import SDPA, Kernel, parts
from freeloc.adapter.paths import argument_at
from freeloc.errors import LayoutError

Counts = tuple[int | None, ...]


class KernelCall(NamedTuple):
    """Arguments of the call; query, key and value as (batch, heads, tokens, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    valid: Tensor | None
    """Valid leading keys of each sample, (batch,)."""
    scale: float | None
    kernel: Kernel = SDPA
    """The description that fits the call."""
    counts: Counts = ()
    """Tokens of each part of a query that has several; None for a part that was left out."""


def arguments_of(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a kernel's call, by name.

    Raises:
        LayoutError: if the adapter does not name one of them.
    """
    if len(args) > len(kernel.arguments):
        raise LayoutError(
            f"expected at most {len(kernel.arguments)} arguments {kernel.arguments} of its attention, found "
            f"{len(args)}: name the others in Kernel.arguments"
        )
    given = {**dict(zip(kernel.arguments, args)), **kwargs}  # noqa: B905  # reason: docs/architecture.md
    if other := [name for name in given if name not in kernel.arguments]:
        raise LayoutError(
            f"expected its attention to be called with {kernel.arguments}, found also {', '.join(map(str, other))}: if "
            "it does not change the result, name it in Kernel.arguments, else in Kernel.neutral too"
        )
    return given


def read_call(
    kernels: Sequence[Kernel], args: Sequence[Any], kwargs: Mapping[str, Any], text: str = "none"
) -> KernelCall:
    """Read the arguments of a kernel's call.

    Args:
        kernels: descriptions of the kernel, of which the first that fits is taken.
        args, kwargs: the arguments.
        text: where text is in the sequence, see `AttentionSite`.

    Raises:
        LayoutError: if an argument has a value that freeloc does not support, or arguments are missing.
    """
    problems = []
    for kernel in kernels:
        given = arguments_of(kernel, args, kwargs)
        if not (problem := _unmet(kernel, given)):
            break
        problems.append(problem)
    else:
        raise LayoutError("; or ".join(problems))
    (query, key, value), counts = _joined(kernel, given)
    valid, mask = _read(given, kernel.valid_keys), _read(given, kernel.mask)
    if kernel.segments and (ends := _read(given, kernel.segments)) is not None:
        valid = ends[1::2] - ends[0:-1:2]
    if kernel.mask_axes and mask is not None:
        mask = _broadcasting(mask, kernel.mask_axes, key.shape[2], text)
    return KernelCall(query, key, value, mask, valid, _read(given, kernel.scale), kernel, counts)


def _unmet(kernel: Kernel, given: Mapping[str, Any]) -> str:
    """How the values of arguments differ from those that the adapter names; empty if they do not."""
    for name, expected in (*kernel.required.items(), *kernel.neutral.items()):
        found = argument_at(given, name, is_optional=True) if "." in name else given.get(name, _LEFT_OUT)
        may_miss = name in kernel.neutral and (found is _LEFT_OUT or ("." in name and found is None))
        if not (may_miss or _equals(found, expected)):
            shown = "a tensor" if isinstance(found, Tensor) else "it left out" if found is _LEFT_OUT else found
            return f"expected {name}={expected} in its attention, found {shown}"
    return ""


_LEFT_OUT = object()


def _equals(found: Any, expected: object) -> bool:
    if isinstance(found, Tensor):
        return found is expected or (expected is not None and found.numel() == 1 and bool(found == expected))
    return bool(found == expected)


def _read(given: Mapping[str, Any], name: str | None) -> Any:
    """The value of an argument, or of an item of one; None if it is not given."""
    if name is None:
        return None
    return argument_at(given, name) if "." in name else given.get(name)


def _joined(kernel: Kernel, given: Mapping[str, Any]) -> tuple[tuple[Tensor, Tensor, Tensor], Counts]:
    """Query, key and value as (batch, heads, tokens, head_dim), and the numbers of tokens of their parts."""
    heads = _read(given, kernel.heads)
    if isinstance(kernel.query, str):
        return _heads_apart(kernel, given, (kernel.query, kernel.key, kernel.value), heads), ()  # type: ignore[arg-type]  # reason: the adapter gives all three as many names
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    counts: list[int | None] = []
    for part in zip(parts(kernel.query), parts(kernel.key), parts(kernel.value), strict=True):
        is_absent = bool(found) and all(_read(given, name) is None for name in part)
        if not is_absent:
            found.append(_heads_apart(kernel, given, part, heads))
        counts.append(None if is_absent else found[-1][0].shape[2])
    for tensors in zip(*found, strict=True):
        if len({(*tensor.shape[:2], tensor.shape[3]) for tensor in tensors}) > 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise LayoutError(f"expected parts of queries, keys and values that differ in tokens only, found {shapes}")
    query, key, value = (torch.cat(tensors, dim=2) for tensors in zip(*found, strict=True))
    return (query, key, value), tuple(counts)


def _heads_apart(
    kernel: Kernel, given: Mapping[str, Any], names: tuple[str, str, str], heads: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with these names as (batch, heads, tokens, head_dim)."""
    query, key, value = (_read(given, name) for name in names)
    if missing := [name for name in names if _read(given, name) is None]:
        raise LayoutError(f"expected {missing} among the arguments of its attention, found {[*given]}")
    for name, tensor in zip(names, (query, key, value), strict=True):
        if not isinstance(tensor, Tensor) or tensor.ndim != (3 if kernel.heads else 4):
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise LayoutError(f"expected {name} ({kernel.layout}) among the arguments of its attention, found {shape}")
    if kernel.heads:
        query, key, value = _split(kernel, query, key, value, heads)
    if kernel.layout != "b h l d":
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if not query.shape[1] == key.shape[1] == value.shape[1]:
        raise LayoutError(
            f"expected as many heads of keys and values as of queries ({kernel.layout}), found {query.shape[1]} of "
            f"queries, {key.shape[1]} of keys and {value.shape[1]} of values: freeloc does not support grouped-query "
            "attention"
        )
    return query, key, value


def _split(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, heads: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, tokens, channels) as (batch, tokens, heads, head_dim)."""
    channels = query.shape[2]
    if not isinstance(heads, (int, Tensor)) or int(heads) < 1 or channels % int(heads):
        raise LayoutError(f"expected {kernel.heads}, the number of heads of {channels} channels, found {heads!r}")
    query = query.unflatten(2, (int(heads), -1))
    key_heads, rest = divmod(key.shape[2], query.shape[3])
    if rest or value.shape[2] % max(key_heads, 1):
        found = f"{key.shape[2]} of keys and {value.shape[2]} of values"
        raise LayoutError(f"expected {channels} channels of keys and values in its attention, found {found}")
    return query, key.unflatten(2, (key_heads, -1)), value.unflatten(2, (key_heads, -1))


def _broadcasting(mask: Tensor, axes: str, keys: int, text: str) -> Tensor:
    """A mask with these axes, so that it broadcasts to (batch, heads, queries, keys)."""
    if mask.ndim != len(axes.split()):
        return mask
    if not mask.is_floating_point():
        mask = mask.bool()
    if axes == "b t":
        video = keys - mask.shape[1]
        mask = F.pad(mask, (video, 0) if text == "last" else (0, video), value=0 if mask.is_floating_point() else 1)
    return mask[:, None] if mask.ndim == 3 else mask[:, None, None]


def as_output(call: KernelCall, out: Tensor) -> Any:
    """(batch, heads, tokens, head_dim) as the kernel would have returned it."""
    kernel, counts = call.kernel, call.counts
    layout = kernel.output or kernel.layout
    out = out if layout == "b h l d" else out.transpose(1, 2)
    out = out.flatten(2) if layout == "b l (h d)" else out
    if not kernel.output_parts:
        return out
    found = iter(out.split([count for count in counts if count is not None], dim=2 if layout == "b h l d" else 1))
    return tuple(None if count is None else next(found) for count in counts)


def of_sample(call: KernelCall, sample: int, tokens: int) -> KernelCall:
    """One sample of a batch, without the padding after its first tokens."""
    query, key, value = (tensor[sample : sample + 1, :, :tokens] for tensor in call[:3])
    mask = call.mask
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[sample : sample + 1]
    if mask is not None:
        mask = mask[..., :tokens] if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., :tokens, :tokens]
    return KernelCall(query, key, value, mask, None, call.scale)
