"""Models that are based on Wan: SkyReels-V2, ChronoEdit, Wan-Animate and AnyFlow of diffusers.

Sources: diffusers transformer_skyreels_v2.py, transformer_chronoedit.py, transformer_wan_animate.py,
transformer_anyflow.py. SkyReels-V2 may attend to the past only, in blocks of frames; its mask is preserved. ChronoEdit
puts the two latent frames of a video 7 positions apart. So few frames are within any trained length, and not changed.
"""

from dataclasses import replace

from freeloc_adapters.wan import DIFFUSERS, ROWS

from freeloc.adapter import References, TokenGrid

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

# The picture of the character is the first latent frame, at position 0.
WAN_ANIMATE = replace(
    DIFFUSERS,
    name="wan-animate",
    family="wan-animate",
    classes=("diffusers.models.transformers.transformer_wan_animate.WanAnimateTransformer3DModel",),
    grid=TokenGrid(references=References(frames=1), largest_frames=ROWS),
)

ANYFLOW = replace(
    DIFFUSERS,
    name="anyflow",
    family="anyflow",
    classes=("diffusers.models.transformers.transformer_anyflow.AnyFlowTransformer3DModel",),
    grid=TokenGrid(axes="b f c h w", largest_frames=("rope.max_seq_len", "rope_max_seq_len")),
)

ADAPTERS = [SKYREELS_V2, CHRONOEDIT, WAN_ANIMATE, ANYFLOW]
