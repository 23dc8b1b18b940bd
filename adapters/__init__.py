"""The adapters that come with freeloc, registered through the entry-point group ``freeloc`` like any plugin's."""

from freeloc_adapters import (
    allegro,
    cogvideox,
    comfyui,
    comfyui_ltx,
    comfyui_wan,
    consisid,
    cosmos,
    diffsynth,
    easyanimate,
    fastvideo,
    hunyuan_video,
    kandinsky,
    latte,
    ltx,
    ltx_core,
    mochi,
    motif_video,
    musubi,
    open_sora,
    refused,
    wan,
    wan_based,
    wan_video_wrapper,
)

from freeloc import hookimpl
from freeloc.adapter import Adapter, Example, Refusal


@hookimpl
def freeloc_adapters() -> list[Adapter | Refusal]:
    """The adapters and refusals of all families."""
    return [
        *allegro.ADAPTERS,
        *cogvideox.ADAPTERS,
        *comfyui.ADAPTERS,
        *comfyui_ltx.ADAPTERS,
        *comfyui_wan.ADAPTERS,
        *consisid.ADAPTERS,
        *cosmos.ADAPTERS,
        *diffsynth.ADAPTERS,
        *easyanimate.ADAPTERS,
        *fastvideo.ADAPTERS,
        *hunyuan_video.ADAPTERS,
        *kandinsky.ADAPTERS,
        *latte.ADAPTERS,
        *ltx.ADAPTERS,
        *ltx_core.ADAPTERS,
        *mochi.ADAPTERS,
        *motif_video.ADAPTERS,
        *musubi.ADAPTERS,
        *open_sora.ADAPTERS,
        *refused.ADAPTERS,
        *wan.ADAPTERS,
        *wan_based.ADAPTERS,
        *wan_video_wrapper.ADAPTERS,
    ]


@hookimpl
def freeloc_examples() -> list[Example]:
    """Small models of each family."""
    from freeloc_adapters.examples import EXAMPLES

    return list(EXAMPLES)
