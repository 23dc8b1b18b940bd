"""Video models of ComfyUI: HunyuanVideo, CogVideoX, Mochi, Kandinsky 5, Cosmos-Predict2; and those that are refused.

Source: ComfyUI 0.30.0 comfy/ldm. Wan and LTX are in files of their own. All of them call `optimized_attention`, which
stands for the kernel that ComfyUI chooses on a machine. It is replaced by its name, so the choice makes no difference,
and an `optimized_attention_override` of another node computes the layers that are not corrected.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter import Adapter, AttentionSite, Kernel, Refusal, TemporalRope, TokenGrid

ATTENTION = Kernel(
    function="optimized_attention",
    layout="b l (h d)",
    heads="heads",
    arguments=(
        *("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape", "scale"),
        *("enable_gqa", "low_precision_attention", "transformer_options"),
    ),
    query="q",
    key="k",
    value="v",
    mask="mask",
    scale="scale",
    neutral={"skip_reshape": False, "skip_output_reshape": False, "enable_gqa": False},
)
HEADS_APART = replace(
    ATTENTION,
    layout="b h l d",
    output="b l (h d)",
    heads=None,
    neutral={"skip_output_reshape": False, "enable_gqa": False},
    required={"skip_reshape": True},
)


def rope_options(given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the node ScaleROPE has set; None without it."""
    options = given.get("transformer_options") or {}
    return options.get("rope_options")


FLUX = replace(HEADS_APART, function="comfy.ldm.flux.math:optimized_attention")

