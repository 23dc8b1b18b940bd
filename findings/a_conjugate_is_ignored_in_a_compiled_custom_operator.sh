#!/usr/bin/env bash
# In a custom operator that compiled code calls, Tensor.conj() does nothing.
#
# Tensor.conj() only marks a tensor, and the next operation conjugates it. An operator that is compiled with AOTAutograd, as
# by inductor, runs its implementation below the part of the dispatcher that does this. So z * z.conj() is z * z, without an
# error or a warning, in compiled code only. torch.conj_physical(z) conjugates at once, and is right in both.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import torch
from torch import Tensor


@torch.library.custom_op("finding::powers", mutates_args=())
def powers(x: Tensor) -> Tensor:
    z = torch.complex(x, 2 * x)
    return torch.stack([(z * z.conj()).imag, (z * torch.conj_physical(z)).imag])


powers.register_fake(lambda x: torch.empty(2, *x.shape))
print("not compiled:", powers(torch.ones(1)).flatten().tolist())
for backend in ("eager", "aot_eager"):
    compiled = torch.compile(lambda x: torch.ops.finding.powers(x), backend=backend)
    print(f"compiled, {backend}:", compiled(torch.ones(1)).flatten().tolist())
PYTHON
cat > "$folder/expected" <<'TEXT'
not compiled: [0.0, 0.0]
compiled, eager: [0.0, 0.0]
compiled, aot_eager: [4.0, 0.0]
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
