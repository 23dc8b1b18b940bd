"""Gets Wan 2.2's own classes from a folder with its source, with a kernel for the CPU in place of flash-attn's."""

import importlib
import inspect
import os
import sys
import types

import torch
import torch.nn.functional as F

FOLDER = os.environ.get("FREELOC_WAN22", "")
KERNEL_FILES = ("wan.modules.attention", "wan.modules.model", "wan.distributed.ulysses")
ANIMATE = "wan.modules.animate.model_animate"
SIZES = {"dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16, "text_len": 4, "num_heads": 2, "num_layers": 4}


def flash_attention(
    q,
    k,
    v,
    q_lens=None,
    k_lens=None,
    dropout_p=0.0,
    softmax_scale=None,
    q_scale=None,
    causal=False,
    window_size=(-1, -1),
    deterministic=False,
    dtype=torch.bfloat16,
    version=None,
):
    """The original's arguments. Keys beyond each sample's length are left out."""
    mask = None if k_lens is None else (torch.arange(k.shape[1]) < k_lens[:, None])[:, None, None]
    q, k, v = q.to(v.dtype).transpose(1, 2), k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def load():
    """Make the source importable, but not what its packages import for their programs."""
    if "wan.modules.model" in sys.modules:
        return
    for name in ("wan", "wan.modules", "wan.distributed", "wan.modules.animate", "wan.modules.s2v"):
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [os.path.join(FOLDER, *name.split("."))]
    own = importlib.import_module("wan.modules.attention").flash_attention
    assert [*inspect.signature(own).parameters] == [*inspect.signature(flash_attention).parameters]
    for name in KERNEL_FILES:
        importlib.import_module(name).flash_attention = flash_attention


def model(cls=None, **changes):
    """A small Wan 2.2; inputs of 4 channels."""
    cls = cls or importlib.import_module("wan.modules.model").WanModel
    made = cls(**{"model_type": "t2v", "in_dim": 4, "out_dim": 4} | SIZES | changes)
    for name, parameter in made.named_parameters():
        if ".q." in name or ".k." in name:
            parameter.data.mul_(4)
    return made
