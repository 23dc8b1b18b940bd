"""The vocabulary in which an adapter says where a model computes attention over its video tokens. Data, no behaviour.

An adapter holds names and numbers only, so that importing one imports no model library.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from freeloc.errors import AdapterError


@dataclass(frozen=True)
class TemporalRope:
    """The part of each head that the temporal axis of a 3-D RoPE rotates.

    >>> rope = TemporalRope(channels=lambda head_dim: head_dim - 4 * (head_dim // 6))
    >>> rope.span(128), rope.frequencies(128).shape
    ((0, 44), torch.Size([22]))

    Args:
        channels: number of temporal channels, or a function from head_dim to it.
        first: first temporal channel of a head.
        pairing: einops pattern of the channels that rotate together: ``"(pair two)"`` for interleaved ones (2i, 2i +
            1), ``"(two pair)"`` for half-split ones (i, i + pairs).
        theta: base of the frequencies ``theta ** (-pair / pairs)``, in radians per latent frame.
    """

    channels: int | Callable[[int], int]
    first: int = 0
    pairing: Literal["(pair two)", "(two pair)"] = "(pair two)"
    theta: float = 10_000.0

    def span(self, head_dim: int) -> tuple[int, int]:
        """First temporal channel and the one after the last."""
        count = self.channels if isinstance(self.channels, int) else self.channels(head_dim)
        if count < 2 or count % 2 or self.first + count > head_dim:
            raise AdapterError(f"expected an even number of temporal channels within {head_dim}, found {count}")
        return self.first, self.first + count

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per latent frame of each pair of channels, (pairs,) float64."""
        first, stop = self.span(head_dim)
        pairs = (stop - first) // 2
        return self.theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


@dataclass(frozen=True)
class TokenGrid:
    """Where the number of latent frames and the height and width in tokens are read from.

    Args:
        argument: name of a forward argument of the transformer (or of the attention module, see `of`).
        position: its place when it is passed by position.
        axes: einops names of its axes, ``f h w`` among them; or ``"sample (f h w)"`` for a table of sizes per sample.
        patch: attribute path of the patch size (frames, height, width) that divides those axes.
        of: whose forward has the argument.
    """

    argument: str = "hidden_states"
    position: int = 0
    axes: str = "b c f h w"
    patch: str = "config.patch_size"
    of: Literal["transformer", "attention"] = "transformer"


@dataclass(frozen=True)
class Kernel:
    """The function that computes softmax(q k^T) v: its name, the layout of its tensors, the names of its arguments.

    Args:
        function: ``"torch.nn.functional.scaled_dot_product_attention"``, or the name under which the file that
            defines the attention module imported another function.
        layout: einops order of the axes of query, key and value.
        arguments: all arguments in order.
        query, key, value, mask, scale: which arguments these are.
        valid_keys: which argument holds the number of valid leading keys of each sample.
        neutral: arguments that must have this value (or be left out): what the engine does not do.
    """

    function: str
    layout: Literal["b h l d", "b l h d"]
    arguments: tuple[str, ...]
    query: str = "query"
    key: str = "key"
    value: str = "value"
    mask: str | None = None
    scale: str | None = None
    valid_keys: str | None = None
    neutral: Mapping[str, object] = field(default_factory=dict)


SDPA = Kernel(
    function="torch.nn.functional.scaled_dot_product_attention",
    layout="b h l d",
    arguments=("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    mask="attn_mask",
    scale="scale",
    neutral={"dropout_p": 0.0, "is_causal": False, "enable_gqa": False},
)
"""PyTorch's own attention function."""


@dataclass(frozen=True)
class AttentionSite:
    """Self-attention modules over the whole token grid, one per layer.

    Args:
        path: module path with one ``*`` for the index, such as ``"blocks.*.attn1"``.
        layers: attribute path of a sequence that gives the layer number of each index, for blocks that run beside
            others; by default the index itself.
        kernel: what the module calls.
        text: where text tokens stand in the sequence, if there are any.
        while_running: attributes of the module, by path, to hold a value (an import path ``"module:name"``) while the
            module runs: for libraries that would otherwise choose a kernel that cannot be seen.
    """

    path: str
    layers: str | None = None
    kernel: Kernel = SDPA
    text: Literal["none", "first", "last"] = "none"
    while_running: Mapping[str, str] = field(default_factory=dict)

    def modules(self, model: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
        """(layer, path, module) of every place in the model that the path names."""
        before, after = self.path.split("*")
        try:
            blocks = model.get_submodule(before.rstrip("."))
        except AttributeError as error:
            raise AdapterError(
                f"{type(model).__name__} has no '{before.rstrip('.')}', where its adapter expects {self.path}"
            ) from error
        numbers = attrgetter(self.layers)(model) if self.layers else None
        for index, (name, _) in enumerate(blocks.named_children()):
            path = f"{before}{name}{after}"
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise AdapterError(f"{type(model).__name__} has no '{path}', which its adapter expects") from error
            yield (int(numbers[index]) if numbers is not None else index), path, module


@dataclass(frozen=True)
class ModelShape:
    """What a profile must fit: how many layers, heads, and channels per head."""

    layers: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Adapter:
    """One family of models.

    Args:
        name: its own.
        family: by which profiles refer to it: adapters of one family share profiles.
        classes: qualified names of the model classes, ``"package.module.Class"``; subclasses match too.
        sites: the attention over video tokens. The first one counts the layers.
        grid: where the token grid is read from.
        rope: the temporal part of the rotary embedding.
        heads: attribute path of the number of heads.
        head_dim: attribute path of the channels per head.
    """

    name: str
    family: str
    classes: tuple[str, ...]
    sites: tuple[AttentionSite, ...]
    grid: TokenGrid
    rope: TemporalRope
    heads: str = "config.num_attention_heads"
    head_dim: str = "config.attention_head_dim"

    def claims(self, model: object) -> int | None:
        """How far up the model's bases the class that this adapter names stands (0: it is its own), or None."""
        for distance, base in enumerate(type(model).__mro__):
            if f"{base.__module__}.{base.__qualname__}" in self.classes:
                return distance
        return None

    def shape(self, model: nn.Module) -> ModelShape:
        """Count the model's layers and read its sizes."""
        layers = sum(1 for _ in self.sites[0].modules(model))
        return ModelShape(layers, int(self._read(model, self.heads)), int(self._read(model, self.head_dim)))

    def patch_size(self, model: nn.Module) -> tuple[int, int, int]:
        """Latent frames, rows and columns that make one token."""
        frames, height, width = self._read(model, self.grid.patch)
        return int(frames), int(height), int(width)

    def _read(self, model: nn.Module, path: str) -> Any:
        try:
            return attrgetter(path)(model)
        except AttributeError as error:
            raise AdapterError(f"adapter '{self.name}' expects {type(model).__name__}.{path}: {error}") from error
