#!/usr/bin/env bash
# An attention processor that passes (*args, **kwargs) on to the model's own gets no rotary embedding from diffusers.
#
# Attention.forward passes only those keyword arguments whose names are in the signature of the processor's __call__. A wrapper
# that times, caches or counts a processor has the names "args" and "kwargs" alone, so image_rotary_emb is left out, although
# **kwargs would accept it. CogVideoX then attends without any positions. A line is logged; the output is finite, has the right
# shape, and is that of a model that was given no rotary embedding. Classes with a forward of their own (Wan, HunyuanVideo 1.5)
# pass it by position, so the same wrapper is exact there. functools.wraps mends it: inspect.signature then sees the names.
#
# Fails if the behaviour changes. Seen with diffusers==0.42.1, torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0
cat > "$folder/script.py" <<'PYTHON'
import functools

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

torch.manual_seed(0)
heads = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "in_channels": 4, "out_channels": 4}
cog = CogVideoXTransformer3DModel(
    text_embed_dim=16, time_embed_dim=8, sample_height=4, sample_width=4, sample_frames=9,
    max_text_seq_length=3, use_rotary_positional_embeddings=True, **heads,
).eval()
wan = WanTransformer3DModel(text_dim=16, freq_dim=32, ffn_dim=64, **heads).eval()
angles = torch.randn(3 * 2 * 2, 24)
cog_inputs = {
    "hidden_states": torch.randn(1, 3, 4, 4, 4), "encoder_hidden_states": torch.randn(1, 3, 16),
    "timestep": torch.tensor([500.0]), "return_dict": False,
}
wan_inputs = cog_inputs | {"hidden_states": torch.randn(1, 4, 3, 4, 4)}
rotary = {"image_rotary_emb": (angles.cos(), angles.sin())}


def wrapped(processor, named):
    def call(self, *args, **kwargs):
        return processor(*args, **kwargs)

    if named:
        call = functools.wraps(type(processor).__call__)(call)
    return type("Wrapper", (), {"__call__": call})()


@torch.no_grad()
def run(model, inputs, named=None):
    layers = [block.attn1 for block in getattr(model, "transformer_blocks", None) or model.blocks]
    own = [layer.processor for layer in layers]
    if named is not None:
        for layer, processor in zip(layers, own):
            layer.processor = wrapped(processor, named)
    out = model(**inputs)[0]
    for layer, processor in zip(layers, own):
        layer.processor = processor
    return out


plain, without = run(cog, cog_inputs | rotary), run(cog, cog_inputs)
found = run(cog, cog_inputs | rotary, named=False)
print("CogVideoX: equal to its own output:", torch.equal(found, plain))
print("CogVideoX: equal to that without a rotary embedding:", torch.equal(found, without))
print("CogVideoX: equal with functools.wraps:", torch.equal(run(cog, cog_inputs | rotary, named=True), plain))
print("Wan: equal to its own output:", torch.equal(run(wan, wan_inputs, named=False), run(wan, wan_inputs)))
PYTHON
cat > "$folder/expected" <<'TEXT'
CogVideoX: equal to its own output: False
CogVideoX: equal to that without a rotary embedding: True
CogVideoX: equal with functools.wraps: True
Wan: equal to its own output: True
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
