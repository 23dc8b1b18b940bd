"""The fields with which an adapter describes where a model computes attention over its video tokens.

An adapter is data: it holds names and numbers only, so that importing it imports no model library.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from freeloc.adapter.checks import check_types, require
from freeloc.adapter.rope import TemporalRope
from freeloc.errors import AdapterError


@dataclass(frozen=True)
class TokenGrid:
    """Where freeloc reads the number of latent frames, and the height and width in tokens.

    Args:
        argument: name of a forward argument of the transformer (or of the attention module, see `of`); or three names
            of arguments that hold the numbers of latent frames, rows and columns.
        axes: einops names of the argument's axes, ``f h w`` among them; ``"sample (f h w)"`` for sizes per sample;
            ``"sample token (f h w)"`` for a table of every token's coordinates.
        patch: size of a patch (frames, height, width) that divides those axes: an attribute path of the model, or for
            each axis a number or a path. The last patch may be incomplete along frames. None counts as 1.
        of: the module whose forward has the argument.
        refused: arguments of the transformer that change the order of tokens, each with the reason. A call is refused
            unless they are None or left at their default.
    """

    argument: str | tuple[str, str, str] = "hidden_states"
    axes: str = "b c f h w"
    patch: str | tuple[int | str, int | str, int | str] = "config.patch_size"
    of: Literal["transformer", "attention"] = "transformer"
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self.of == "attention":
            right, expected = (
                self.axes == "sample (f h w)",
                "'sample (f h w)', the table that an attention module receives",
            )
        else:
            named = sorted(name for name in self.axes.split() if name in ("f", "h", "w"))
            packed = not isinstance(self.argument, str)  # then three numbers give the grid, not axes
            right = packed or named == ["f", "h", "w"] or self.axes == "sample token (f h w)"
            expected = "each axis of the argument by a name, frames f, rows h and columns w, as in 'b c f h w'"
        require(right, "TokenGrid.axes", expected, self.axes)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return (self.argument,) if isinstance(self.argument, str) else self.argument


@dataclass(frozen=True)
class Kernel:
    """The function that computes softmax(q k^T) v: its name, the layout of its tensors, the names of its arguments.

    Args:
        function: ``"torch.nn.functional.scaled_dot_product_attention"``; or ``"torch.matmul"`` for a module that
            computes both products itself; or a function's name in the file that defines the module; or, for another
            file, ``"package.module:name"``.
        layout: einops order of the axes of query, key and value.
        output: einops order of the axes of the output, if it is another.
        arguments: names of all arguments, in order.
        query, key, value, mask, scale: names of these arguments.
        valid_keys: name of the argument that holds the number of valid leading keys of each sample.
        segments: name of the argument that holds the cumulative lengths [0, valid, all, all + valid, ...]: for each
            sample in turn, its valid tokens and its padding.
        neutral: arguments that must have this value (or be left out), since freeloc does not support another.
    """

    function: str
    layout: Literal["b h l d", "b l h d"]
    arguments: tuple[str, ...]
    output: Literal["", "b l (h d)"] = ""
    query: str = "query"
    key: str = "key"
    value: str = "value"
    mask: str | None = None
    scale: str | None = None
    valid_keys: str | None = None
    segments: str | None = None
    neutral: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


SDPA = Kernel(
    function="torch.nn.functional.scaled_dot_product_attention",
    layout="b h l d",
    arguments=("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    mask="attn_mask",
    scale="scale",
    neutral={"dropout_p": 0.0, "is_causal": False, "enable_gqa": False},
)
"""PyTorch's own attention function."""

MATMUL = Kernel("torch.matmul", layout="b h l d", arguments=("query", "key", "value", "scale"), scale="scale")
"""A module that computes ``softmax(q @ k.mT) @ v`` itself, with q scaled before."""


@dataclass(frozen=True)
class AttentionSite:
    """Self-attention modules over the whole token grid, one per layer.

    Args:
        path: module path with one ``*`` for the index, such as ``"blocks.*.attn1"``.
        layers: attribute path of a sequence that gives the layer number of each index, for blocks that run in parallel
            with others; by default the layers follow those of the previous sites.
        kernel: the function that the module calls.
        text: where text tokens are in the sequence, if there are any.
        tokens: ``"f h w"``; or ``"f"`` where each position in the frame is a sequence of its own (temporal attention).
        while_running: attributes of the module, by path, that are set to a value (an import path ``"module:name"``)
            while the module runs: for libraries that would otherwise choose a kernel that freeloc cannot intercept.
        idle: keyword argument of the module that is true in calls that compute no attention.
    """

    path: str
    layers: str | None = None
    kernel: Kernel = SDPA
    text: Literal["none", "first", "last"] = "none"
    tokens: Literal["f h w", "f"] = "f h w"
    while_running: Mapping[str, str] = field(default_factory=dict)
    idle: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        one = self.path.split(".").count("*") == self.path.count("*") == 1
        require(one, "AttentionSite.path", "one * for the number of the block, as in 'blocks.*.attn'", self.path)
        for attribute, value in self.while_running.items():
            name = f"AttentionSite.while_running[{attribute!r}]"
            require(
                ":" in value, name, "the import path of a value, 'package.module:NAME', as in 'builtins:False'", value
            )

    def modules(self, model: nn.Module) -> Iterator[tuple[int | None, str, nn.Module]]:
        """(number of the layer it runs in parallel with or None, path, module) of every module that `path` matches."""
        before, after = self.path.split("*")
        try:
            blocks = model.get_submodule(before.rstrip("."))
        except AttributeError as error:
            raise AdapterError(
                f"{type(model).__name__} has no '{before.rstrip('.')}', where its adapter expects {self.path}"
            ) from error
        numbers = _read(model, self.layers) if self.layers else None
        for index, (name, _) in enumerate(blocks.named_children()):
            path = f"{before}{name}{after}"
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise AdapterError(f"{type(model).__name__} has no '{path}', which its adapter expects") from error
            yield (int(numbers[index]) if numbers is not None else None), path, module


