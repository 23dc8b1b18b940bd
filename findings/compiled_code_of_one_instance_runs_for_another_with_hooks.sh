#!/usr/bin/env bash
# A compiled module with a forward hook runs the code of another instance of its class that has none.
#
# torch.compile keeps compiled code by class, and guards neither empty dictionaries of hooks nor the instance. Alone, the
# module below is compiled with its hook. After another instance of its class was compiled, its hook is ignored, without a
# warning. So a library that adds hooks cannot rely on them in a compiled module, also where the module is compiled only
# after the hooks were added.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


plain, hooked, x = Block(), Block(), torch.ones(1)
hooked.inner.register_forward_hook(lambda module, args, output: output + 10)
print("not compiled:", hooked(x).item())
print("compiled, alone:", torch.compile(hooked, backend="eager")(x).item())
torch._dynamo.reset()
torch.compile(plain, backend="eager")(x)
print("compiled, after another instance:", torch.compile(hooked, backend="eager")(x).item())
PYTHON
cat > "$folder/expected" <<'TEXT'
not compiled: 22.0
compiled, alone: 22.0
compiled, after another instance: 2.0
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
