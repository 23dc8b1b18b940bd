"""Small random models of the families, and inputs for them, on which the conformance suite checks the adapters."""

from freeloc_adapters.examples import (
    allegro,
    cogvideox,
    consisid,
    cosmos,
    easyanimate,
    hunyuan_video,
    kandinsky,
    latte,
    ltx,
    mochi,
    motif_video,
    wan,
    wan_based,
)

EXAMPLES = [
    *allegro.EXAMPLES,
    *cogvideox.EXAMPLES,
    *consisid.EXAMPLES,
    *cosmos.EXAMPLES,
    *easyanimate.EXAMPLES,
    *hunyuan_video.EXAMPLES,
    *kandinsky.EXAMPLES,
    *latte.EXAMPLES,
    *ltx.EXAMPLES,
    *mochi.EXAMPLES,
    *motif_video.EXAMPLES,
    *wan.EXAMPLES,
    *wan_based.EXAMPLES,
]
