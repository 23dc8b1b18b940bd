"""Inspects a model without an adapter: its attention calls, and what an adapter would say about them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from freeloc.adapter.grid import TokenGrid
from freeloc.adapter.site import AttentionSite
from freeloc.adapter.spec import Adapter
from freeloc.discovery import components, modules_of
from freeloc.errors import AdapterError, FreelocError
from freeloc.inspection.argument_search import FoundArguments, FoundTables, find_arguments, find_tables
from freeloc.inspection.grid_search import FoundGrid, GridSearch
from freeloc.inspection.rope_search import FoundRope, find_rope
from freeloc.interception.watch import AttentionCall, observe
from freeloc.uncorrected import undescribed


@dataclass(frozen=True)
class FoundSite:
    """The calls of modules whose paths differ in one number, and that compute the same function.

    Args:
        path: path of the modules, with ``*`` for the number.
        first: path of the first module.
        calls: number of calls in one forward.
        modules: number of modules that made them.
        query, key: shapes in the first call, (batch, heads, tokens, head_dim).
        kernel: name of the function.
        is_candidate: whether all modules that the path matches attend over the whole token grid.
        arguments: the arguments of the first module that an adapter names, for candidates.
    """

    path: str
    first: str
    calls: int
    modules: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    kernel: str
    is_candidate: bool = False
    arguments: FoundArguments | None = None


@dataclass
class Inspection:
    """What `inspect` found. Print it, or write it as an adapter with `adapter_file`.

    Args:
        model: qualified name of the model's class.
        sites: all attention calls, grouped.
        grid: the token grid, or None if it was not found.
        rope: the temporal RoPE of the first candidate, or None if no rotation was found.
        tables: its rotary tables, or None if no argument holds tables of this rotation.
        heads, head_dim: attribute paths of the model that hold these numbers, or None.
        patch_path: attribute path that holds the patch size, or None.
        other_attention: paths of modules of the candidates' classes that do not attend over the whole grid.
        unknown: what was not found, and why.
    """

    model: str
    sites: list[FoundSite]
    grid: FoundGrid | None = None
    rope: FoundRope | None = None
    tables: FoundTables | None = None
    heads: str | None = None
    head_dim: str | None = None
    patch_path: str | None = None
    other_attention: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def candidates(self) -> list[FoundSite]:
        """The sites over the whole grid that an adapter can describe."""
        return [site for site in self.sites if site.is_candidate]

    def __str__(self) -> str:
        lines = [f"{self.model}: {sum(site.calls for site in self.sites)} attention calls in one forward"]
        width = max((len(site.path) for site in self.sites), default=0)
        for site in self.sites:
            mark = "*" if site.is_candidate else " "
            counts = f"{site.calls:3} calls of {site.modules:3} modules"
            shapes = f"queries {site.query}, keys {site.key}"
            lines.append(f"{mark} {site.path:{width}} {counts}, {shapes}, {site.kernel.rpartition('.')[2]}")
        lines.append("* self-attention over the whole token grid")
        if self.grid:
            text = f"text: {self.grid.text_first} tokens first, {self.grid.text_last} last"
            lines.append(f"grid: {self.grid.tokens} tokens (frames, rows, columns), patch {self.grid.patch}, {text}")
        counted = [site for site in self.candidates if site.arguments and site.arguments.text_tokens]
        lines += [f"text of {site.path}: {site.arguments}" for site in counted]
        if self.rope:
            base = f"theta {self.rope.theta:g}" if self.rope.theta else "no single base"
            lines.append(
                f"rope: channels {self.rope.first} to {self.rope.first + self.rope.channels - 1} ({self.rope.pairing} "
                f"within {self.rope.within}), {base}, {self.rope.positions_per_frame:g} positions per latent frame, "
                f"error {self.rope.error:.1e}"
            )
        if self.tables:
            lines.append(f"rotary tables: {self.tables.argument}, with a row for each {self.tables.rows}")
        return "\n".join(lines + [f"not found: {problem}" for problem in self.unknown])


def inspect(model: nn.Module, inputs: Mapping[str, Any], video: str | None = None) -> Inspection:
    """List every attention call of a model, and derive from them what an adapter needs to say.

    One forward lists the calls. Further ones, each with the video changed along one axis, show layout, grid and text.
    One forward with equal frames shows the rotary embedding. What was not found is listed as unknown.

    >>> from freeloc.testing import examples
    >>> example = examples("hunyuan-video")[0]
    >>> found = inspect(example.model(), example.inputs(8, 2, 3, 2))
    >>> found.grid.tokens, found.grid.patch, found.grid.text_last, found.rope.theta
    ((8, 2, 3), (1, 2, 2), 5, 256.0)

    Args:
        model: any module, preferably a small one of its kind.
        inputs: arguments of its forward, with at least 4 latent frames, and another size along each axis.
        video: name of the argument that holds the noisy video; by default the largest tensor that the tokens depend on.

    Raises:
        FreelocError: if there is no attention call, no video among the inputs, or it has less than 4 frames.
    """
    calls = observe(model, inputs)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if not calls:
        raise FreelocError(
            f"{name} made no call of scaled_dot_product_attention, and multiplied no queries with keys: its kernel "
            "cannot be intercepted. Find the function that it calls, and describe it as a freeloc.adapter.Kernel, as "
            "in adapters/wan.py"
        )
    found = Inspection(name, _sites(calls))
    place = _find_grid(model, inputs, found.sites, _videos(inputs, video))
    if place is None:
        found.unknown.append(
            "grid: no self-attention has tokens in the order of frames, rows and columns of the video. Give at least 4 "
            "latent frames, and another size along each axis"
        )
        return found
    search, site, grid = place
    found.grid = grid
    for index, seen in enumerate(found.sites):
        if seen.query[2] == seen.key[2] == site.query[2]:
            problem = _unlike(model, seen, grid, calls)
            arguments = _arguments(seen, grid, calls, inputs)
            found.sites[index] = replace(seen, is_candidate=not problem, arguments=arguments)
            found.unknown += [f"{seen.path}: {problem}"] if problem else arguments.unknown
    found.heads = _size_path(model, site.first, site.query[1], "heads")
    found.head_dim = _size_path(model, site.first, site.query[3], "head_dim")
    found.patch_path = _patch_path(model, grid.patch)
    found.other_attention = _other_attention(model, found, calls)
    places = {"heads": found.heads, "head_dim": found.head_dim}
    found.unknown += [f"{name}: no attribute holds it" for name, path in places.items() if not path]
    found.rope = find_rope(search.equal_frames(grid, site.first))
    if found.rope is None:
        found.unknown.append("rope: queries and keys of equal frames do not differ by a rotation")
    else:
        _add_tables(found, found.rope, grid, next(call for call in calls if call.path == site.first))
    return found


def _add_tables(found: Inspection, rope: FoundRope, grid: FoundGrid, call: AttentionCall) -> None:
    """Find the rotary tables among the arguments of the module that made a call."""
    found.tables = find_tables(call, rope, grid.tokens[0], math.prod(grid.tokens), bool(grid.text_first))
    if found.tables is None:
        found.unknown.append(f"tables: no argument of {call.path} holds rotary tables that rotate frames like this")


def _arguments(
    site: FoundSite, grid: FoundGrid, calls: Sequence[AttentionCall], inputs: Mapping[str, Any]
) -> FoundArguments:
    """The arguments of a site's first module that an adapter names."""
    own = [call for call in calls if call.path == site.first]
    others = {name: value for name, value in inputs.items() if name != grid.argument}
    return find_arguments(own, math.prod(grid.tokens), others)


