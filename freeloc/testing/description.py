"""Checks of an adapter's description. Each docstring is a requirement; a check raises an error if it is not met."""

import functools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.paths import argument_at, read_path
from freeloc.errors import AdapterError
from freeloc.inspection.rope_search import find_rope
from freeloc.interception.watch import observe
from freeloc.testing.cases import FRAMES, HEIGHT, TRAINED, WIDTH, Case, SiteCall
from freeloc.testing.diagnosis import or_rounds, rotation_problem
from freeloc.testing.requirements import ConformanceError, error_of, needs, require
from freeloc.uncorrected import require_all_described


def check_it_matches_its_class_only(case: Case) -> None:
    """The adapter describes the model, and none of the model's parts."""
    cls = type(case.model)
    names = ("exactly " if case.adapter.exact else "") + ", ".join(case.adapter.classes)
    require(
        case.adapter.claims(case.model) is not None,
        f"classes: the model is a {cls.__module__}.{cls.__qualname__}, the adapter names {names}",
    )
    for path, module in case.model.named_modules():
        claimed = path and case.adapter.claims(module) is not None
        require(not claimed, f"classes: '{path}', a {type(module).__qualname__}, is a part of the model, not a model")


def check_importing_it_is_light(case: Case) -> None:
    """Looking up the adapter imports neither its models nor their package, unless the plugin is in that package."""
    imported, plugins = _imported_with_the_adapters()
    modules = {name.rpartition(".")[0] for name in case.adapter.classes}
    packages = {name.partition(".")[0] for name in modules} - plugins
    ends = {name for name in modules if name[0] == "*" and any(f".{known}".endswith(name[1:]) for known in imported)}
    found = sorted(((modules | packages) & imported) | ends)
    require(not found, f"importing the adapters imports {found}, which takes seconds")


@functools.cache
def _imported_with_the_adapters() -> tuple[set[str], set[str]]:
    """The modules that a new Python process imports to look up the adapters, and the packages with plugins."""
    code = """
import json, sys, freeloc
from importlib.metadata import entry_points
freeloc.discovery.adapters()
plugins = {point.module.partition(".")[0] for point in entry_points(group="freeloc")}
print(json.dumps([sorted(sys.modules), sorted(plugins)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    require(done.returncode == 0, f"the adapters cannot be imported: {done.stderr.strip()[-300:]}")
    imported, plugins = json.loads(done.stdout)
    return set(imported), set(plugins)


def check_every_site_is_named(case: Case) -> None:
    """Each path matches modules, each module once, and no other module attends over the whole token grid."""
    try:
        paths = [path for _, _, path, _ in case.adapter.places(case.model)]
    except AdapterError as error:
        raise ConformanceError(f"sites: {error}") from error
    require(paths, "sites: no module is at " + ", ".join(site.path for site in case.adapter.sites))
    require(len(paths) == len(set(paths)), f"sites: a module is named twice in {sorted(paths)}")
    whole = FRAMES * (1 if case.adapter.sites[0].tokens == "f" else HEIGHT * WIDTH)
    others: dict[str, int] = {}
    for call in observe(case.model, case.inputs(), run=case.example.run):
        inside = any(call.path == path or call.path.startswith(f"{path}.") for path in paths)
        if not inside and call.query.shape[2] == call.key.shape[2] >= whole:
            others[call.path] = call.query.shape[2]
    near = "; ".join(f"{path} over {tokens} tokens" for path, tokens in others.items())
    require(not others, f"sites: {len(paths)} are named, but these also attend over the whole video: {near}")


@needs(check_every_site_is_named)
def check_other_attention_is_named(case: Case) -> None:
    """Every module of a site's class is a site, or is named as attention over other tokens than the whole video."""
    try:
        require_all_described(case.model, [(case.model, case.adapter)], leave=())
    except AdapterError as error:
        raise ConformanceError(f"other_attention: {error}") from error


