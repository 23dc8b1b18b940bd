"""The fields with which an adapter describes where a model computes attention over its video tokens.

An adapter is data: it holds names and numbers only, so that importing it imports no model library.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from freeloc.adapter.beside import Beside
from freeloc.adapter.bypass import Bypasses
from freeloc.adapter.checks import check_types, require
from freeloc.adapter.context_parallel import ContextParallel
from freeloc.adapter.grid import TokenGrid
from freeloc.adapter.paths import read_path
from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.run_by import RunBy
from freeloc.adapter.site import AttentionSite
from freeloc.errors import AdapterError

MOST_ROUNDING = 2e-2
"""More than that is no rounding: a wrong description could not be told from a right one."""


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
            end = path.removeprefix("*.")
            expected = "qualified names, 'package.module.Class', or their ends, '*.module.Class'"
            require("." in end and "*" not in end, f"{type(self).__name__}.classes", expected, path)

    def claims(self, model: object) -> int | None:
        """Distance from the model's class to a base class in `classes` (0: the class itself), or None."""
        nearest = self.nearest(model)
        return None if nearest is None else nearest[0]

    def nearest(self, model: object) -> tuple[int, str] | None:
        """Distance from the model's class to the nearest base class in `classes`, and the name there, or None.

        If both the whole name of a class and its end are in `classes`, the name is the whole one.
        """
        ends = self._ends
        for distance, base in enumerate(type(model).__mro__):
            name = f"{base.__module__}.{base.__qualname__}"
            if name in self.classes:
                return distance, name
            if ends and f".{name}".endswith(ends):
                return distance, next(f"*{end}" for end in ends if f".{name}".endswith(end))
        return None

    @functools.cached_property
    def _ends(self) -> tuple[str, ...]:
        """The ends of names in `classes`, each from its first dot."""
        return tuple(path[1:] for path in self.classes if path[0] == "*")


