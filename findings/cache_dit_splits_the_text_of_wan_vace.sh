#!/usr/bin/env bash
# Under cache-dit's Ulysses, Wan VACE computes another video than in one process. Wan itself does not.
#
# cache-dit's plan for WanVACETransformer3DModel splits hidden_states and encoder_hidden_states at the first block. Each
# process then attends in cross-attention to its own half of the text only, since nothing gathers the keys of the text there.
# Its plan for WanTransformer3DModel leaves the text whole, and is exact. No error, no warning: each process shows a finite
# output of the right shape.
#
# Fails if the behaviour changes. Seen with cache-dit==1.5.3, diffusers==0.42.1, torch==2.13.0, numpy==2.4.6, Python 3.11, in
# two gloo processes on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 cache-dit==1.5.3
cat > "$folder/script.py" <<'PYTHON'
import sys

import cache_dit
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

dist.init_process_group("gloo")
torch.manual_seed(0)
sizes = {
    "num_attention_heads": 4, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4, "text_dim": 16,
    "freq_dim": 32, "ffn_dim": 64, "num_layers": 2,
}
inputs = {
    "hidden_states": torch.randn(1, 4, 4, 8, 8), "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 4, 16), "return_dict": False,
}
if sys.argv[1] == "Wan":
    model = WanTransformer3DModel(**sizes)
else:
    model = WanVACETransformer3DModel(**sizes, vace_layers=[0], vace_in_channels=8)
    inputs["control_hidden_states"] = torch.randn(1, 8, 4, 8, 8)
for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.2)
config = cache_dit.ParallelismConfig(ulysses_size=2, attention_backend="native")
with torch.no_grad():
    alone = model(**inputs)[0]
    cache_dit.enable_cache(model, cache_config=None, parallelism_config=config)
    shared = model(**inputs)[0]
if dist.get_rank() == 0:
    print(f"{sys.argv[1]}: two processes differ from one by more than 1 %:", end=" ")
    print(bool((shared - alone).abs().max() > 0.01 * alone.abs().max()))
dist.barrier()
dist.destroy_process_group()
PYTHON
cat > "$folder/expected" <<'TEXT'
Wan: two processes differ from one by more than 1 %: False
Wan VACE: two processes differ from one by more than 1 %: True
TEXT
for model in "Wan" "Wan VACE"; do
  OMP_NUM_THREADS=1 "$folder/venv/bin/torchrun" --standalone --nproc-per-node 2 "$folder/script.py" "$model" \
    2> "$folder/log" || { cat "$folder/log"; exit 1; }
done | grep "two processes" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
