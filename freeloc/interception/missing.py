"""When a layer that is due for correction makes no call: a cache, a skipped layer, or an error; or runs by itself."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from freeloc.adapter.bypass import Bypass, Bypasses
from freeloc.adapter.paths import argument_at
from freeloc.adapter.site import AttentionSite
from freeloc.adapter.spec import Adapter
from freeloc.errors import LayoutError
from freeloc.interception import checkpoints
from freeloc.report import EARLY, LayerReport


def note_no_call(
    report: LayerReport,
    site: AttentionSite,
    bypasses: Bypasses | None,
    module: nn.Module,
    kwargs: Mapping[str, Any],
    lengths: Sequence[int],
) -> None:
    """Count a call of an attention module in which no attention was computed.

    Args:
        report: of the layer.
        site, bypasses: what the adapter says about the module, and about hooks that answer for it.
        module: the attention module.
        kwargs: the arguments of the call.
        lengths: latent frames of each sample for which a correction was due.

    Raises:
        LayoutError: if the reason is not known, or a cache answered with what an uncorrected call computed.
    """
    bypass = bypasses.found([module]) if bypasses else None
    if site.idle and argument_at(kwargs, site.idle, is_optional=True):
        why = f"which computed no attention ({site.idle})"
    elif bypass is None:
        raise LayoutError(_unknown(report, site, bypasses, module))
    elif bypass.is_cache:
        for frames in lengths:
            if not report.has_computed(frames):
                raise LayoutError(_filled_before(bypass, [report], frames))
            report.cached[frames] += 1
        return
    else:
        why = f"of which {bypass.name} left out the attention"
    for frames in lengths:
        report.untouched[f"{frames} latent frames, {why}"] += 1


def note_skipped(
    missing: Collection[LayerReport], due: int, frames: int, bypasses: Bypasses | None, model: nn.Module
) -> None:
    """Count the layers that were due for correction in a forward pass, but whose modules were not called.

    Args:
        missing: the reports of these layers.
        due: how many layers were due, these included.
        frames: latent frames of the forward pass.
        bypasses: what the adapter says about hooks that answer for a module.
        model: the transformer.

    Raises:
        LayoutError: if a cache answered with what an uncorrected call computed, or if none of the layers that were due
            has ever made a call at this length, and no known hook explains it.
    """
    found = {report.path: bypass_around(report.path, bypasses, model) for report in missing}
    for report in missing:
        bypass = found[report.path]
        report.skipped[frames, bypass.name if bypass else ""] += 1
    never = sorted((report for report in missing if not report.has_computed(frames)), key=lambda report: report.layer)
    stale = [report for report in never if (bypass := found[report.path]) and bypass.is_cache]
    if stale and (bypass := found[stale[0].path]):
        raise LayoutError(_filled_before(bypass, stale, frames))
    if len(never) == due and not any(found.values()):
        raise LayoutError(
            f"{type(model).__name__} ran {frames} latent frames, and none of the {due} layers that were due for "
            f"correction made a call ({_paths(never)}), so nothing was corrected. Expected the model to call its "
            "attention modules themselves: attn(...). If it calls a method of the module instead (attn.forward(...), "
            "attn.processor(...)), freeloc cannot intercept the call. Other causes are a cache that was filled before "
            "the patch, which must be reset, and blocks that were replaced after the patch: patch again"
        )
    for report in never:
        if found[report.path] is None:
            report.notes[EARLY] += 1


def bypass_around(path: str, bypasses: Bypasses | None, model: nn.Module) -> Bypass | None:
    """What may answer for the module at this path, or for a module around it."""
    if bypasses is None:
        return None
    around = [model]
    for name in path.split("."):
        around.append(getattr(around[-1], name, around[-1]))  # a block may have been replaced
    return bypasses.found(reversed(around))


def ran_outside(path: str, adapter: Adapter, model: nn.Module, is_compiled: bool) -> LayoutError:
    """The error for a call of the attention module at a path without one of its model."""
    name, run = type(model).__name__, adapter.run_by
    if run is not None:
        return LayoutError(
            f"{path} ran outside a call of {run.name} ({run.file}), or without the call of {adapter.grid.of} there, "
            f"from which freeloc reads the token grid of {name}. Expected that function to run the model, since its "
            f"adapter '{adapter.name}' knows no other"
        )
    if checkpoints.in_backward():
        return LayoutError(
            f"{path} ran outside a call of {name}: gradient checkpointing runs it again, and what its forward has read "
            "is not known. Call backward() under the same patch as the forward, and compile the blocks alone "
            "(compile_repeated_blocks), not the model"
        )
    # Where a compiled model breaks its graph, its parts share what was read, and the end of a forward clears it.
    threads = ". A compiled model takes one thread at a time" if is_compiled else ""
    return LayoutError(
        f"{path} ran outside a call of {name}: freeloc reads the token grid when the model itself is called. Call "
        f"model(...), not model.forward(...) or its blocks alone{threads}"
    )


def _filled_before(bypass: Bypass, layers: Sequence[LayerReport], frames: int) -> str:
    return (
        f"{_paths(layers)} was answered from a cache ({bypass.name}) that no corrected call at {frames} latent frames "
        "has filled, so the answer is not corrected: it is from before the patch, or from another length. Reset the "
        "cache (disable it and enable it again) before the run, and patch once, before the first step"
    )


def _unknown(report: LayerReport, site: AttentionSite, bypasses: Bypasses | None, module: nn.Module) -> str:
    others = bypasses.others(module) if bypasses else []
    hooks = f" The module has hooks that the adapter does not describe: {', '.join(others)}." if others else ""
    functions = " or ".join(dict.fromkeys(kernel.function for kernel in site.kernels))
    return (
        f"{report.path} ({type(module).__name__}) made no call of {functions}, so nothing could be "
        f"corrected.{hooks} Known causes: linear attention; a kernel or a replacement of that function that cannot be "
        "seen; and attention that is skipped, perturbed, or answered from a cache by code that the adapter does not "
        "describe. Switch it off, or describe it (Kernel, AttentionSite.idle, Adapter.bypasses)"
    )


def _paths(layers: Sequence[LayerReport]) -> str:
    paths = [report.path for report in layers]
    return ", ".join(paths) if len(paths) <= 3 else f"{paths[0]} ... {paths[-1]}"
