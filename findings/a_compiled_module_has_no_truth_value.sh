#!/usr/bin/env bash
# bool(), `or` and `if` raise a TypeError for a compiled module.
#
# OptimizedModule defines __len__ for modules that have one, and raises a TypeError for the others. Python asks __len__ for
# the truth value of an object without __bool__. So `model = compiled or model`, which works for every plain module without a
# length, is an error.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import torch
from torch import nn

module = nn.Linear(2, 2)
print("plain:", bool(module))
compiled = torch.compile(module, backend="eager")
try:
    print("compiled:", bool(compiled))
except TypeError as error:
    print("compiled: TypeError:", error)
PYTHON
cat > "$folder/expected" <<'TEXT'
plain: True
compiled: TypeError: Linear does not support len()
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
