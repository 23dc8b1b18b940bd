#!/usr/bin/env bash
# LayerSkipConfig(fqn="auto"), the default, skips other layers from one start of Python to the next.
#
# diffusers looks for the model's stack of blocks by a tuple of names that is made from a set of strings. The order of such a
# set is that of their hashes, which Python randomises for each process. A model with two stacks that have such names, like
# HunyuanVideo with transformer_blocks and single_transformer_blocks, then gets the first that happens to come: the same
# program with the same seed skips a block of the one or of the other, and processes that share a batch differ. Guiders that
# make the configuration themselves from numbers of layers also use "auto". Name the stack: fqn="transformer_blocks".
#
# Fails if the behaviour changes. Seen with diffusers==0.42.1, torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0
cat > "$folder/script.py" <<'PYTHON'
import torch
from diffusers import HunyuanVideoTransformer3DModel, LayerSkipConfig, apply_layer_skip

torch.manual_seed(0)
model = HunyuanVideoTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=24, num_layers=2, num_single_layers=2,
    num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(8, 8, 8), patch_size=2,
    patch_size_t=1,
).eval()
inputs = {
    "hidden_states": torch.randn(1, 4, 4, 8, 8), "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 4, 16), "encoder_attention_mask": torch.ones(1, 4, dtype=torch.bool),
    "pooled_projections": torch.randn(1, 8), "guidance": torch.tensor([1000.0]), "return_dict": False,
}
config = LayerSkipConfig(indices=[1])
apply_layer_skip(model, config)
with torch.no_grad():
    print(f"skipped: {config.fqn}.1, norm of the output: {model(**inputs)[0].norm():.2f}")
PYTHON
for seed in 0 1 2 3 4 5 6 7; do
  PYTHONHASHSEED=$seed "$folder/venv/bin/python" -W ignore "$folder/script.py"
done | sort | uniq -c | tee "$folder/found"
grep -q " skipped: single_transformer_blocks.1," "$folder/found"
grep -q " skipped: transformer_blocks.1," "$folder/found"
test "$(wc -l < "$folder/found")" = 2
