"""Finds attributes of a model that an adapter names: sizes, and the layers with which blocks run in parallel."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from freeloc.adapter.layers import layer_numbers
from freeloc.errors import AdapterError


def size_path(model: nn.Module, site: str, value: int, kind: Literal["heads", "head_dim"]) -> str | None:
    """An attribute path of the number of heads, or of channels per head, in the configuration, the model or a site.

    Args:
        model: the model.
        site: path of an attention module.
        value: the number.
        kind: what it counts.
    """
    of_site = vars(model.get_submodule(site))
    own = {name: getattr(model, name, None) for name in vars(model)}
    places = [("config.", config(model)), ("", own), (f"{site}.", of_site)]
    places += [(f"{name}.", _values(held)) for name, held in own.items() if not isinstance(held, nn.Module)]
    for name, module in model.get_submodule(site).named_modules():
        places.append((f"{site}.{name}." if name else f"{site}.", vars(module)))
    places += [(f"{name}.", vars(module)) for name, module in model.named_children()]
    for prefix, names in places:
        fitting = [
            name
            for name, number in names.items()
            if type(number) is int and number == value and "head" in name and ("dim" in name) == (kind == "head_dim")
        ]
        if fitting:  # a longer name may be that of another network, as in audio_num_heads
            return prefix + min(fitting, key=len)
    for name, parameter in model.get_submodule(site).named_parameters():
        if kind == "head_dim" and tuple(parameter.shape) == (value,):  # of a norm of queries or keys
            return f"{site}.{name}.shape.0"
    for name, module in model.named_children():  # the size of a rotary embedding is that of a head
        if kind == "head_dim" and re.search("rope|pe_|pos", name) and getattr(module, "dim", None) == value:
            return f"{name}.dim"
    return None


def patch_path(model: nn.Module, patch: tuple[int, int, int]) -> str | None:
    """An attribute path that holds the patch size."""
    for prefix, names in (("config.", config(model)), ("", vars(model))):
        for name, value in names.items():
            if "patch" in name and isinstance(value, list | tuple) and tuple(value) == patch:
                return f"{prefix}{name}"
    return None


def layers_path(model: nn.Module, path: str, blocks: int, layers: int) -> str:
    """An attribute path of the layers with which some blocks run in parallel; empty if no attribute holds them.

    It has a word in common with the path of the blocks, and gives each block a layer of its own.

    Args:
        model: the model.
        path: path of the blocks, ``"vace_blocks.*.attn"``.
        blocks: their number.
        layers: number of the other layers.
    """
    words = {word for word in path.partition(".")[0].split("_") if word not in ("blocks", "block", "layers")}
    for prefix, names in (("config.", config(model)), ("", vars(model))):
        for name, value in names.items():
            if words & set(name.split("_")) and isinstance(value, Mapping | Sequence) and len(value) == blocks:
                try:
                    numbers = layer_numbers(value, blocks, name)
                except AdapterError:
                    continue
                if len(set(numbers)) == blocks and max(numbers) < layers:
                    return f"{prefix}{name}"
    return ""


def config(model: nn.Module) -> dict[str, Any]:
    """The model's configuration by name: the items of a mapping, or the attributes of an object."""
    return _values(getattr(model, "config", None))


def _values(held: Any) -> dict[str, Any]:
    if isinstance(held, Mapping):
        return {name: value for name, value in held.items() if isinstance(name, str)}
    return dict(getattr(held, "__dict__", {}))
