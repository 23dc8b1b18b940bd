#!/usr/bin/env bash
# PyTorch's CPU kernel gives a log-sum-exp of 0, not of -inf, for a query whose keys are all masked.
#
# Who computes attention in parts (over blocks of keys, or over the keys of several devices) merges the parts by their
# log-sum-exp. A query of a padded batch may have no key in one part. The kernel gives an output of 0 and a log-sum-exp of 0
# for it, so the part counts as if it had one key with a logit of 0 and a value of 0, and the merged output is too small.
# Nothing is nan, and nothing is raised. FlexAttention and torch.logsumexp give -inf, with which the merge is right.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 8, 16)
kept = torch.tensor([True] * 4 + [False] * 4)  # a sample with 4 keys, padded to 8
bias = torch.zeros(1, 1, 8, 8).masked_fill(~kept, -torch.inf)
whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
halves = [kernel(q, k[:, :, at], v[:, :, at], attn_mask=bias[..., at]) for at in (slice(0, 4), slice(4, 8))]


def merged(out, lse):
    weights = torch.softmax(torch.stack(lse), dim=0)[..., None]
    return (weights * torch.stack(out)).sum(dim=0)


out, lse = zip(*halves)
print("log-sum-exp of the masked half:", lse[1].unique().tolist())
print("output of the masked half:", out[1].unique().tolist())
print(f"largest error of the merge: {(merged(out, lse) - whole).abs().max():.3f}")
mended = [lse[0], torch.full_like(lse[1], -torch.inf)]
print(f"with -inf instead: {(merged(out, mended) - whole).abs().max():.3f}")
blocks = create_block_mask(lambda b, h, i, j: kept[j] & (j >= 4), 1, 1, 8, 8, device="cpu")
print("log-sum-exp of FlexAttention:", flex_attention(q, k, v, block_mask=blocks, return_lse=True)[1].unique().tolist())
PYTHON
cat > "$folder/expected" <<'TEXT'
log-sum-exp of the masked half: [0.0]
output of the masked half: [0.0]
largest error of the merge: 0.248
with -inf instead: 0.000
log-sum-exp of FlexAttention: [-inf]
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
