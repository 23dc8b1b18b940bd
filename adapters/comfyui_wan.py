"""Wan 2.1 and 2.2 in ComfyUI, and the models that are based on it: VACE, Camera, Animate, S2V, HuMo, SCAIL, WanDancer.

Source: ComfyUI 0.30.0 comfy/ldm/wan/model.py, model_animate.py, model_wandancer.py, ar_model.py. All of them pad rows
and columns to whole patches, and append or prepend frames, so the grid is read where these are there already: in the
output of the patch embedding. The subclasses have attention of their own, so each adapter is for exactly its classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freeloc_adapters.comfyui import ATTENTION, rope_options
from freeloc_adapters.wan import ROPE

from freeloc.adapter import Adapter, AttentionSite, References, Refusal, TokenGrid


def positions_per_frame(model: Any, given: Mapping[str, Any]) -> float:
    """The node ScaleROPE changes how far latent frames are apart."""
    return float((rope_options(given) or {}).get("scale_t", 1.0))


def _class(name: str, file: str = "model") -> str:
    return f"comfy.ldm.wan.{file}.{name}"


def frames_of(argument: str) -> Any:
    """A function that counts the latent frames in an argument of the model."""

    def count(given: Mapping[str, Any]) -> int:
        latent = given.get(argument)
        return 0 if latent is None else int(latent.shape[2])

    return count


# Reference images of Phantom follow the frames of the video; the one of Fun-Control comes before them.
APPENDED = References("last", frames=frames_of("time_dim_concat"))
IN_FRONT = References(
    "first", frames=lambda given: int(given.get("reference_latent") is not None), apart=True, present="ref_conv"
)

GRID = TokenGrid(
    "output",
    axes="b c f h w",
    patch=(1, 1, 1),
    of="patch_embedding",
    references=(IN_FRONT, APPENDED),
    refused={
        "context_latents": "the frames of each reference follow those of the video, at the same times. Generate "
        "without them, or at most the trained length"
    },
)

WAN = Adapter(
    name="comfyui-wan",
    family="wan",
    classes=(_class("WanModel"), _class("CameraWanModel")),
    exact=True,
    sites=(AttentionSite("blocks.*.self_attn", kernel=ATTENTION),),
    grid=GRID,
    rope=replace(ROPE, tables="freqs", step=positions_per_frame),
    heads="num_heads",
    head_dim="blocks.0.self_attn.head_dim",
    other_attention=("blocks.*.cross_attn",),
)

# Reference images come before the video. Their number is in no argument of the model.
VACE = replace(
    WAN,
    name="comfyui-wan-vace",
    classes=(_class("VaceWanModel"),),
    sites=(*WAN.sites, AttentionSite("vace_blocks.*.self_attn", kernel=ATTENTION, layers="vace_layers_mapping")),
    grid=replace(GRID, references=References(), refused={}),
    other_attention=("blocks.*.cross_attn", "vace_blocks.*.cross_attn"),
)

# The picture of the character is the first latent frame, at position 0.
ANIMATE = replace(
    WAN,
    name="comfyui-wan-animate",
    family="wan-animate",
    classes=(_class("AnimateWanModel", "model_animate"),),
    grid=replace(GRID, references=References(frames=1), refused={}),
)

S2V = replace(
    WAN,
    name="comfyui-wan-s2v",
    classes=(_class("WanModel_S2V"),),
    grid=replace(
        GRID,
        references=APPENDED,
        refused={
            "reference_latent": "a reference image follows the video at a time of its own, 30 or 9 latent frames after "
            "the last. Generate without it, or in segments of at most the trained length",
            "reference_motion": "earlier frames, pooled by two and by four, follow the video. Generate without them, "
            "or in segments of at most the trained length",
        },
    ),
    other_attention=("blocks.*.cross_attn", "audio_injector.injector"),
)

HUMO = replace(
    WAN,
    name="comfyui-wan-humo",
    classes=(_class("HumoWanModel"),),
    grid=replace(
        GRID,
        references=(APPENDED, References("last", frames=frames_of("reference_latent"), apart=True)),
        refused={},
    ),
    other_attention=("blocks.*.cross_attn", "blocks.*.audio_cross_attn_wrapper.audio_cross_attn"),
)

SCAIL = replace(
    WAN,
    name="comfyui-wan-scail",
    classes=(_class("SCAILWanModel"), _class("SCAIL2WanModel")),
    grid=replace(
        GRID,
        references=(References("first", frames=frames_of("reference_latent")), APPENDED),
        refused={
            "pose_latents": "the frames of the pose follow those of the video, at the same times. Generate without a "
            "pose, or at most the trained length"
        },
    ),
)

DANCER = replace(
    WAN,
    name="comfyui-wandancer",
    classes=(_class("WanDancerModel", "model_wandancer"),),
    grid=replace(GRID, references=APPENDED, refused={}),
    other_attention=("blocks.*.cross_attn", "music_injector.injector"),
)

CAUSAL = Refusal(
    "comfyui-wan-causal",
    (_class("CausalWanModel", "ar_model"),),
    "it generates block by block, each of which attends to cached keys of the blocks before. It generates long videos "
    "itself; to correct attention, load the same weights as a Wan model without this cache",
)

ADAPTERS = [WAN, VACE, ANIMATE, S2V, HUMO, SCAIL, DANCER, CAUSAL]
