"""SkyReels-V2, ChronoEdit, Wan-Animate, AnyFlow: as Wan. AnyFlow passes unit complex numbers, for q and for k."""

from dataclasses import replace

import torch

from families import wan

WAN = wan.FACTS["wan"]


def still(table):
    return {name: torch.ones_like(rotations) for name, rotations in table.items()}


FACTS = {
    **dict.fromkeys(["skyreels-v2", "skyreels-v2-causal", "chronoedit"], WAN),
    "wan-animate": replace(WAN, references=1),
    "anyflow": replace(WAN, rotary=("rotary_emb",), still=still),
}