@dataclass(frozen=True)
class ModelShape:
    """What a profile must fit: the numbers of layers, of heads, and of channels per head."""

    layers: int
    heads: int
    head_dim: int


class _Described:
    """Base of adapters and refusals: an entry for some model classes."""

    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_types(self)
        for path in self.classes:
            require("." in path, f"{type(self).__name__}.classes", "qualified names, 'package.module.Class'", path)

    def claims(self, model: object) -> int | None:
        """Distance from the model's class to a base class in `classes` (0: the class itself), or None."""
        for distance, base in enumerate(type(model).__mro__):
            if f"{base.__module__}.{base.__qualname__}" in self.classes:
                return distance
        return None


@dataclass(frozen=True)
class Refusal(_Described):
    """Models that cannot be corrected, and why. Patching one raises an error with this reason.

    Args:
        name: name of the refusal.
        classes: qualified names of the model classes, ``"package.module.Class"``; subclasses match too.
        reason: why the models cannot be corrected, and what to do instead.
    """

    name: str
    classes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Adapter(_Described):
    """Describes one family of models.

    Args:
        name: name of the adapter.
        family: the name by which profiles refer to it. Adapters of one family share profiles.
        classes: qualified names of the model classes, ``"package.module.Class"``; subclasses match too.
        sites: the attention over video tokens. Layers are counted over the sites without `AttentionSite.layers`.
        grid: where freeloc reads the token grid.
        rope: the temporal part of the rotary embedding; None if the model has none.
        heads: attribute path of the number of heads; a number in a path is an item, as in ``"config.sizes.0"``.
        head_dim: attribute path of the channels per head.
    """

    name: str
    family: str
    classes: tuple[str, ...]
    sites: tuple[AttentionSite, ...]
    grid: TokenGrid
    rope: TemporalRope | None
    heads: str = "config.num_attention_heads"
    head_dim: str = "config.attention_head_dim"

    def places(self, model: nn.Module) -> Iterator[tuple[AttentionSite, int, str, nn.Module]]:
        """(site, layer, path, module) of every attention module over video tokens."""
        count = 0
        for site in self.sites:
            for beside, path, module in site.modules(model):
                yield site, count if beside is None else beside, path, module
                count += beside is None

    def shape(self, model: nn.Module) -> ModelShape:
        """Count the model's layers and read its sizes."""
        layers = len({layer for _, layer, _, _ in self.places(model)})
        return ModelShape(layers, _number(model, self.heads), _number(model, self.head_dim))

    def patch_size(self, model: nn.Module) -> tuple[int, int, int]:
        """Size of a patch: the latent frames, rows and columns of one token."""
        patch = self.grid.patch
        found = _read(model, patch) if isinstance(patch, str) else patch
        three = isinstance(found, Sequence) and len(found) == 3
        remedy = f"name each of frames, rows and columns, as in (1, {patch!r}, {patch!r})"
        require(three, f"TokenGrid.patch {patch!r}", "three numbers, or the path of three", found, remedy)
        sizes = [_read(model, size) if isinstance(size, str) else size for size in found]
        frames, height, width = (1 if size is None else int(size) for size in sizes)
        return frames, height, width

    def rope_of(self, model: nn.Module) -> TemporalRope | None:
        """The rope with the model's own numbers in place of attribute paths; None if this model has no RoPE."""
        rope = self.rope
        if rope is None or (rope.present and not _read(model, rope.present)):
            return None
        channels = _read(model, rope.channels) if isinstance(rope.channels, str) else rope.channels
        theta = _read(model, rope.theta) if isinstance(rope.theta, str) else rope.theta
        pairing = rope.pairing
        if not pairing.startswith("("):
            path, _, value = pairing.partition("=")
            found = _read(model, path)
            pairing = "(two pair)" if (found == value if value else found) else "(pair two)"
        return replace(rope, channels=channels, theta=theta, pairing=pairing)


def _number(model: nn.Module, path: str) -> int:
    found = _read(model, path)
    try:
        return int(found)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"expected a number at {type(model).__name__}.{path}, found {found!r}") from error


def _read(model: nn.Module, path: str) -> Any:
    """The value at a path of attributes, of sequence items by number, and of mapping items by name."""
    found: Any = model
    try:
        for name in path.split("."):
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                item = name.isdigit() and not isinstance(found, nn.Module)
                found = found[int(name)] if item else getattr(found, name)
        return found
    except (AttributeError, IndexError, TypeError) as error:
        raise AdapterError(f"its adapter expects {type(model).__name__}.{path}: {error}") from error
