"""ConsisID of diffusers."""

from typing import Any

from freeloc_adapters.examples import cogvideox
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = {name: value for name, value in cogvideox.SIZES.items() if name != "patch_size_t"} | {"num_attention_heads": 3}
FACE = {
    "is_train_face": True,
    "cross_attn_interval": 1,
    "cross_attn_dim_head": 8,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 6,
    "LFE_vit_dim": 8,
    "LFE_depth": 2,
    "LFE_dim_head": 4,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 3,
    "LFE_output_dim": 32,  # what the model computes from 3 heads of 16 channels
    "LFE_ff_mult": 2,
    "LFE_num_scale": 2,
}


def consisid() -> nn.Module:
    """A small ConsisID with attention to a face after each layer."""
    from diffusers import ConsisIDTransformer3DModel

    return random_model(lambda: ConsisIDTransformer3DModel(**SIZES, **FACE))


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    # The tables are CogVideoX's. ConsisID's pipeline makes the same ones, but cannot be imported without OpenCV.
    given: dict[str, Any] = cogvideox.inputs(cogvideox.SIZES, frames, height, width, batch)
    return given | {
        "id_cond": noise(batch, 6),
        "id_vit_hidden": [noise(batch, 7, 8), noise(batch, 9, 8)],
    }


EXAMPLES = [Example("consisid", consisid, inputs)]