def _sites(calls: Sequence[AttentionCall]) -> list[FoundSite]:
    """Group calls by the pattern of their path and by what they compute, in order of their first call."""
    groups: dict[tuple[object, ...], list[AttentionCall]] = {}
    for call in calls:
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", call.path, count=1)
        groups.setdefault((pattern, call.query.shape[1:], call.key.shape[1:], call.kernel), []).append(call)
    return [
        FoundSite(
            path=str(path),
            first=group[0].path,
            calls=len(group),
            modules=len({call.path for call in group}),
            query=tuple(group[0].query.shape),
            key=tuple(group[0].key.shape),
            kernel=group[0].kernel,
        )
        for (path, *_), group in groups.items()
    ]


def _unlike(model: nn.Module, site: FoundSite, grid: FoundGrid, calls: Sequence[AttentionCall]) -> str:
    """Why no adapter can describe these modules: the path also matches modules that do not attend over the grid."""
    try:
        named = [path for _, path, _ in AttentionSite(site.path).modules(model)]
    except AdapterError as error:
        return str(error)
    may_have_text = grid.tokens[1:] != (1, 1)  # then calls may differ in tokens; temporal attention has no text
    alike = {
        call.path
        for call in calls
        if call.kernel == site.kernel
        and (call.query.shape[2] >= site.query[2] if may_have_text else call.query.shape[2] == site.query[2])
        and call.query.shape[2] == call.key.shape[2]
    }
    others = ", ".join(path for path in named if path not in alike)
    return (
        f"an adapter would describe {others} too, where attention is not the same as in {site.first}" if others else ""
    )


