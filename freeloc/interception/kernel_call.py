"""One call of a model's attention kernel, read as its adapter's `Kernel` describes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from freeloc.adapter.kernel import Kernel
from freeloc.adapter.paths import argument_at
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
    given = dict(zip(kernel.arguments, args, strict=False)) | dict(kwargs)
    if other := [name for name in given if name not in kernel.arguments]:
        raise LayoutError(
            f"expected its attention to be called with {kernel.arguments}, found also {', '.join(map(str, other))}: if "
            "it does not change the result, name it in Kernel.arguments, else in Kernel.neutral too"
        )
    return given


def kernel_of(kernels: Sequence[Kernel], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kernel:
    """The first description that fits a call.

    Raises:
        LayoutError: if there are several, and none fits.
    """
    if len(kernels) == 1:
        return kernels[0]
    unmet = [_unmet(kernel, arguments_of(kernel, args, kwargs)) for kernel in kernels]
    for kernel, problem in zip(kernels, unmet, strict=True):
        if not problem:
            return kernel
    raise LayoutError("; or ".join(unmet))


def read_call(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> KernelCall:
    """Read the arguments of a kernel's call.

    Raises:
        LayoutError: if an argument has a value that freeloc does not support, or arguments are missing.
    """
    given = arguments_of(kernel, args, kwargs)
    if problem := _unmet(kernel, given):
        raise LayoutError(problem)
    names = (kernel.query, kernel.key, kernel.value)
    if missing := [name for name in names if _read(given, name) is None]:
        raise LayoutError(f"expected {missing} among the arguments of its attention, found {[*given]}")
    query, key, value = _heads_apart(kernel, given)
    valid, mask = _read(given, kernel.valid_keys), _read(given, kernel.mask)
    if (ends := _read(given, kernel.segments)) is not None:
        valid = ends[1::2] - ends[0:-1:2]
    if mask is not None and kernel.mask_axes and mask.ndim == len(kernel.mask_axes.split()):
        mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None]
    return KernelCall(query, key, value, mask, valid, _read(given, kernel.scale))


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


def _heads_apart(kernel: Kernel, given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as (batch, heads, tokens, head_dim)."""
    query, key, value = (_read(given, name) for name in (kernel.query, kernel.key, kernel.value))
    axes = 3 if kernel.heads else 4
    for name, tensor in ((kernel.query, query), (kernel.key, key), (kernel.value, value)):
        if not isinstance(tensor, Tensor) or tensor.ndim != axes:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise LayoutError(f"expected {name} ({kernel.layout}) among the arguments of its attention, found {shape}")
    if kernel.heads:
        heads, channels = _read(given, kernel.heads), query.shape[2]
        if not isinstance(heads, int | Tensor) or int(heads) < 1 or channels % int(heads):
            raise LayoutError(f"expected {kernel.heads}, the number of heads of {channels} channels, found {heads!r}")
        query = query.unflatten(2, (int(heads), -1))
        key_heads, rest = divmod(key.shape[2], query.shape[3])
        if rest or value.shape[2] % max(key_heads, 1):
            found = f"{key.shape[2]} of {kernel.key} and {value.shape[2]} of {kernel.value}"
            raise LayoutError(f"expected {channels} channels of keys and values in its attention, found {found}")
        key, value = key.unflatten(2, (key_heads, -1)), value.unflatten(2, (key_heads, -1))
    if kernel.layout != "b h l d":
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if not query.shape[1] == key.shape[1] == value.shape[1]:
        raise LayoutError(
            f"expected as many heads of keys and values as of queries ({kernel.layout}), found {query.shape[1]} of "
            f"queries, {key.shape[1]} of keys and {value.shape[1]} of values: freeloc does not support grouped-query "
            "attention"
        )
    return query, key, value


def as_output(kernel: Kernel, out: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim) as the kernel would have returned it."""
    layout = kernel.output or kernel.layout
    out = out if layout == "b h l d" else out.transpose(1, 2)
    return out.flatten(2) if layout == "b l (h d)" else out


def of_sample(call: KernelCall, sample: int, tokens: int) -> KernelCall:
    """One sample of a batch, without the padding after its first tokens."""
    query, key, value = (tensor[sample : sample + 1, :, :tokens] for tensor in call[:3])
    mask = call.mask
    if mask is not None and mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[sample : sample + 1]
    if mask is not None:
        mask = mask[..., :tokens] if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., :tokens, :tokens]
    return KernelCall(query, key, value, mask, None, call.scale)
