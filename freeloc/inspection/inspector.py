"""Inspects a model without an adapter: its attention calls, and what an adapter would say about them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from freeloc.adapter.grid import TokenGrid
from freeloc.adapter.kernel import Kernel
from freeloc.adapter.site import AttentionSite
from freeloc.adapter.spec import MOST_ROUNDING, Adapter
from freeloc.discovery import components, modules_of
from freeloc.errors import AdapterError, FreelocError
from freeloc.inspection.argument_search import FoundArguments, find_arguments, find_tables
from freeloc.inspection.found import FoundSite, Inspection
from freeloc.inspection.grid_search import FoundGrid, GridSearch
from freeloc.inspection.grid_sources import cropped_video, padding_source, table_of_samples
from freeloc.inspection.kernel_search import FoundKernel, find_kernels
from freeloc.inspection.model_search import layers_path, patch_path, size_path
from freeloc.inspection.rope_search import find_rope
from freeloc.inspection.run_search import find_run_by
from freeloc.inspection.subject import Run, Subject, tensors, without_inner
from freeloc.interception.watch import AttentionCall
from freeloc.uncorrected import undescribed

__all__ = ["Inspection", "inspect"]


def inspect(
    model: nn.Module, inputs: Mapping[str, Any], video: str | None = None, run: Run | None = None
) -> Inspection:
    """List every attention call of a model, and derive from them what an adapter needs to say.

    One forward lists the calls, and another one the functions that compute them. Further ones, each with the video
    changed along one axis, show layout, grid and text.

    >>> from freeloc.testing import examples
    >>> example = examples("hunyuan-video")[0]
    >>> found = inspect(example.model(), example.inputs(8, 2, 3, 2))
    >>> found.grid.tokens, found.grid.patch, found.grid.text_last, found.rope.theta
    ((8, 2, 3), (1, 2, 2), 5, 256.0)

    Args:
        model: any module, preferably a small one of its kind.
        inputs: arguments of its forward, with at least 4 latent frames, and another size along each axis.
        video: name of the argument that holds the noisy video, or of an item or attribute of one, ``"x.0"``; by default
            the largest tensor that the tokens depend on.
        run: (model, inputs) -> anything, where the model is not run by calling it, but by a function.

    Raises:
        FreelocError: if there is no attention call, no video among the inputs, or it has less than 4 frames.
    """
    subject, kernels = Subject(model, inputs, run=run), find_kernels(model, inputs, run)
    subject = replace(subject, kernels=_needed(kernels, subject.calls()))
    calls = subject.calls()
    found = Inspection(f"{type(model).__module__}.{type(model).__qualname__}", _sites(calls, subject), kernels=kernels)
    if not calls:
        held = ", ".join(dict.fromkeys(f"{known.name} of {known.path}" for known in kernels))
        raise FreelocError(
            f"{found.model} made no call of scaled_dot_product_attention, multiplied no queries with keys, and called "
            f"no function by its name that returned attention{f', but {held}' if held else ''}: its kernel cannot be "
            "intercepted. Find the function that it calls, and describe it as a freeloc.adapter.Kernel, as in "
            "adapters/wan.py"
        )
    search, site, grid = _find_grid(subject, found.sites, _videos(inputs, video), found.unknown)
    if search is None or site is None or grid is None:
        return found
    call = next(call for call in calls if call.path == site.first)
    _describe_rope(found, search, grid, call, calls)
    _describe_sites(found, grid, calls, subject)
    site = next(known for known in found.sites if known.first == site.first)
    found.grid = _with_source(found, grid, search.video, site, subject, calls)
    found.heads = size_path(model, site.first_site, site.query[1], "heads")
    found.head_dim = size_path(model, site.first_site, site.query[3], "head_dim")
    found.patch_path = patch_path(model, grid.patch)
    found.other_attention = _other_attention(model, found, calls)
    wanted = {"heads": (found.heads, site.query[1]), "head_dim": (found.head_dim, site.query[3])}
    found.unknown += [f"{name}: no attribute holds it, {size}" for name, (path, size) in wanted.items() if not path]
    if run is not None:
        found.run_by = find_run_by(subject)
    return found


def _needed(kernels: Sequence[FoundKernel], seen: Sequence[AttentionCall]) -> list[Kernel]:
    """The functions of modules in which PyTorch's own attention function was not seen."""
    own = {call.path for call in seen if call.kernel != "torch.matmul"}
    needed = [found.kernel for found in kernels if found.kernel is not None and found.path not in own]
    return [kernel for place, kernel in enumerate(needed) if kernel not in needed[:place]]


