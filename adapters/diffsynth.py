"""Wan in DiffSynth-Studio: text, image, TI2V, VACE, Animate, camera. Its pipeline calls a function, not the model.

Source: modelscope/DiffSynth-Studio 2.1, diffsynth/pipelines/wan_video.py, models/wan_video_dit.py, wan_video_vace.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freeloc_adapters.wan import ROPE

from freeloc.adapter import Adapter, AttentionSite, Beside, Kernel, References, Refusal, RunBy, TokenGrid

FLASH_ATTENTION = Kernel(
    function="flash_attention",
    layout="b l (h d)",
    arguments=("q", "k", "v", "num_heads", "compatibility_mode"),
    query="q",
    key="k",
    value="v",
    heads="num_heads",
)

# The patch embedding of both networks sees the latents as they are attended to, in chunks of a sliding window too.
GRID = TokenGrid("output", patch=(1, 1, 1), of="patch_embedding", largest_frames=("freqs.0.shape.0", "table freqs"))


def _references(given: Mapping[str, Any]) -> int:
    """Images before the video: those of VACE, in the arguments of the pipeline, and the character of Animate."""
    images = given.get("vace_reference_image")
    of_vace = len(images) if isinstance(images, list) else int(images is not None)
    return of_vace + int(given.get("pose_latents") is not None)


WAN = Adapter(
    name="diffsynth-wan",
    family="wan",
    classes=("diffsynth.models.wan_video_dit.WanModel",),
    sites=(AttentionSite("blocks.*.self_attn", kernel=FLASH_ATTENTION),),
    grid=replace(
        GRID,
        references=References(frames=_references),
        refused={
            "reference_latents": "its image is one more latent frame, which the patch embedding does not see",
            "vace_context": "the network that makes its hints, VaceWanModel, must be patched too: patch the pipeline",
            "vap": "its tokens are in the attention of some layers, beside those of the video",
            "use_unified_sequence_parallel": "its kernels (yunchang) run outside the attention that freeloc intercepts",
        },
    ),
    rope=replace(ROPE, tables="freqs"),
    heads="blocks.0.num_heads",
    head_dim="blocks.0.self_attn.head_dim",
    other_attention=("blocks.*.cross_attn",),
    exact=True,  # the audio transformer of MOVA is a subclass
    run_by=RunBy("diffsynth.pipelines.wan_video:model_fn_wan_video", last="head"),
)

# The pipeline calls it as a module. It has the layers `vace_layers` of the transformer.
VACE = Adapter(
    name="diffsynth-wan-vace",
    family="wan",
    classes=("diffsynth.models.wan_video_vace.VaceWanModel",),
    sites=(AttentionSite("vace_blocks.*.self_attn", kernel=FLASH_ATTENTION),),
    grid=replace(
        GRID, of="vace_patch_embedding", largest_frames=None, references=References(caller="vace_reference_image")
    ),
    rope=WAN.rope,
    heads="vace_blocks.0.num_heads",
    head_dim="vace_blocks.0.self_attn.head_dim",
    other_attention=("vace_blocks.*.cross_attn",),
    exact=True,
    beside=Beside("diffsynth-wan", layers="vace_layers", of="itself", argument="vace_context"),
)


def _refusal(name: str, model: str, reason: str) -> Refusal:
    return Refusal(f"diffsynth-{name}", (f"diffsynth.models.{model}",), reason)


ADAPTERS = [
    WAN,
    VACE,
    _refusal(
        "wan-s2v",
        "wan_video_dit_s2v.WanS2VModel",
        "the reference image and earlier frames follow the video in its sequence, at positions of their own. It "
        "generates long videos itself, clip by clip; to correct attention, use Wan",
    ),
    _refusal(
        "wan-animate-2",
        "wan_animate_2_dit.WanAnimate2Transformer",
        "frames also attend to cached keys of a reference video, at other positions. Use Wan-Animate",
    ),
    _refusal(
        "longcat-video",
        "longcat_video_dit.LongCatVideoTransformer3DModel",
        "frames that are given are attended to apart from those that are generated. It continues videos itself; to "
        "correct attention, use Wan",
    ),
]
