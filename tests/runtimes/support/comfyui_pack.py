"""The node pack of docs/examples, installed as its page says into a folder of ComfyUI with small random models."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from comfyui_graph import Do, Graphs, node
from comfyui_source import comfyui
from safetensors.torch import save_file

HOME = Path(tempfile.mkdtemp()) / "ComfyUI"
comfyui("--use-pytorch-cross-attention", "--base-directory", str(HOME))

ROOT = Path(__file__).parent.parent.parent.parent
PACK = HOME / "custom_nodes" / "comfyui-freeloc"
LONG, TRAINED = 45, 9
"""Video frames: 12 and 3 latent frames."""


def documented_commands():
    """The first indented block of the page: what a user types to install."""
    page = (ROOT / "docs" / "how-to" / "use-in-comfyui.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in page.split("\n\n    ", 1)[1].split("\n\n")[0].splitlines()]


def installed():
    """For a fixture: graphs in which the nodes can be used."""
    clone, copy, install = documented_commands()
    assert clone[:2] == ["git", "clone"]
    (HOME / "custom_nodes").mkdir(parents=True)
    os.symlink(ROOT, HOME.parent / "freeloc")  # what the first command would fetch
    subprocess.run(copy, cwd=HOME.parent, check=True)
    assert install[:2] == ["pip", "install"]
    checked = [sys.executable, "-m", *install, "--dry-run", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run(checked, cwd=HOME.parent, check=True)
    for folder in ("diffusion_models", "vae", "loras", "freeloc"):
        (HOME / "models" / folder).mkdir(parents=True)
    save_wan(HOME / "models" / "diffusion_models" / "wan.safetensors", seed=0)
    save_wan(HOME / "models" / "diffusion_models" / "low.safetensors", seed=1)
    save_vae(HOME / "models" / "vae" / "wan.safetensors")
    graphs = Graphs()
    assert graphs.load(PACK)
    Do.functions["wan"] = functools.cache(lambda _: load_model("wan.safetensors"))
    yield graphs
    shutil.rmtree(HOME.parent)


def load_model(name):
    """A MODEL, as the core node loads it."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(HOME / "models" / "diffusion_models" / name))


def sampling(model="long", length=LONG, seed=1, steps=2, batch_size=1, **more):
    """A graph whose sampler uses the output of a node: unet without freeloc, long with it."""
    graph = {
        "unet": node("Do", what="wan"),  # one network for all tests
        "positive": node("TinyText", text="a fox"),
        "negative": node("TinyText", text="blurry"),
        "empty": node("EmptyHunyuanLatentVideo", width=32, height=32, length=length, batch_size=batch_size),
        "long": node("FreelocLongVideo", model=["unet", 0], trained_frames=TRAINED),
        "sampler": node(
            "KSampler",
            model=[model, 0],
            seed=seed,
            steps=steps,
            cfg=5.0,
            sampler_name="euler",
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            denoise=1.0,
        ),
        "keep": node("Keep", latent=["sampler", 0]),
    }
    if model != "unet":
        graph["report"] = node("FreelocReport", model=[model, 0], latent=["sampler", 0])
    return graph | more


def with_node(graphs, function, before=False):
    """A graph in which a function changes the model, after or before freeloc's node."""
    other = node("Do", what=graphs.do(function), model=["unet" if before else "long", 0])
    if before:
        return sampling(long=node("FreelocLongVideo", model=["other", 0], trained_frames=TRAINED), other=other)
    return sampling("other", other=other)


def save_wan(path: Path, seed: int, layers: int = 2, **sizes):
    """A small random Wan whose configuration ComfyUI reads from the weights: 2 heads of 128 channels."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    small = {"in_dim": 16, "dim": 256, "ffn_dim": 128, "num_heads": 2, "num_layers": layers} | sizes
    model = WanModel("t2v", **small, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    save_file(_random(model, seed), path)


def save_vae(path: Path):
    """A small random VAE of Wan 2.1."""
    from comfy.ldm.wan.vae import WanVAE

    model = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    save_file(_random(model, seed=0), path)


def _random(model, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        sharp = 3 if "self_attn" in name and (".q." in name or ".k." in name) else 1
        is_scale = (value.ndim == 1 and "bias" not in name) or "gamma" in name
        state[name] = torch.ones_like(value) if is_scale else torch.randn(value.shape, generator=generator)
        state[name] *= 1.0 if is_scale else 0.1 * sharp / max(1, value[0].numel() / 256) ** 0.5
    return state