def _videos(inputs: Mapping[str, Any], named: str | None) -> list[str]:
    """Names of the tensors that may be the video, the largest first; or the name that the caller gave."""
    sizes = {
        name: value.numel()
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 3
    }
    if not sizes:
        raise FreelocError(f"expected a video among the inputs, a tensor of real numbers, found {[*inputs]}")
    if named is not None and named not in sizes:
        raise FreelocError(f"expected video to name one of the tensors {[*sizes]} among the inputs, found '{named}'")
    return [named] if named else sorted(sizes, key=lambda name: -sizes[name])


def _find_grid(
    model: nn.Module, inputs: Mapping[str, Any], sites: Sequence[FoundSite], videos: Sequence[str]
) -> tuple[GridSearch, FoundSite, FoundGrid] | None:
    """The first self-attention whose tokens have the order of frames, rows and columns of one of these arguments."""
    for video in videos:
        search = GridSearch(model, dict(inputs), video)
        for site in sites:
            grid = search.grid(site.first) if site.query[2] == site.key[2] else None
            if grid is not None:
                return search, site, grid
    return None


def _other_attention(model: nn.Module, found: Inspection, calls: Sequence[AttentionCall]) -> list[str]:
    """Paths of the modules of the candidates' classes that are no candidates, but made calls."""
    sites = tuple(AttentionSite(site.path) for site in found.candidates)
    if not sites:
        return []
    draft = Adapter("draft", "draft", (found.model,), sites, TokenGrid(), rope=None)
    places = list(modules_of(components(model)))
    seen = {call.path for call in calls}
    return list(dict.fromkeys(path for path, place in undescribed(places, [(model, draft)]) if place.whole in seen))


def _size_path(model: nn.Module, site: str, value: int, kind: Literal["heads", "head_dim"]) -> str | None:
    """An attribute path of the number of heads, or of channels per head, in the configuration, the model or a site."""
    config = _config(model)
    own = {name: getattr(model, name, None) for name in vars(model)}
    of_site = vars(model.get_submodule(site))
    places = [("config.", config), ("", own), (f"{site}.", of_site)]
    for prefix, names in places:
        for name, number in names.items():
            if type(number) is int and number == value and "head" in name and ("dim" in name) == (kind == "head_dim"):
                return f"{prefix}{name}"
    for name, parameter in model.get_submodule(site).named_parameters():
        if kind == "head_dim" and tuple(parameter.shape) == (value,):  # of a norm of queries or keys
            return f"{site}.{name}.shape.0"
    return None


def _patch_path(model: nn.Module, patch: tuple[int, int, int]) -> str | None:
    """An attribute path that holds the patch size."""
    for name, value in _config(model).items():
        if "patch" in name and isinstance(value, list | tuple) and tuple(value) == patch:
            return f"config.{name}"
    return None


def _config(model: nn.Module) -> dict[str, Any]:
    """The model's configuration by name: the items of a mapping, or the attributes of an object."""
    config = getattr(model, "config", None)
    return dict(config) if isinstance(config, Mapping) else dict(getattr(config, "__dict__", {}))
