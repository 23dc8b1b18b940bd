"""HunyuanVideo-1.5's own transformer, with its attention modes "torch" (flex attention) and "flash2", on the CPU.

The source is at FREELOC_HUNYUAN15, see tests/runtimes/hunyuan15.sh. What needs a GPU is replaced: flash-attn by
PyTorch's attention of the same arguments, compiled flex attention by the same without compilation, and its device mesh.
"""

import os
import sys
import types

import pytest
import torch
import torch.nn.functional as F
import transformers  # noqa: F401  # reason: it looks for packages that are stood in for
from absent import stand_in
from hunyuan15_cases import Cases
from torch.nn.attention.flex_attention import flex_attention

from freeloc.testing import noise, random_model

FOLDER = os.environ.get("FREELOC_HUNYUAN15", "")
pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]
if not FOLDER:
    pytest.skip(
        "FREELOC_HUNYUAN15 is not set to a folder with the source of Tencent-Hunyuan/HunyuanVideo-1.5: see "
        "tests/runtimes/hunyuan15.sh",
        allow_module_level=True,
    )
sys.path.insert(0, FOLDER)
stand_in("torchvision", "loguru", "flash_attn", "imageio", "flex_block_attn", "angelslim")

from hyvideo.commons import parallel_states  # noqa: E402
from hyvideo.models.transformers.hunyuanvideo_1_5_transformer import (  # noqa: E402
    HunyuanVideo_1_5_DiffusionTransformer,
)
from hyvideo.models.transformers.modules import attention  # noqa: E402


def flash_attn_no_pad(qkv, key_padding_mask, causal=False, dropout_p=0.0, softmax_scale=None):
    """(batch, tokens, 3, heads, head_dim), without the tokens that the mask hides."""
    q, k, v = (tensor.transpose(1, 2) for tensor in qkv.unbind(2))
    shown = key_padding_mask.bool()
    out = F.scaled_dot_product_attention(q, k, v, shown[:, None, None]).transpose(1, 2)
    return out * shown[:, :, None, None]


@pytest.fixture(scope="module", autouse=True)
def _on_a_cpu():
    setattr(parallel_states, "__parallel_dims", types.SimpleNamespace(sp_enabled=False, sp=1, sp_rank=0))
    attention.flex_attention, attention.flash_attn_no_pad = flex_attention, flash_attn_no_pad


class TestReal(Cases):
    modes = ("torch", "flash2")

    @staticmethod
    def make(mode):
        def build():
            return HunyuanVideo_1_5_DiffusionTransformer(
                patch_size=[1, 2, 2],
                in_channels=4,
                concat_condition=False,
                hidden_size=48,
                heads_num=2,
                mm_double_blocks_depth=2,
                mm_single_blocks_depth=2,
                rope_dim_list=[8, 8, 8],
                text_states_dim=16,
                attn_mode=mode,
            )

        return random_model(build, sharpness=1.8)

    @staticmethod
    def inputs(frames, height, width, batch):
        mask = torch.ones(batch, 5, dtype=torch.long)
        mask[-1, 3:] = 0
        return {
            "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
            "timestep": torch.full((batch,), 500),
            "text_states": noise(batch, 5, 16),
            "text_states_2": None,
            "encoder_attention_mask": mask,
        }
