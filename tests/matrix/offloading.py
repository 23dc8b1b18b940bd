"""Offloading and layerwise casting.

accelerate's and diffusers' ways to keep weights elsewhere, or in another type, while they are not used.
"""

import tempfile
from typing import Any

import torch

from .cell import Apply, Fails, Refused, applied

CPU = torch.device("cpu")


def accelerated(name: str) -> Apply:
    def apply(model: Any) -> None:
        import accelerate

        if name == "cpu_offload":
            accelerate.cpu_offload(model, execution_device=CPU)
        elif name == "disk_offload":
            accelerate.disk_offload(model, tempfile.mkdtemp(), execution_device=CPU)
        else:
            places = {part: "disk" if "blocks" in part else "cpu" for part, _ in model.named_children()}
            places |= dict.fromkeys(dict(model.named_parameters(recurse=False)), "cpu")
            options = {"main_device": "cpu", "offload_dir": tempfile.mkdtemp(), "force_hooks": True}
            accelerate.dispatch_model(model, places, **options)

    return apply


def by_hook(model: Any) -> None:
    """What `enable_model_cpu_offload` of a pipeline does."""
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, execution_device="cpu")


def groups(**options: Any) -> Apply:
    def apply(model: Any) -> None:
        from diffusers.hooks import apply_group_offloading

        given = options | ({"offload_to_disk_path": tempfile.mkdtemp()} if options.get("offload_to_disk_path") else {})
        apply_group_offloading(model, onload_device=CPU, offload_device=CPU, **given)

    return apply


def by_method(model: Any) -> None:
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def cast(storage: torch.dtype) -> Apply:
    return lambda model: model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)


OFFLOADS: dict[str, Apply] = {
    "cpu_offload": accelerated("cpu_offload"),
    "disk_offload": accelerated("disk_offload"),
    "dispatch_model": accelerated("dispatch_model"),
    "cpu_offload_with_hook": by_hook,
    "groups of leaves": groups(offload_type="leaf_level"),
    "groups of blocks": groups(offload_type="block_level", num_blocks_per_group=1),
    "groups of two blocks, little memory": groups(
        offload_type="block_level", num_blocks_per_group=2, low_cpu_mem_usage=True
    ),
    "groups of leaves, to disk": groups(offload_type="leaf_level", offload_to_disk_path="new"),
    "model.enable_group_offload": by_method,
}
WEIGHTS_OF_ROPE = ("mochi", "ltx", "kandinsky5", "cosmos", "motif-video")
"""Models whose adapters read weights or tables of the model when it is patched."""

NOT_LOADED = Refused("AdapterError: .*RoPE are weights, and now offloaded or not loaded: patch it before")

RETURNS = {"ltx-2": Fails("missing 1 required positional argument: 'audio_sample'")}
"""accelerate cannot move the output of LTX-2, which is a dataclass of two tensors."""

CELLS = [
    applied(
        f"accelerate: {name}" if "_" in name[:12] else f"diffusers: {name}",
        apply,
        quick={"cpu_offload": ("wan",), "groups of leaves": ("hunyuan-video",)}.get(name, ()),
        but=RETURNS if name in ("cpu_offload", "disk_offload") else {},
    )
    for name, apply in OFFLOADS.items()
    if name != "dispatch_model"
] + [
    applied("accelerate: dispatch_model, blocks on disk", OFFLOADS["dispatch_model"], but=RETURNS),
    applied("layerwise casting to float8_e4m3fn", cast(torch.float8_e4m3fn), changes=True),
    applied("layerwise casting to float8_e5m2", cast(torch.float8_e5m2), changes=True),
    *[
        applied(f"other families: {name}", OFFLOADS[name], families=WEIGHTS_OF_ROPE, but={"mochi, before": NOT_LOADED})
        for name in ("cpu_offload", "disk_offload")
    ],
    applied("other families: groups of leaves", OFFLOADS["groups of leaves"], families=WEIGHTS_OF_ROPE),
    applied("other families: layerwise casting", cast(torch.float8_e4m3fn), changes=True, families=WEIGHTS_OF_ROPE),
]
