"""Allegro in diffusers.

Sources: diffusers transformer_allegro.py, AllegroAttnProcessor2_0, pipeline_allegro.py.
"""

from typing import Any

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid


def _tables(rotary: Any) -> Any:
    """The temporal tables have a row per position, which each token looks up."""
    (cos, sin), positions = rotary[0][0], rotary[1][0]
    return cos[positions], sin[positions]


# A third of each head is temporal, with pairs (i, i + 16) of its 32 channels. There are 1 / 2.2 positions per frame.
DIFFUSERS = Adapter(
    name="allegro",
    family="allegro",
    classes=("diffusers.models.transformers.transformer_allegro.AllegroTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1"),),
    grid=TokenGrid(patch=("config.patch_size_t", "config.patch_size", "config.patch_size")),
    rope=TemporalRope(
        channels=lambda head_dim: head_dim // 3,
        pairing="(two pair)",
        step=lambda model, given: 1 / model.config.interpolation_scale_t,
        tables="image_rotary_emb",
        tables_from=_tables,
    ),
    other_attention=("transformer_blocks.*.attn2",),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [DIFFUSERS]
