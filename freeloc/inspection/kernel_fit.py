"""Describes a function as a `Kernel`, if what it returned is attention over some of the tensors that it was given."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.adapter.kernel import Kernel, Layout
from freeloc.adapter.paths import argument_at
from freeloc.interception.kernel_call import KernelCall, as_output, read_call

NEAR = 2e-2
"""Largest error of what a function returned, as a share of the largest value: some compute in bfloat16 inside."""

NAMES = re.compile(r"(q|query|queries)[a-z_]*$"), re.compile(r"(k|key|keys)[a-z_]*$"), re.compile(r"(v|val)[a-z_]*$")
LENGTHS = re.compile(r"k.*len|len.*k|seq_?len")
OTHER = re.compile(r"precision|option|backend|config|mode|version|dtype|implementation|deterministic|kwargs|compat")
"""Names of arguments that choose how attention is computed, not what."""

OUTPUTS: tuple[Literal["", "b h l d", "b l h d", "b l (h d)"], ...] = ("", "b h l d", "b l h d", "b l (h d)")


def described_kernel(
    given: Mapping[str, Any], defaults: Mapping[str, Any], out: Tensor, function: str
) -> Kernel | None:
    """The description of a function that returned attention; None if it returned anything else.

    Args:
        given: all arguments of the call, by name.
        defaults: the default values of arguments.
        out: what it returned.
        function: see `Kernel.function`.
    """
    tensors = {name: value for name, value in _tensors(given) if value.is_floating_point() and value.ndim in (3, 4)}
    for names in _triples(tensors):
        first = tensors[names[0]]
        heads = [name for name, value in given.items() if type(value) is int and _divides(value, first.shape[-1])]
        layouts: list[Layout] = ["b h l d", "b l h d"] if first.ndim == 4 else ["b l (h d)"]
        for layout, counter in product(layouts, heads if first.ndim == 3 else [None]):
            kernel = Kernel(function or "a.b:c", layout, tuple(given), "", *names, heads=counter)
            for fitting in _with_masks(kernel, given, names):
                found = _with_output(fitting, given, out)
                if found is not None:
                    return _with_values(found, given, defaults)
    return None


def _divides(heads: int, channels: int) -> bool:
    return 0 < heads < channels and channels % heads == 0


def _tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by the path of their argument."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{name}.{place}", part) for place, part in enumerate(value) if isinstance(part, Tensor))


def _triples(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Names of tensors that may be query, key and value: by their names, or the first three."""
    named = [next((name for name in tensors if pattern.match(name)), "") for pattern in NAMES]
    ways = [tuple(named), tuple(tensors)[:3]]
    for way in dict.fromkeys(ways):
        if len(set(way) - {""}) == 3:
            shapes = [tensors[name].shape for name in way]
            alike = len({(len(shape), shape[0]) for shape in shapes}) == 1 and shapes[1][:-1] == shapes[2][:-1]
            if alike and shapes[0][-1] == shapes[1][-1]:
                yield way[0], way[1], way[2]


def _with_masks(kernel: Kernel, given: Mapping[str, Any], used: tuple[str, str, str]) -> Iterator[Kernel]:
    """The kernel with each argument that may be a mask, or lengths of the keys; without one last."""
    batch = len(argument_at(given, used[0]))
    scales: list[str | None] = [name for name, value in given.items() if type(value) is float and value > 0]
    masks: list[dict[str, Any]] = [{}]
    for name, value in _tensors(given):
        if name not in used and value.ndim == 1 and len(value) == batch and not value.is_floating_point():
            masks.insert(0, {"valid_keys": name} if LENGTHS.search(name) else {})
        elif name not in used and value.ndim in (2, 3, 4):
            masks[:0] = [{"mask": name, "mask_axes": {3: "b q k", 2: "b k"}.get(value.ndim, "")}]
    for mask, scale in product(masks, [*scales, None]):
        yield replace(kernel, scale=scale, **mask)


def _read(kernel: Kernel, given: Mapping[str, Any]) -> KernelCall:
    return read_call((kernel,), (), given)


def _with_output(kernel: Kernel, given: Mapping[str, Any], out: Tensor) -> Kernel | None:
    """The kernel with the layout of its output, if that is attention; None if not."""
    try:
        call = _read(kernel, given)
        query, key, value = (tensor.double() for tensor in call[:3])
        mask = call.mask if call.mask is None or call.mask.dtype == torch.bool else call.mask.double()
        if call.valid is not None:
            mask = (torch.arange(key.shape[2]) < call.valid[:, None])[:, None, None]
        expected = F.scaled_dot_product_attention(query, key, value, mask, scale=call.scale)
    except (RuntimeError, ValueError, TypeError, IndexError):  # tensors that are no query, key, value and mask
        return None
    for output in OUTPUTS:
        found = replace(kernel, output=output)
        arranged = as_output(call._replace(kernel=found), expected)
        if output == kernel.layout or arranged.shape != out.shape or not arranged.isfinite().all():
            continue
        if (arranged - out.double()).abs().max() <= NEAR * arranged.abs().max().clamp(min=1e-12):
            return found
    return None


def _with_values(kernel: Kernel, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Kernel:
    """The kernel with the values that its other arguments must have, since nothing else was seen."""
    words = ("query", "key", "value", "mask", "scale", "valid_keys", "heads")
    roots = {str(getattr(kernel, word)).partition(".")[0] for word in words}
    neutral: dict[str, object] = {}
    required: dict[str, object] = {}
    for name, value in given.items():
        plain = isinstance(value, bool | int | float | str | type(None)) and name not in roots
        if plain and not OTHER.search(name):
            is_default = (name in defaults and defaults[name] is value) or defaults.get(name, _NONE) == value
            (neutral if is_default else required)[name] = value
    return replace(kernel, neutral=neutral, required=required)


_NONE = object()
