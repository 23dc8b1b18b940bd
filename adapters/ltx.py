"""LTX-Video and LTX-2 of diffusers.

RoPE is applied to all channels of all heads before they are split. Every third pair is temporal, so heads differ in
temporal pairs and in frequencies. Source: diffusers transformer_ltx.py, transformer_ltx2.py.

In LTX-2 the first latent frame is shorter than the others (4.5 instead of 8 video frames before the second). Keys are
rotated by the difference to their new position, so this is preserved. Attention between video and audio is not changed.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from freeloc_adapters.diffusers_hooks import BYPASSES
from freeloc_adapters.wan import CONTEXT_PARALLEL, NATIVE
from torch import Tensor

from freeloc.adapter import Adapter, AttentionSite, TemporalRope, TokenGrid
from freeloc.adapter.reader import times_apart


def _per_head(model: Any, waves: Tensor) -> Tensor:
    """Temporal frequencies by head. The pairs are: some that never rotate, then time, row and column alternately."""
    found = torch.zeros(model.rope.dim // 2, dtype=torch.float32)
    found[model.rope.dim % 6 // 2 :: 3] = 2 * waves.float()  # the model computes and uses them in float32
    return found.view(int(model.config.num_attention_heads), -1)


def _frequencies(model: Any) -> Tensor:
    exponents = torch.linspace(0, 1, model.rope.dim // 6, dtype=torch.float32)
    return _per_head(model, model.rope.theta**exponents * (math.pi / 2))


def _frequencies_2(model: Any) -> Tensor:
    dtype = torch.float64 if model.rope.double_precision else torch.float32
    exponents = torch.linspace(0, 1, model.rope.dim // 6, dtype=dtype)
    return _per_head(model, model.rope.theta**exponents * (math.pi / 2)) / float(model.rope.base_num_frames)


def _positions_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    """Positions are fractions of 20 seconds; without a scale, latent frames."""
    if given.get("video_coords") is not None:
        return times_apart(given["video_coords"]) / float(model.rope.base_num_frames)
    scale = given.get("rope_interpolation_scale")
    return 1.0 if scale is None else float(scale[0]) * model.rope.patch_size_t / float(model.rope.base_num_frames)


def _trained_positions_per_frame(model: Any) -> float:
    """At 25 frames per second and 8 per latent frame, as in the pipelines."""
    return 8 / 25 * float(model.rope.patch_size_t / model.rope.base_num_frames)


def _seconds_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    """Positions are seconds. The pipelines pass the frame rate beside coordinates, which are rounded."""
    apart = float(model.rope.scale_factors[0] * model.rope.patch_size_t / given["fps"])
    if given.get("video_coords") is None:
        return apart
    found = times_apart(given["video_coords"])
    return apart if math.isclose(found, apart, rel_tol=1e-4) else found


def _trained_seconds_per_frame(model: Any) -> float:
    """At 24 frames per second, as in the pipelines."""
    return float(model.rope.scale_factors[0] * model.rope.patch_size_t / 24)


LTX = Adapter(
    name="ltx",
    family="ltx",
    classes=("diffusers.models.transformers.transformer_ltx.LTXVideoTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1", while_running=NATIVE),),
    grid=TokenGrid(
        ("num_frames", "height", "width"),
        patch=(1, 1, 1),
        coordinates="video_coords",
    ),
    rope=TemporalRope(
        lambda head_dim: head_dim,
        frequencies_from=_frequencies,
        step=_positions_per_frame,
        trained_step=_trained_positions_per_frame,
        unit="seconds",
        tables="image_rotary_emb",
    ),
    other_attention=("transformer_blocks.*.attn2",),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

LTX_2 = Adapter(
    name="ltx-2",
    family="ltx-2",
    classes=("diffusers.models.transformers.transformer_ltx2.LTX2VideoTransformer3DModel",),
    sites=(AttentionSite("transformer_blocks.*.attn1", while_running=NATIVE, idle="all_perturbed"),),
    grid=TokenGrid(
        ("num_frames", "height", "width"),
        patch=("config.patch_size_t", "config.patch_size", "config.patch_size"),
        coordinates="video_coords",
    ),
    rope=TemporalRope(
        lambda head_dim: head_dim,
        pairing="config.rope_type=split",
        frequencies_from=_frequencies_2,
        step=_seconds_per_frame,
        trained_step=_trained_seconds_per_frame,
        unit="seconds",
        tables="query_rotary_emb",
    ),
    other_attention=(
        "transformer_blocks.*.attn2",
        "transformer_blocks.*.audio_attn1",
        "transformer_blocks.*.audio_attn2",
        "transformer_blocks.*.audio_to_video_attn",
        "transformer_blocks.*.video_to_audio_attn",
        # Of the pipeline's component `connectors`, which reads the text.
        "video_connector",
        "audio_connector",
    ),
    bypasses=BYPASSES,
    context_parallel=CONTEXT_PARALLEL,
)

ADAPTERS = [LTX, LTX_2]