@dataclass(frozen=True)
class Refusal(_Described):
    """Models that cannot be corrected, and why. Patching one raises an error with this reason.

    Args:
        name: name of the refusal.
        classes: qualified names of the model classes, as in `Adapter`; subclasses match too.
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
        classes: qualified names of the model classes, ``"package.module.Class"``; subclasses match too. Where the
            package has another name on each machine, the end of the name, ``"*.module.Class"``: a whole name of another
            adapter comes first.
        sites: the attention over video tokens. Layers are counted over the sites without `AttentionSite.layers`.
        grid: where freeloc reads the token grid.
        rope: the temporal part of the rotary embedding; None if the model has none.
        heads: attribute path of the number of heads; a number in a path is an item, as in ``"config.sizes.0"``.
        head_dim: attribute path of the channels per head.
        other_attention: paths, with ``*`` for any one name, of further modules of the sites' classes, which attend over
            other tokens than the video's, such as cross-attention: ``"blocks.*.attn2"``. A path covers what is below
            it. Modules of these classes that are neither sites nor covered are refused: a model that derives from a
            described one may have more attention over the video.
        exact: whether subclasses of `classes` do not match: for classes whose subclasses compute something else.
        beside: the transformer beside which the described network runs, if it is a second one, such as a ControlNet.
        bypasses: hooks of its library that may answer for a module, such as caches.
        layer_numbers: set by freeloc where that transformer is patched too: its layers beside which the layers run.
        context_parallel: where an attention module finds over which processes its library splits the tokens.
        run_by: a function that calls the parts of the transformer, where its own forward is not called.
        rounding: how far the model itself rounds, as a share of the largest value, if it computes angles, queries or
            attention less exactly than in float32, or casts them to bfloat16 inside. It bounds by how much rotations
            and attention may differ in the conformance suite, and with a factor of 4 in the checks of every call.
    """

    name: str
    family: str
    classes: tuple[str, ...]
    sites: tuple[AttentionSite, ...]
    grid: TokenGrid
    rope: TemporalRope | None
    heads: str = "config.num_attention_heads"
    head_dim: str = "config.attention_head_dim"
    other_attention: tuple[str, ...] | None = None
    exact: bool = False
    beside: Beside | None = None
    bypasses: Bypasses | None = None
    layer_numbers: tuple[int, ...] | None = field(default=None, compare=False)

    def nearest(self, model: object) -> tuple[int, str] | None:
        """See `_Described.nearest`."""
        found = super().nearest(model)
        return None if found is None or (self.exact and found[0]) else found

    context_parallel: ContextParallel | None = None
    run_by: RunBy | None = None
    rounding: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"0 to {MOST_ROUNDING}, a share of the largest value"
        require(0 <= self.rounding <= MOST_ROUNDING, "Adapter.rounding", expected, self.rounding)
        expected = "the path of the submodule whose call begins a forward pass, such as 'patch_embedding', with run_by"
        require(self.run_by is None or bool(self.grid.submodule), "TokenGrid.of", expected, self.grid.of)

    def places(self, model: nn.Module) -> Iterator[tuple[AttentionSite, int, str, nn.Module]]:
        """(site, layer, path, module) of every attention module over video tokens."""
        count, found = 0, []
        for site in self.sites:
            for parallel, path, module in site.modules(model):
                found.append((site, count if parallel is None else parallel, path, module))
                count += parallel is None
        for site, layer, path, module in found:
            at = f"AttentionSite.layers: expected layers of {type(model).__name__}, 0 to {count - 1}"
            if count and layer >= count:
                raise AdapterError(f"{at}, found {layer} for {path}: name an attribute that holds such numbers")
            yield site, self.layer_numbers[layer] if self.layer_numbers else layer, path, module

    def bound(self, model: nn.Module, transformer: nn.Module, known: "Adapter") -> "Adapter":
        """The same for a network that runs beside this transformer, with the numbers of the transformer's layers.

        Raises:
            AdapterError: if these numbers cannot be read, or the transformer has no such layers.
        """
        assert self.beside is not None  # the caller found the transformer by it
        own, layers = self.shape(model).layers, known.shape(transformer).layers
        has_numbers = model if self.beside.of == "itself" else transformer
        numbers = self.beside.numbers(read_path(has_numbers, self.beside.layers), own)
        expected = f"layers of {type(transformer).__name__}, 0 to {layers - 1}"
        require(set(numbers) <= set(range(layers)), f"Beside.layers {self.beside.layers!r}", expected, numbers)
        return replace(self, layer_numbers=numbers)

    def shape(self, model: nn.Module) -> ModelShape:
        """Count the model's layers and read its sizes."""
        layers = len({layer for _, layer, _, _ in self.places(model)})
        return ModelShape(layers, _number(model, self.heads), _number(model, self.head_dim))

    def patch_size(self, model: nn.Module) -> tuple[int, int, int]:
        """Size of a patch: the latent frames, rows and columns of one token."""
        patch = self.grid.patch
        found = read_path(model, patch) if isinstance(patch, str) else patch
        three = isinstance(found, Sequence) and len(found) == 3
        remedy = f"name each of frames, rows and columns, as in (1, {patch!r}, {patch!r})"
        require(three, f"TokenGrid.patch {patch!r}", "three numbers, or the path of three", found, remedy)
        sizes = [read_path(model, size) if isinstance(size, str) else size for size in found]
        frames, height, width = (1 if size is None else int(size) for size in sizes)
        return frames, height, width

    def rope_of(self, model: nn.Module) -> TemporalRope | None:
        """The rope with the model's own numbers in place of attribute paths; None if this model has no RoPE."""
        rope = self.rope
        if rope is None or (rope.present and not read_path(model, rope.present)):
            return None
        channels = read_path(model, rope.channels) if isinstance(rope.channels, str) else rope.channels
        theta = read_path(model, rope.theta) if isinstance(rope.theta, str) else rope.theta
        pairing = rope.pairing
        if not pairing.startswith("("):
            path, _, value = pairing.partition("=")
            found = read_path(model, path)
            pairing = "(two pair)" if (found == value if value else found) else "(pair two)"
        return replace(rope, channels=channels, theta=theta, pairing=pairing)


def _number(model: nn.Module, path: str) -> int:
    found = read_path(model, path)
    try:
        return int(found)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"expected a number at {type(model).__name__}.{path}, found {found!r}") from error
