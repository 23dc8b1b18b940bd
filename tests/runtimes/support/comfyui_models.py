"""ComfyUI's own video models with small random weights, and inputs. Call `comfyui_source.comfyui()` first."""

import copy
import functools
import importlib
import math

import torch
from torch import nn

from freeloc.testing import Example, noise

SHARP = (
    *("self_attn.q.", "self_attn.k.", "to_q.", "to_k.", "to_query.", "to_key.", "qkv", "linear1."),
    *("q_proj.", "k_proj.", ".q.", ".k."),
)
"""Parts of the names of weights that are made larger, so that attention is far from uniform."""


def fill(model: nn.Module) -> nn.Module:
    """Random weights: ComfyUI leaves them as they are in memory until a checkpoint is loaded."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.7 / math.sqrt(weight[0].numel()), generator=generator)
        elif name.endswith("weight") or name.endswith("scale"):
            weight.data.fill_(1.0)
        else:
            weight.data.normal_(0, 0.1, generator=generator)
        if weight.ndim > 1 and any(part in name for part in SHARP):
            weight.data.mul_(3)
    return model.eval().requires_grad_(False)


@functools.cache
def _template(path: str, sizes: tuple) -> nn.Module:
    import comfy.ops
    import comfy.patcher_extension  # which the files of some models do not import themselves

    file, _, name = path.rpartition(".")
    make = getattr(importlib.import_module(f"comfy.ldm.{file}"), name)
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in sizes}
    return fill(make(**kept, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init))


def model(path: str, **sizes) -> nn.Module:
    """A small model, by the path of its class in comfy.ldm."""
    return copy.deepcopy(_template(path, tuple(sizes.items())))


def example(adapter, path, sizes, inputs, name="", **more) -> Example:
    return Example(
        adapter,
        functools.partial(model, path, **sizes),
        inputs,
        **({"name": name, "video": "x", "axes": "b c f h w"} | more),
    )


def times(batch):
    return torch.full((batch,), 500.0)


def video(frames, height, width, batch, channels=4, patch=(1, 2, 2)):
    return noise(batch, channels, patch[0] * frames, patch[1] * height, patch[2] * width)


WAN = {
    "model_type": "t2v", "in_dim": 4, "dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16, "out_dim": 4,
    "num_heads": 2, "num_layers": 3,
}  # fmt: skip


def wan_inputs(frames, height, width, batch):
    return {"x": video(frames, height, width, batch), "timestep": times(batch), "context": noise(batch, 7, 16)}


def wan_image_inputs(frames, height, width, batch):
    return wan_inputs(frames, height, width, batch) | {"clip_fea": noise(batch, 5, 1280)}


def vace_inputs(frames, height, width, batch):
    control = noise(batch, 1, 6, frames, 2 * height, 2 * width)
    return wan_inputs(frames, height, width, batch) | {"vace_context": control, "vace_strength": [0.7]}


def camera_inputs(frames, height, width, batch):
    still = noise(batch, 6, 1, 16 * height, 16 * width).expand(-1, -1, frames, -1, -1)
    return wan_image_inputs(frames, height, width, batch) | {"camera_conditions": still}


def animate_inputs(frames, height, width, batch):
    still = noise(batch, 16, 1, 2 * height, 2 * width).expand(-1, -1, frames - 1, -1, -1)
    return wan_image_inputs(frames, height, width, batch) | {"pose_latents": still}


LAYERS = {"audio_inject_layers": (0, 2)}
WANS = [
    example("comfyui-wan", "wan.model.WanModel", WAN, wan_inputs),
    example(
        "comfyui-wan", "wan.model.WanModel", WAN | {"model_type": "i2v", "in_dim_ref_conv": 4}, wan_image_inputs,
        name="comfyui-wan-i2v",
    ),
    example(
        "comfyui-wan", "wan.model.CameraWanModel",
        WAN | {"model_type": "camera", "in_dim_control_adapter": 6}, camera_inputs, name="comfyui-wan-camera",
    ),
    example(
        "comfyui-wan-vace", "wan.model.VaceWanModel",
        WAN | {"num_layers": 4, "vace_layers": 2, "vace_in_dim": 6}, vace_inputs,
    ),
    example(
        "comfyui-wan-animate", "wan.model_animate.AnimateWanModel", WAN | {"model_type": "animate"}, animate_inputs
    ),
    example("comfyui-wan-s2v", "wan.model.WanModel_S2V", WAN | {"audio_dim": 8, **LAYERS}, wan_inputs),
    example("comfyui-wan-humo", "wan.model.HumoWanModel", WAN | {"model_type": "humo"}, wan_inputs),
    example(
        "comfyui-wan-scail", "wan.model.SCAILWanModel", WAN | {"model_type": "scail"}, wan_image_inputs,
    ),
    example(
        "comfyui-wan-scail", "wan.model.SCAIL2WanModel", WAN | {"model_type": "scail2", "mask_in_dim": 4},
        wan_image_inputs, name="comfyui-wan-scail2",
    ),
    example("comfyui-wandancer", "wan.model_wandancer.WanDancerModel", WAN | LAYERS, wan_image_inputs),
]  # fmt: skip

HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "vec_in_dim": 16, "context_in_dim": 16, "hidden_size": 48, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": (8, 8, 8), "theta": 256,
    "patch_size": (1, 2, 2), "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_15 = HUNYUAN | {
    "vec_in_dim": None, "guidance_embed": False, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 12,
    "depth": 3, "depth_single_blocks": 0,
}  # fmt: skip


def hunyuan_inputs(frames, height, width, batch):
    return {
        "x": video(frames, height, width, batch), "timestep": times(batch), "context": noise(batch, 7, 16),
        "y": noise(batch, 16), "guidance": torch.full((batch,), 6.0),
    }  # fmt: skip


def hunyuan_15_inputs(frames, height, width, batch):
    text = {"txt_byt5": noise(batch, 3, 1472), "clip_fea": noise(batch, 5, 12)}
    return wan_inputs(frames, height, width, batch) | text


COG = {
    "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16,
    "text_embed_dim": 16, "num_layers": 3, "sample_width": 16, "sample_height": 16, "sample_frames": 13,
    "max_text_seq_length": 7, "use_rotary_positional_embeddings": True,
}  # fmt: skip


def cog_15_inputs(frames, height, width, batch):
    return wan_inputs(2 * frames, height, width, batch) | {"ofs": torch.full((batch,), 2.0)}


MOCHI = {
    "in_channels": 4, "hidden_size_x": 48, "hidden_size_y": 32, "depth": 3, "num_heads": 2, "mlp_ratio_x": 256.0,
    "mlp_ratio_y": 2.0, "use_t5": True, "t5_feat_dim": 16, "t5_token_length": 7, "learn_sigma": False,
    "qkv_bias": False, "qk_norm": True, "out_bias": True,
}  # fmt: skip


def mochi_inputs(frames, height, width, batch):
    mask = {"attention_mask": torch.ones(batch, 7, dtype=torch.bool), "num_tokens": 5}
    return wan_inputs(frames, height, width, batch) | mask


KANDINSKY = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 12, "time_dim": 32, "model_dim": 48,
    "ff_dim": 64, "visual_embed_dim": 16, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (8, 8, 8),
    "rope_scale_factor": (1.0, 2.0, 2.0),
}  # fmt: skip


def kandinsky_inputs(frames, height, width, batch):
    return wan_inputs(frames, height, width, batch) | {"y": noise(batch, 12)}


COSMOS = {
    "max_img_h": 32, "max_img_w": 32, "max_frames": 64, "in_channels": 4, "out_channels": 4, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 48, "num_blocks": 3, "num_heads": 2, "crossattn_emb_channels": 16,
    "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 8, "rope_t_extrapolation_ratio": 2.0,
}  # fmt: skip


def cosmos_inputs(frames, height, width, batch):
    return {
        "x": video(frames, height, width, batch), "timesteps": times(batch) / 1000, "context": noise(batch, 7, 16),
        "fps": 20.0,
    }  # fmt: skip


LTX = {
    "in_channels": 4, "cross_attention_dim": 40, "attention_head_dim": 20, "num_attention_heads": 2,
    "caption_channels": 16, "num_layers": 3,
}  # fmt: skip
LTX_2 = LTX | {
    "causal_temporal_positioning": True, "audio_in_channels": 128, "audio_cross_attention_dim": 32,
    "audio_attention_head_dim": 16, "audio_num_attention_heads": 2, "rope_type": "split",
    "frequencies_precision": "float64", "use_middle_indices_grid": True, "apply_gated_attention": True,
    "cross_attention_adaln": True, "connector_attention_head_dim": 16, "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}  # fmt: skip


def ltx_inputs(frames, height, width, batch):
    x = video(frames, height, width, batch, patch=(1, 1, 1))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])[:batch]
    time = {"timestep": times(batch) / 1000, "frame_rate": 25.0}
    return {"x": x, "context": noise(batch, 7, 16), "attention_mask": mask, **time}


def ltx_2_inputs(frames, height, width, batch):
    found = ltx_inputs(frames, height, width, batch)
    sound = noise(batch, 8, 2 * frames, 16)
    return found | {"x": [found["x"], sound], "context": noise(batch, 7, 32), "frame_rate": 24.0}


OTHERS = [
    example("comfyui-hunyuan-video", "hunyuan_video.model.HunyuanVideo", HUNYUAN, hunyuan_inputs),
    example(
        "comfyui-hunyuan-video", "hunyuan_video.model.HunyuanVideo", HUNYUAN_15, hunyuan_15_inputs,
        name="comfyui-hunyuan-video-1.5",
    ),
    example("comfyui-cogvideox", "cogvideo.model.CogVideoXTransformer3DModel", COG, wan_inputs),
    example(
        "comfyui-cogvideox", "cogvideo.model.CogVideoXTransformer3DModel",
        COG | {"patch_size_t": 2, "ofs_embed_dim": 16}, cog_15_inputs, name="comfyui-cogvideox-1.5",
    ),
    example(
        "comfyui-cogvideox", "cogvideo.model.CogVideoXTransformer3DModel",
        COG | {"use_rotary_positional_embeddings": False, "attention_head_dim": 48}, wan_inputs,
        name="comfyui-cogvideox-2b",
    ),
    example("comfyui-mochi", "genmo.joint_model.asymm_models_joint.AsymmDiTJoint", MOCHI, mochi_inputs),
    example("comfyui-kandinsky5", "kandinsky5.model.Kandinsky5", KANDINSKY, kandinsky_inputs),
    example("comfyui-cosmos-predict2", "cosmos.predict2.MiniTrainDIT", COSMOS, cosmos_inputs),
    example("comfyui-ltx", "lightricks.model.LTXVModel", LTX, ltx_inputs, tolerance=1e-3),
    example("comfyui-ltx-2", "lightricks.av_model.LTXAVModel", LTX_2, ltx_2_inputs, video="x.0", tolerance=1e-3),
]  # fmt: skip

EXAMPLES = WANS + OTHERS
