"""Models that are built on Wan: SkyReels-V2, ChronoEdit, Wan-Animate and AnyFlow of diffusers.

Sources: diffusers transformer_skyreels_v2.py, transformer_chronoedit.py, transformer_wan_animate.py,
transformer_anyflow.py. SkyReels-V2 may see the past alone, in blocks of frames: its mask is kept. ChronoEdit puts a
video of two latent frames 7 positions apart; so few are within any trained length, and left alone.
"""

from dataclasses import replace

from freeloc_adapters.wan import DIFFUSERS

from freeloc.adapter import TokenGrid

SKYREELS_V2 = replace(
    DIFFUSERS,
    name="skyreels-v2",
    family="skyreels-v2",
    classes=("diffusers.models.transformers.transformer_skyreels_v2.SkyReelsV2Transformer3DModel",),
)

CHRONOEDIT = replace(
    DIFFUSERS,
    name="chronoedit",
    family="chronoedit",
    classes=("diffusers.models.transformers.transformer_chronoedit.ChronoEditTransformer3DModel",),
)

# The picture of the character is the first latent frame, at position 0: here frame 0 of the video, as for the model.
WAN_ANIMATE = replace(
    DIFFUSERS,
    name="wan-animate",
    family="wan-animate",
    classes=("diffusers.models.transformers.transformer_wan_animate.WanAnimateTransformer3DModel",),
)

ANYFLOW = replace(
    DIFFUSERS,
    name="anyflow",
    family="anyflow",
    classes=("diffusers.models.transformers.transformer_anyflow.AnyFlowTransformer3DModel",),
    grid=TokenGrid(axes="b f c h w"),
)

ADAPTERS = [SKYREELS_V2, CHRONOEDIT, WAN_ANIMATE, ANYFLOW]
