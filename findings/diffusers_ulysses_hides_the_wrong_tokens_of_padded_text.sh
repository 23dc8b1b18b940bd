#!/usr/bin/env bash
# Under diffusers' Ulysses, HunyuanVideo with padded text attends to padding, and not to some of the video.
#
# HunyuanVideo makes its attention mask for the order video, text. Each process holds a part of both, so after the all-to-all
# the order is video and text of the first process, then video and text of the second. The mask is not split or reordered:
# it hides the last tokens of that sequence. That is right for text without padding, or if only the text of the last process
# is padded. Otherwise tokens of the video are hidden, and padding is seen, without an error or a warning.
# diffusers has no plan for HunyuanVideo, and asks the user for a cp_plan: this one splits video, text and rotary tables.
#
# Fails if the behaviour changes. Seen with diffusers==0.42.1, torch==2.13.0, numpy==2.4.6, Python 3.11, in two gloo processes
# on a CPU, where diffusers divides by the number of accelerators, so that the script has to set it to 1.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0
cat > "$folder/script.py" <<'PYTHON'
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, HunyuanVideoTransformer3DModel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

dist.init_process_group("gloo")
torch.accelerator.device_count = lambda: 1
torch.manual_seed(0)
model = HunyuanVideoTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=24, num_layers=1, num_single_layers=1,
    num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(8, 8, 8), patch_size=2,
    patch_size_t=1,
).eval()
for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.2)
inputs = {
    "hidden_states": torch.randn(1, 4, 4, 8, 8), "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 4, 16), "pooled_projections": torch.randn(1, 8),
    "guidance": torch.tensor([1000.0]), "return_dict": False,
}
tables = ContextParallelInput(0, 2, split_output=True)
plan = {
    "rope": {0: tables, 1: tables},
    "transformer_blocks.0": {
        "hidden_states": ContextParallelInput(1, 3), "encoder_hidden_states": ContextParallelInput(1, 3)
    },
    "proj_out": ContextParallelOutput(1, 3),
}
masks = {count: torch.arange(4)[None] < count for count in (4, 1)}


@torch.no_grad()
def outputs():
    return {count: model(**inputs, encoder_attention_mask=mask)[0] for count, mask in masks.items()}


alone = outputs()
model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2), cp_plan=plan)
shared = outputs()
if dist.get_rank() == 0:
    for count in masks:
        error = (shared[count] - alone[count]).abs().max() / alone[count].abs().max()
        print(f"{count} of 4 tokens of text are valid: two processes differ by more than 1 %: {bool(error > 0.01)}")
dist.barrier()
dist.destroy_process_group()
PYTHON
cat > "$folder/expected" <<'TEXT'
4 of 4 tokens of text are valid: two processes differ by more than 1 %: False
1 of 4 tokens of text are valid: two processes differ by more than 1 %: True
TEXT
OMP_NUM_THREADS=1 "$folder/venv/bin/torchrun" --standalone --nproc-per-node 2 "$folder/script.py" 2> "$folder/log" \
  | tee "$folder/found" || { cat "$folder/log"; exit 1; }
diff "$folder/expected" "$folder/found"
