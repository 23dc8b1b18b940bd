"""LTX-Video and LTX-2 in ComfyUI.

Source: ComfyUI 0.30.0 comfy/ldm/lightricks/model.py, av_model.py, symmetric_patchifier.py.

As in diffusers (`freeloc_adapters.ltx`), RoPE is applied to all channels of all heads before they are split, every
third pair is temporal, positions are seconds, and attention between video and audio is not changed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from freeloc_adapters.comfyui import ATTENTION
from torch import Tensor

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid


def _frequencies(model: Any) -> Tensor:
    """Temporal frequencies by head, in radians per second.

    The pairs are: some that never rotate, then time, row and column alternately.
    """
    grid = model.freq_grid_generator(model.positional_embedding_theta, 3, model.inner_dim, "cpu")
    found = torch.zeros(model.inner_dim // 2, dtype=torch.float32)
    found[model.inner_dim // 2 - 3 * len(grid) :: 3] = 2 * grid.float()  # positions p become 2p - 1
    return found.view(model.num_attention_heads, -1) / float(model.positional_embedding_max_pos[0])


def _seconds_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    return float(model.vae_scale_factors[0]) / float(given.get("frame_rate", 25))


def _trained_at(frames_per_second: int) -> Any:
    return lambda model: float(model.vae_scale_factors[0]) / frames_per_second


GUIDES = {
    "keyframe_idxs": "the frames of guides follow those of the video, at times of their own. Generate without guides, "
    "or at most the trained length"
}
KERNEL = replace(ATTENTION, function="comfy.ldm.modules.attention:optimized_attention")

ROPE = TemporalRope(
    lambda head_dim: head_dim,
    pairing="split_positional_embedding=split",
    frequencies_from=_frequencies,
    step=_seconds_per_frame,
    trained_step=_trained_at(25),
    unit="seconds",
    tables="pe",
    tables_from=lambda argument: argument[0],
)

LTX = Adapter(
    name="comfyui-ltx",
    family="ltx",
    classes=("comfy.ldm.lightricks.model.LTXVModel",),
    exact=True,
    sites=(AttentionSite("transformer_blocks.*.attn1", kernel=KERNEL),),
    grid=TokenGrid("x", patch=(1, 1, 1), refused=GUIDES),
    rope=ROPE,
    heads="num_attention_heads",
    head_dim="attention_head_dim",
    other_attention=("transformer_blocks.*.attn2",),
)

LTX_2 = replace(
    LTX,
    name="comfyui-ltx-2",
    family="ltx-2",
    classes=("comfy.ldm.lightricks.av_model.LTXAVModel",),
    grid=TokenGrid("x.0", patch=(1, 1, 1), refused=GUIDES),
    rope=replace(ROPE, trained_step=_trained_at(24)),
    other_attention=(
        "transformer_blocks.*.attn2",
        "transformer_blocks.*.audio_attn1",
        "transformer_blocks.*.audio_attn2",
        "transformer_blocks.*.audio_to_video_attn",
        "transformer_blocks.*.video_to_audio_attn",
        # They read the text.
        "video_embeddings_connector",
        "audio_embeddings_connector",
    ),
)

ADAPTERS = [LTX, LTX_2]
