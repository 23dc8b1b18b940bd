#!/usr/bin/env bash
# With pyramid attention broadcast, a deep copy of a model of diffusers computes with the attention weights of the first one.
#
# A hook of diffusers replaces `forward` of a module by a function that knows the module's own forward. A deep copy copies
# modules and weights, but not functions: the copy's attention still calls the forward of the first model. There is no error
# and no warning, and nothing to see as long as both have the same weights. If the copy gets others (an average of weights,
# another checkpoint, a LoRA), its video is that of the first model's attention. With layerwise casting or FirstBlockCache,
# which are hooks of the same kind, running the copy is an error.
#
# Fails if the behaviour changes. Seen with diffusers==0.42.1, torch==2.13.0, numpy==2.4.6, Python 3.11.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
cat > "$folder/script.py" <<'PYTHON'
import copy

import torch
from diffusers import PyramidAttentionBroadcastConfig, WanTransformer3DModel

torch.manual_seed(0)
model = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=64,
    num_layers=2,
).eval()
inputs = {
    "hidden_states": torch.randn(1, 4, 3, 6, 10), "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 3, 16), "return_dict": False,
}


@torch.no_grad()
def output_of_a_copy():
    """The output of a copy whose self-attention has other weights."""
    other = copy.deepcopy(model)
    for name, weight in other.named_parameters():
        if ".attn1." in name:
            weight.mul_(-2)
    return other(**inputs)[0]


with torch.no_grad():
    own = model(**inputs)[0]
expected = output_of_a_copy()
print(f"without the cache, the copy differs from the first model: {not torch.allclose(own, expected, atol=1e-2)}")
model.enable_cache(
    PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(100, 900),
        current_timestep_callback=lambda: 950,
    )
)
found = output_of_a_copy()
print(f"with the cache, which skips nothing at this step, it is as before: {torch.allclose(found, expected, atol=1e-2)}")
print(f"with the cache, it is the output of the first model: {torch.equal(found, own)}")
PYTHON
cat > "$folder/expected" <<'TEXT'
without the cache, the copy differs from the first model: True
with the cache, which skips nothing at this step, it is as before: False
with the cache, it is the output of the first model: True
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