def _describe_sites(found: Inspection, grid: FoundGrid, calls: Sequence[AttentionCall], subject: Subject) -> None:
    """Decide which sites attend over the whole grid, and find their arguments and layers."""
    for index, seen in enumerate(found.sites):
        if seen.query[2] == seen.key[2] == math.prod(grid.tokens) + grid.text_first + grid.text_last:
            problem = _unlike(subject.model, seen, grid, calls)
            arguments = _arguments(seen, grid, calls, subject.inputs)
            found.sites[index] = replace(seen, is_candidate=not problem, arguments=arguments)
            found.unknown += [f"{seen.path}: {problem}"] if problem else arguments.unknown
    total = sum(site.modules for site in found.candidates)
    for index, seen in enumerate(found.sites):
        if seen.is_candidate and len(found.candidates) > 1:
            layers = layers_path(subject.model, seen.path, seen.modules, total - seen.modules)
            found.sites[index] = replace(seen, layers=layers)


def _with_source(
    found: Inspection, grid: FoundGrid, video: str, site: FoundSite, subject: Subject, calls: Sequence[AttentionCall]
) -> FoundGrid:
    """The grid with where else an adapter reads it, if the model pads the video, or has one for each sample."""
    given = next(_given_at(call, site) for call in calls if call.path == site.first)
    if grid.source is not None or not isinstance(grid.argument, str):
        return grid
    table = table_of_samples(given, grid.tokens) if "b" not in grid.axes.split() else None
    if table is not None:
        return replace(grid, source=table)
    cropped = cropped_video(subject, video, grid.axes, grid.patch)
    is_padded = False
    if cropped is not None:
        again = cropped.calls(until=lambda call: call.path == site.first)
        is_padded = bool(again) and again[-1].query.shape[2] == site.query[2]
    if not (is_padded or subject.run is not None):
        return grid
    source = padding_source(subject, video, grid, site.first, is_padded)
    if source is None:
        found.unknown.append(
            "grid: where the grid is read after the model has padded rows and columns to whole patches; no submodule "
            "returns or gets a tensor with axes of that size"
        )
    return replace(grid, source=source)


def _describe_rope(
    found: Inspection, search: GridSearch, grid: FoundGrid, call: AttentionCall, calls: Sequence[AttentionCall]
) -> None:
    """Find the rotation of the first candidate, its rotary tables, and the module that gets them."""
    found.rope = rope = find_rope(search.equal_frames(grid, call.path))
    if rope is None:
        found.unknown.append("rope: queries and keys of equal frames do not differ by a rotation")
        return
    if 1e-4 < rope.error <= MOST_ROUNDING / 2:
        found.rounding = float(f"{2 * rope.error:.0e}")
    tokens, is_first = math.prod(grid.tokens), bool(grid.text_first)
    for names, given in enumerate(_given_above(call, calls)):
        found.tables = find_tables(replace(call, given=given), rope, grid.tokens[0], tokens, is_first)
        if found.tables is not None:
            alike = [at for at, site in enumerate(found.sites) if site.path.split(".")[1:] == _pattern(call.path)[1:]]
            for at in alike:
                found.sites[at] = replace(found.sites[at], names_above=names)
            return
    found.unknown.append(f"tables: no argument of {call.path} holds rotary tables that rotate frames like this")


