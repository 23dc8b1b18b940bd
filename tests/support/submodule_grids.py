"""Adapters that read the token grid from a submodule: its output, its argument, or three of its arguments."""

from dataclasses import replace

from conftest import make_profile
from freeloc_adapters import hunyuan_video, kandinsky, mochi, wan

import freeloc
from freeloc.adapter import TokenGrid

OUTPUT = TokenGrid("output", axes="b c f h w", patch=(1, 1, 1), of="patch_embedding")
GRIDS = {
    "wan": (wan.DIFFUSERS, OUTPUT),
    "wan-vace": (wan.VACE, replace(OUTPUT, references=wan.VACE.grid.references)),
    "hunyuan-video": (hunyuan_video.DIFFUSERS, replace(hunyuan_video.DIFFUSERS.grid, of="rope")),
    "mochi": (mochi.DIFFUSERS, TokenGrid(("num_frames", "height", "width"), patch=(1, 1, 1), of="rope")),
    "kandinsky5": (
        kandinsky.KANDINSKY_5,
        TokenGrid("output", axes="b f h w c", patch=(1, 1, 1), of="visual_embeddings"),
    ),
}
ADAPTERS = {label: replace(adapter, grid=grid) for label, (adapter, grid) in GRIDS.items()}


def patched(model, adapter=ADAPTERS["wan"], **options):
    layers = {2: {"vrpr+tsa": [0], "none": [1]}, 4: None}[len(model.blocks)]
    return freeloc.patch(model, make_profile(layers), adapter=adapter, **options)


def hooks_of(model):
    return [
        hook for part in model.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    ]