@needs(check_it_matches_its_class_only, check_every_site_is_named, check_other_attention_is_named)
def check_every_site_calls_its_kernel(case: Case) -> None:
    """In a run of the model, every site makes the call that the adapter describes, and every layer has a number."""
    calls = case.calls()
    silent = {path for _, _, path, _ in case.adapter.places(case.model)} - {call.path for call in calls}
    require(not silent, f"kernel: found no call in {', '.join(sorted(silent))}")
    layers, shape = {call.layer for call in calls}, case.adapter.shape(case.model)
    require(layers == set(range(shape.layers)), f"layers: expected 0 to {shape.layers - 1}, found {sorted(layers)}")


@needs(check_every_site_calls_its_kernel)
def check_every_tensor_of_the_call_is_described(case: Case) -> None:
    """The adapter describes every tensor that is passed to the kernel, such as a mask or lengths."""
    kernels = {path: site.kernels for site, _, path, _ in case.adapter.places(case.model)}
    for call in case.calls():
        named = [
            name for kernel in kernels[call.path] for name in (*(path for _, path in kernel.named()), *kernel.neutral)
        ]
        described = [id(argument_at(call.given, name, is_optional=True)) for name in named]
        for name, value in _tensors(call.given):
            known = id(value) in described
            require(known, f"kernel: {call.path} passes a tensor '{name}', which the adapter does not describe")


def _tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among arguments, and in lists and tuples among them, by path."""
    for name, value in given.items():
        if isinstance(value, Tensor) and value.ndim > 0:
            yield name, value
        elif isinstance(value, list | tuple):
            yield from _tensors({f"{name}.{index}": item for index, item in enumerate(value)})


@needs(check_every_site_calls_its_kernel)
def check_the_sizes_are_the_models_own(case: Case) -> None:
    """The adapter reads the numbers of heads and of channels per head that the queries have, and the largest length."""
    shape = case.adapter.shape(case.model)
    for call in case.calls():
        heads, head_dim = call.query.shape[1], call.query.shape[3]
        require(heads == shape.heads, f"heads: {call.path} has {heads}, the adapter reads {shape.heads}")
        require(head_dim == shape.head_dim, f"head_dim: {call.path} has {head_dim}, the adapter reads {shape.head_dim}")
    where = case.adapter.grid.largest_frames
    if where is not None:
        found = read_path(case.model, where[0]) if isinstance(where[0], str) else where[0](case.model, case.inputs())
        require(isinstance(found, int), f"grid, largest_frames: expected a number, found {found!r}")


@needs(check_every_site_calls_its_kernel)
def check_the_layout_adds_up(case: Case) -> None:
    """At any size, a sequence has frames x height x width tokens, and only a site with text has more."""
    sites = {path: site for site, _, path, _ in case.adapter.places(case.model)}
    extra: dict[str, set[int]] = {}
    for frames, height, width in ((FRAMES, HEIGHT, WIDTH), (5, 1, 4), (TRAINED + 1, 3, 2)):
        for call in case.calls(case.inputs(frames, height, width, batch=1)):
            expected = (frames, 1, 1) if sites[call.path].tokens == "f" else (frames, height, width)
            found = call.layout.frames, call.layout.height, call.layout.width
            require(
                found == expected,
                f"grid: expected {expected} latent frames, rows and columns of tokens, the adapter reads {found}: "
                "look at argument, axes and patch",
            )
            extra.setdefault(call.path, set()).add(call.query.shape[2] - math.prod(expected))
    for path, counts in extra.items():
        several = f"grid: depending on the video's size, {path} has {sorted(counts)} more tokens than the grid"
        require(len(counts) == 1 and min(counts) >= 0, several)
        text, count = sites[path].text, counts.pop()
        require((text != "none") == (count > 0), f"text: '{text}', but {path} has {count} more tokens than the grid")


@needs(check_the_layout_adds_up)
def check_text_is_counted(case: Case) -> None:
    """The number of text tokens that the adapter reads is that of the tokens beyond the grid."""
    sites = {path: site for site, _, path, _ in case.adapter.places(case.model)}
    for call in case.calls():
        beyond = call.query.shape[2] - call.layout.frames * call.layout.tokens_per_frame
        read, name = call.layout.text_first + call.layout.text_last, sites[call.path].text_tokens
        require(
            read == beyond,
            f"text_tokens: {call.path} has {beyond} text tokens, the adapter reads {read} from '{name}': look at "
            "text_tokens, and at text_mask if the kernel gets valid tokens only",
        )


@needs(check_text_is_counted)
def check_each_token_is_where_it_should_be(case: Case) -> None:
    """Changing one latent frame, or one row of it, changes those tokens of each site's queries and no others."""
    calls = case.muted_calls(case.inputs())
    parts: list[tuple[int, int | None]] = [(1, None), (FRAMES - 2, None)]
    if calls[0].layout.height == HEIGHT:
        parts.append((2, 1))
    for frame, row in parts:
        changed = case.change_video(case.inputs(), functools.partial(_perturb, frame=frame, row=row))
        for before, after in zip(calls, case.muted_calls(changed), strict=True):
            _require_changed(before, after, frame, row)


