"""ConsisID in diffusers: CogVideoX-5b-I2V with additional attention to a face between its layers.

Sources: diffusers consisid_transformer_3d.py, pipeline_consisid.py.
"""

from dataclasses import replace

from freeloc_adapters import cogvideox

from freeloc.adapter import TokenGrid

DIFFUSERS = replace(
    cogvideox.DIFFUSERS,
    name="consisid",
    family="consisid",
    classes=("diffusers.models.transformers.consisid_transformer_3d.ConsisIDTransformer3DModel",),
    grid=TokenGrid(axes="b f c h w", patch=(1, "config.patch_size", "config.patch_size")),
)

ADAPTERS = [DIFFUSERS]
