"""Puts the doubles of ComfyUI's video models in place, with examples as small as comfyui_facts.py says."""

import functools
import sys
import types

import comfyui_joint_double as joint
import comfyui_ltx_double as ltx
import comfyui_wan_double as wan
import torch

from freeloc.testing import Example, noise, random_model

CLASSES = {
    "wan.model": (
        *(wan.WanModel, wan.CameraWanModel, wan.VaceWanModel, wan.WanModel_S2V, wan.HumoWanModel, wan.SCAILWanModel),
        *(wan.SCAIL2WanModel, wan.WanSelfAttention, wan.WanT2VCrossAttention),
    ),
    "wan.model_animate": (wan.AnimateWanModel,),
    "wan.model_wandancer": (wan.WanDancerModel,),
    "modules.attention": (),
    "flux.math": (),
    "hunyuan_video.model": (joint.HunyuanVideo, joint.DoubleStreamBlock, joint.SingleStreamBlock),
    "cogvideo.model": (joint.CogVideoXTransformer3DModel, joint.CogVideoXBlock),
    "genmo.joint_model.asymm_models_joint": (joint.AsymmDiTJoint, joint.AsymmetricAttention),
    "kandinsky5.model": (joint.Kandinsky5, joint.SelfAttention, joint.CrossAttention),
    "cosmos.predict2": (ltx.MiniTrainDIT, ltx.CosmosAttention),
    "lightricks.model": (ltx.LTXVModel, ltx.CrossAttention),
    "lightricks.av_model": (ltx.LTXAVModel,),
}


def install():
    """Put the doubles in place under the names of ComfyUI's files. Returns these names."""
    for file, classes in CLASSES.items():
        name = f"comfy.ldm.{file}"
        module = sys.modules[name] = types.ModuleType(name)
        module.optimized_attention = wan.optimized_attention
        for cls in classes:
            cls.__module__ = name
            setattr(module, cls.__name__, cls)
    return [f"comfy.ldm.{file}" for file in CLASSES]


def model(cls, sizes):
    install()
    return random_model(functools.partial(cls, **sizes))


def inputs(frames, height, width, batch, patch=(1, 2, 2), **more):
    x = noise(batch, 4, *[side * size for side, size in zip(patch, (frames, height, width), strict=True)])
    common = {"timestep": torch.full((batch,), 500.0), "context": noise(batch, 7, 16)}
    return {"x": x} | common | {name: make(batch) if callable(make) else make for name, make in more.items()}


def example(adapter, cls, sizes=None, label="", video="x", tolerance=1e-4, make=inputs, **given):
    return Example(
        adapter, functools.partial(model, cls, sizes or {}), functools.partial(make, **given), name=label, video=video,
        axes="b c f h w", tolerance=tolerance,
    )  # fmt: skip


def sound_inputs(frames, height, width, batch, **given):
    found = inputs(frames, height, width, batch, **given)
    return found | {"x": [found["x"], noise(batch, 8, 2 * frames, 16)]}


def cosmos_inputs(frames, height, width, batch, **given):
    found = inputs(frames, height, width, batch, **given)
    return {"timesteps" if name == "timestep" else name: value for name, value in found.items()}


def rate(frames_per_second):
    return {"patch": (1, 1, 1), "frame_rate": frames_per_second}


BYT5 = {"txt_byt5": lambda batch: noise(batch, 3, 1472)}
EXAMPLES = [
    example("comfyui-wan", wan.WanModel),
    example("comfyui-wan", wan.WanModel, {"ref_conv": True}, "comfyui-wan-i2v"),
    example("comfyui-wan", wan.CameraWanModel, label="comfyui-wan-camera"),
    example("comfyui-wan-vace", wan.VaceWanModel),
    example("comfyui-wan-animate", wan.AnimateWanModel),
    example("comfyui-wan-s2v", wan.WanModel_S2V),
    example("comfyui-wan-humo", wan.HumoWanModel),
    example("comfyui-wan-scail", wan.SCAILWanModel),
    example("comfyui-wan-scail", wan.SCAIL2WanModel, label="comfyui-wan-scail2"),
    example("comfyui-wandancer", wan.WanDancerModel),
    example("comfyui-hunyuan-video", joint.HunyuanVideo),
    example(
        "comfyui-hunyuan-video", joint.HunyuanVideo, {"double": 3, "single": 0}, "comfyui-hunyuan-video-1.5", **BYT5
    ),
    example("comfyui-cogvideox", joint.CogVideoXTransformer3DModel),
    example(
        "comfyui-cogvideox", joint.CogVideoXTransformer3DModel, {"time": 2, "factor": 1.0}, "comfyui-cogvideox-1.5",
        patch=(2, 2, 2),
    ),
    example(
        "comfyui-cogvideox", joint.CogVideoXTransformer3DModel, {"rotary": False}, "comfyui-cogvideox-2b"
    ),
    example("comfyui-mochi", joint.AsymmDiTJoint, attention_mask=None, num_tokens=5),
    example("comfyui-kandinsky5", joint.Kandinsky5, y=None),
    example("comfyui-cosmos-predict2", ltx.MiniTrainDIT, make=cosmos_inputs, fps=20.0),
    example("comfyui-ltx", ltx.LTXVModel, tolerance=1e-3, **rate(25.0)),
    example("comfyui-ltx-2", ltx.LTXAVModel, video="x.0", tolerance=1e-3, make=sound_inputs, **rate(24.0)),
]  # fmt: skip