def _require_changed(before: SiteCall, after: SiteCall, frame: int, row: int | None) -> None:
    """Between these calls, the queries of one frame, or one row of it, must differ, and no others."""
    layout = before.layout
    width = layout.tokens_per_frame if row is None else layout.width
    first = layout.video.start + frame * layout.tokens_per_frame + (row or 0) * layout.width
    expected = torch.arange(first, first + width)
    difference = (after.query - before.query).abs().amax(dim=(0, 1, 3))
    found = (difference > 1e-4 * difference.max()).nonzero().flatten()
    part = f"latent frame {frame}" + ("" if row is None else f", row {row}")
    require(
        torch.equal(found, expected),
        f"text, axes: changing {part} should change tokens {_span(expected)} of {before.path}, it changed "
        f"{_span(found)} of {len(difference)}: is the text ({layout.text_first} first, {layout.text_last} last) at the "
        "other end, or do the axes have another order?",
    )


@needs(check_each_token_is_where_it_should_be)
def check_scores_depend_on_distance_only(case: Case) -> None:
    """Between equal frames, a constant shift of all positions does not change the first layer's scores."""
    call = case.first_call(case.change_video(case.inputs(), _equal_frames))
    if call.rope is None:
        return
    query, key = call.video(call.query)[:, :, 1:].double(), call.video(call.key)[:, :, 1:].double()
    scores = torch.einsum("bhiqd,bhjkd->bhijqk", query, key)  # the first frame may have another distance
    error = error_of(scores[:, :, 1:, 1:], scores[:, :, :-1, :-1])
    require(
        error <= 10 * case.tolerance,
        f"rope: between equal frames, shifting all by one frame changes scores by {error:.1e} of the largest: the "
        f"model also has absolute positions{or_rounds(error / 10)}",
    )


@needs(check_the_sizes_are_the_models_own, check_scores_depend_on_distance_only)
def check_our_rotation_is_the_models_own(case: Case) -> None:
    """Between equal frames, queries and keys of the first layer differ by the rotation that the adapter describes."""
    call = case.first_call(case.change_video(case.inputs(), _equal_frames))
    if call.rope is None:
        found = find_rope(torch.cat([call.video(call.query), call.video(call.key)]))
        require(found is None, f"rope: none is described, but between equal frames there is a rotation: {found}")
    problem = rotation_problem(call, case.tolerance)
    require(not problem, f"rope: {problem}")


def _perturb(video: Tensor, frame: int, row: int | None) -> None:
    """Change one latent frame of a video, or one row of tokens in it, before patches."""
    patch_frames, patch_height = video.shape[0] // FRAMES, video.shape[1] // HEIGHT
    frames = slice(frame * patch_frames, (frame + 1) * patch_frames)
    rows = slice(None) if row is None else slice(row * patch_height, (row + 1) * patch_height)
    video[frames, rows] += torch.linspace(1, 2, video[frames, rows].numel()).view(video[frames, rows].shape)


def _equal_frames(video: Tensor) -> None:
    patch_frames = video.shape[0] // FRAMES
    video[:] = video[:patch_frames].repeat(FRAMES, *[1] * (video.ndim - 1))


def _span(tokens: Tensor) -> str:
    if not len(tokens):
        return "none"
    last = int(tokens[-1])
    gaps = "" if last - int(tokens[0]) + 1 == len(tokens) else f" ({len(tokens)} of them)"
    return f"{int(tokens[0])} to {last}{gaps}"