HUNYUAN_VIDEO = Adapter(
    name="comfyui-hunyuan-video",
    family="hunyuan-video",
    classes=("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
    exact=True,
    sites=(
        AttentionSite("double_blocks.*", kernel=FLUX, text="first", text_tokens="txt"),
        # Text of all encoders, whose number the model tells these blocks.
        AttentionSite(
            "single_blocks.*", kernel=FLUX, text="first", text_tokens="transformer_options.img_slice.0", joint=True
        ),
    ),
    grid=TokenGrid(
        "output",
        axes="b c f h w",
        patch=(1, 1, 1),
        of="img_in.proj",
        refused={
            "ref_latent": "a reference image, at time -1, comes before the first latent frame. Generate without it, or "
            "at most the trained length"
        },
    ),
    rope=TemporalRope(channels="params.axes_dim.0", theta="params.theta", tables="pe"),
    heads="num_heads",
    head_dim="pe_embedder.dim",
)

COGVIDEOX = Adapter(
    name="comfyui-cogvideox",
    family="cogvideox",
    classes=("comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel",),
    exact=True,
    sites=(AttentionSite("blocks.*", kernel=ATTENTION, text="first", text_tokens="encoder_hidden_states"),),
    grid=TokenGrid(
        "image_embeds", axes="b f c h w", patch=("patch_size_t", "patch_size", "patch_size"), of="patch_embed"
    ),
    rope=TemporalRope(
        channels=lambda head_dim: head_dim // 4, tables="image_rotary_emb", present="use_rotary_positional_embeddings"
    ),
    heads="num_attention_heads",
    head_dim="attention_head_dim",
)

# Learned frequencies (3, heads, pairs) for time, height and width: all three rotate all pairs of a head.
MOCHI = Adapter(
    name="comfyui-mochi",
    family="mochi",
    classes=("comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint",),
    exact=True,
    sites=(AttentionSite("blocks.*.attn", kernel=HEADS_APART, text="last", text_tokens="crop_y"),),
    grid=TokenGrid("x", patch=(1, "patch_size", "patch_size")),
    rope=TemporalRope(channels=lambda head_dim: head_dim, frequencies_from=lambda model: model.pos_frequencies[0]),
    heads="num_heads",
    head_dim="head_dim",
)


def _kandinsky_positions(model: Any, given: Mapping[str, Any]) -> float:
    """The node ScaleROPE takes the place of the model's own scale."""
    options = rope_options(given)
    return 1 / float(model.rope_scale_factor[0]) if options is None else float(options.get("scale_t", 1.0))


KANDINSKY_5 = Adapter(
    name="comfyui-kandinsky5",
    family="kandinsky5",
    classes=("comfy.ldm.kandinsky5.model.Kandinsky5",),
    exact=True,
    sites=(AttentionSite("visual_transformer_blocks.*.self_attention", kernel=HEADS_APART),),
    grid=TokenGrid("output", axes="b f h w c", patch=(1, 1, 1), of="visual_embeddings"),
    rope=TemporalRope(channels="rope_embedder_3d.axes_dim.0", step=_kandinsky_positions, tables="freqs"),
    heads="visual_transformer_blocks.0.self_attention.num_heads",
    head_dim="visual_transformer_blocks.0.self_attention.head_dim",
    other_attention=("text_transformer_blocks", "visual_transformer_blocks.*.cross_attention"),
)


def _cosmos_frequencies(model: Any) -> Tensor:
    """The exponents are a buffer, which may be offloaded; so they are computed."""
    head_dim = int(model.model_channels // model.num_heads)
    channels = head_dim - 4 * (head_dim // 6)
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    base: float = 10_000.0 * model.pos_embedder.t_ntk_factor
    frequencies: Tensor = base**-exponents
    return frequencies


def _cosmos_positions(model: Any, given: Mapping[str, Any]) -> float:
    """If a frame rate is given and the model uses it, positions are frames at 24 frames per second."""
    is_used = given.get("fps") is not None and model.pos_embedder.enable_fps_modulation
    return float(model.pos_embedder.base_fps / given["fps"]) if is_used else 1.0


COSMOS_PREDICT_2 = Adapter(
    name="comfyui-cosmos-predict2",
    family="cosmos",
    classes=("comfy.ldm.cosmos.predict2.MiniTrainDIT",),
    exact=True,
    sites=(AttentionSite("blocks.*.self_attn", kernel=HEADS_APART),),
    grid=TokenGrid("output", axes="b f h w c", patch=(1, 1, 1), of="x_embedder"),
    rope=TemporalRope(
        channels=lambda head_dim: head_dim - 4 * (head_dim // 6),
        pairing="(two pair)",
        within=lambda head_dim: head_dim,
        frequencies_from=_cosmos_frequencies,
        step=_cosmos_positions,
        trained_step=1.0,
        unit="frames at 24 per second",
        tables="rope_emb",
    ),
    heads="num_heads",
    head_dim="blocks.0.self_attn.head_dim",
    other_attention=("blocks.*.cross_attn",),
)

REFUSED = [
    Refusal(
        "comfyui-cosmos-1",
        ("comfy.ldm.cosmos.model.GeneralDIT",),
        "its attention modules get tokens first and the batch second. Use Cosmos-Predict2, or Cosmos 1.0 in diffusers "
        "(CosmosTransformer3DModel)",
    ),
    Refusal(
        "comfyui-minimax-h3",
        ("comfy.ldm.minimax.model.MiniMaxH3Model",),
        "text, images, sound and video are packed into one sequence, and latent frames are not equally far apart. Use "
        "a model whose tokens are one video, such as HunyuanVideo or Wan",
    ),
    Refusal(
        "comfyui-seedvr2",
        ("comfy.ldm.seedvr.model.NaDiT",),
        "it enlarges a finished video, with attention inside small windows of it. Correct the model that generates the "
        "video, and leave this one unchanged",
    ),
    Refusal(
        "comfyui-unet",
        ("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",),
        "it is a U-Net (Stable Diffusion for images, Stable Video Diffusion for clips), whose frames attend to each "
        "other at one place of the picture only, without RoPE. Use a video transformer, such as Wan",
    ),
]

ADAPTERS = [HUNYUAN_VIDEO, COGVIDEOX, MOCHI, KANDINSKY_5, COSMOS_PREDICT_2, *REFUSED]
