"""CogVideoX: 2b, 5b, 5b-I2V and 1.5 in diffusers.

Sources: diffusers cogvideox_transformer_3d.py, CogVideoXAttnProcessor2_0, get_3d_rotary_pos_embed; THUDM/CogVideo.

The pipeline computes the rotary tables. Their temporal positions are 0, 1, 2 ... in frames of tokens; with
`patch_size_t` 2 (version 1.5) such a frame is two latent frames. 2b has no rotary embedding, so it supports only
methods that do not change positions, such as TSA. 5b-I2V adds a learned embedding to the tokens in addition to RoPE; at
other lengths than the trained one, diffusers adds sinusoids instead.
"""

from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid

# Heads of 64 channels are split 16 / 24 / 24 for time, height and width.
DIFFUSERS = Adapter(
    name="cogvideox",
    family="cogvideox",
    classes=("diffusers.models.transformers.cogvideox_transformer_3d.CogVideoXTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1", text="first", text_tokens="encoder_hidden_states"),),
    grid=TokenGrid(axes="b f c h w", patch=("config.patch_size_t", "config.patch_size", "config.patch_size")),
    rope=TemporalRope(
        channels=lambda head_dim: head_dim // 4,
        tables="image_rotary_emb",
        present="config.use_rotary_positional_embeddings",
    ),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [DIFFUSERS]
