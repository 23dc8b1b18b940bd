#!/usr/bin/env bash
# PyTorch's CPU kernel for attention, called by its own name, ignores the stride of the last axis.
#
# It returns the attention of other numbers, and raises nothing. F.scaled_dot_product_attention is right: it takes another
# kernel for such tensors. Who calls the kernel for its log-sum-exp, as attention in parts does, has to make channels adjacent
# first: every second channel of a tensor, or a projection whose output is (channels, heads), gives tensors of this kind.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import torch
import torch.nn.functional as F

tensors = list(torch.randn(3, 2, 2, 64, 24, generator=torch.Generator().manual_seed(0)))
query, key, value = (tensor.double() for tensor in tensors)
right = (query @ key.mT * 24**-0.5).softmax(-1) @ value


def error(found):
    return f"off by {float((found - right).abs().max()):.2f}"


def by_name(*tensors):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*tensors)[0]


print("adjacent channels:", error(by_name(*tensors)))
for index, name in enumerate(("query", "key", "value")):
    wide = torch.zeros(2, 2, 64, 48)
    wide[..., ::2] = tensors[index]
    apart = [*tensors[:index], wide[..., ::2], *tensors[index + 1 :]]
    assert torch.equal(apart[index], tensors[index])
    print(f"channels of the {name} apart: the kernel {error(by_name(*apart))}, F.scaled_dot_product_attention", end=" ")
    print(error(F.scaled_dot_product_attention(*apart)))
PYTHON
cat > "$folder/expected" <<'TEXT'
adjacent channels: off by 0.00
channels of the query apart: the kernel off by 0.80, F.scaled_dot_product_attention off by 0.00
channels of the key apart: the kernel off by 0.83, F.scaled_dot_product_attention off by 0.00
channels of the value apart: the kernel off by 1.30, F.scaled_dot_product_attention off by 0.00
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
