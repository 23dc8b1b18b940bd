#!/usr/bin/env bash
# Up to PyTorch 2.9, torch.compiler.is_exporting() is true inside torch.compile, where nothing is exported.
#
# Its documentation says that it is true under torch.export alone. Called by itself, and in code that runs uncompiled, it is.
# Dynamo answers it with a constant, the same for both. So a branch for exports runs in each compiled model: here the compiled
# function returns another number than the function. PyTorch 2.13 gives the same number.
#
# Fails if the behaviour changes. Seen with torch==2.9.1 (2.8.0 is like it) and 2.13.0, numpy==2.4.6, Python 3.11.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/script.py" <<'PYTHON'
import torch


def number(x):
    return x + (100 if torch.compiler.is_exporting() else 1)


zero = torch.zeros(())
compiled = torch.compile(number, backend="eager", fullgraph=True)
print(f"torch {torch.__version__.partition('+')[0]}: called {int(number(zero))}, compiled {int(compiled(zero))}")
PYTHON
for version in 2.9.1 2.13.0; do
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet "torch==$version" numpy==2.4.6
  "$folder/venv/bin/python" "$folder/script.py" >> "$folder/found"
  rm -rf "$folder/venv"
done
cat > "$folder/expected" <<'TEXT'
torch 2.9.1: called 1, compiled 100
torch 2.13.0: called 1, compiled 1
TEXT
cat "$folder/found"
diff "$folder/expected" "$folder/found"