def _pattern(path: str) -> list[str]:
    """The names of a path, with ``*`` for the first number."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path, count=1).split(".")


def _given_above(call: AttentionCall, calls: Sequence[AttentionCall]) -> Iterator[Mapping[str, Any]]:
    """The arguments of the module that makes a call, then of those around it that make no other call."""
    yield call.given
    for running in reversed(call.around):
        own = [other for other in calls if other.path == running.path or other.path.startswith(f"{running.path}.")]
        if not any(name.isdigit() for name in running.path.split(".")) or {other.path for other in own} != {call.path}:
            return
        yield running.given()


def _arguments(
    site: FoundSite, grid: FoundGrid, calls: Sequence[AttentionCall], inputs: Mapping[str, Any]
) -> FoundArguments:
    """The arguments of a site's first module that an adapter names."""
    own = [replace(call, given=_given_at(call, site)) for call in calls if call.path == site.first]
    others = {name: value for name, value in inputs.items() if name != grid.argument}
    return find_arguments(own, math.prod(grid.tokens), others)


def _given_at(call: AttentionCall, site: FoundSite) -> Mapping[str, Any]:
    """The arguments of the module that an adapter names for a call."""
    return next((around.given() for around in call.around if around.path == site.first_site), call.given)


def _sites(calls: Sequence[AttentionCall], subject: Subject) -> list[FoundSite]:
    """Group calls by the pattern of their path and by what they compute, in order of their first call."""
    groups: dict[tuple[object, ...], list[AttentionCall]] = {}
    for call in without_inner(calls, subject.kernels):
        pattern = ".".join(_pattern(call.path))
        groups.setdefault((pattern, call.query.shape[1:], call.key.shape[1:], call.kernel), []).append(call)
    described = {kernel.function: kernel for kernel in reversed(subject.kernels)}
    return [
        FoundSite(
            path=str(path),
            first=group[0].path,
            calls=len(group),
            modules=len({call.path for call in group}),
            query=tuple(group[0].query.shape),
            key=tuple(group[0].key.shape),
            kernel=group[0].kernel,
            described=described.get(group[0].kernel),
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
    """Paths of the tensors that may be the video, those with most axes first; or the path that the caller gave."""
    sizes = {
        path: (value.ndim in (4, 5), value.ndim == 5, value.numel())
        for path, value in tensors(inputs)
        if value.is_floating_point() and value.ndim >= 3
    }
    if not sizes:
        raise FreelocError(f"expected a video among the inputs, a tensor of real numbers, found {[*inputs]}")
    if named is not None and named not in sizes:
        raise FreelocError(f"expected video to name one of the tensors {[*sizes]} among the inputs, found '{named}'")
    return [named] if named else sorted(sizes, key=lambda name: sizes[name], reverse=True)


def _find_grid(
    subject: Subject, sites: Sequence[FoundSite], videos: Sequence[str], unknown: list[str]
) -> tuple[GridSearch | None, FoundSite | None, FoundGrid | None]:
    """The first self-attention whose tokens have the order of frames, rows and columns of one of these arguments."""
    problems = []
    for video in videos:
        search = GridSearch(subject, video)
        for site in sites:
            grid = search.grid(site.first) if site.query[2] == site.key[2] else None
            if grid is not None:
                return search, site, grid
            problems += [f"grid: {search.problem}"] if search.problem else []
    unknown += list(dict.fromkeys(problems))[:1] or [
        "grid: no self-attention has tokens in the order of frames, rows and columns of the video. Give at least 4 "
        "latent frames, and another size along each axis"
    ]
    return None, None, None


def _other_attention(model: nn.Module, found: Inspection, calls: Sequence[AttentionCall]) -> list[str]:
    """Paths of the modules of the candidates' classes that are no candidates, but made calls."""
    sites = tuple(AttentionSite(site.site) for site in found.candidates)
    if not sites:
        return []
    draft = Adapter("draft", "draft", (found.model,), sites, TokenGrid(), rope=None)
    seen = {call.path for call in calls} | {around.path for call in calls for around in call.around}
    others = list(undescribed(list(modules_of(components(model))), [(model, draft)]))
    silent = dict.fromkeys(path for path, place in others if place.whole not in seen)
    if silent:
        found.unknown.append(
            f"other_attention: {', '.join(silent)} made no call here. Name those that never attend over the video"
        )
    return list(dict.fromkeys(path for path, place in others if place.whole in seen))
