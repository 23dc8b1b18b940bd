"""The positions of each family for the oracle, written from papers and code, not from the adapters."""

from families import (
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

FACTS = {
    **allegro.FACTS,
    **cogvideox.FACTS,
    **consisid.FACTS,
    **cosmos.FACTS,
    **easyanimate.FACTS,
    **hunyuan_video.FACTS,
    **kandinsky.FACTS,
    **latte.FACTS,
    **ltx.FACTS,
    **mochi.FACTS,
    **motif_video.FACTS,
    **wan.FACTS,
    **wan_based.FACTS,
}
