#!/usr/bin/env bash
# A forward hook with always_call=True is not called after a KeyboardInterrupt.
#
# It is called after exceptions that derive from Exception alone. What such a hook is to give back after a failed forward (an
# attribute, a patched function, a function mode) stays as it is after Ctrl-C, which is how people end a long generation in a
# notebook.
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


class Failing(nn.Module):
    def forward(self, error):
        raise error


for error in (ValueError, SystemExit, KeyboardInterrupt):
    module, calls = Failing(), []
    module.register_forward_hook(lambda *anything: calls.append(1), always_call=True)
    try:
        module(error)
    except BaseException as raised:
        print(f"{type(raised).__name__}: hook called: {bool(calls)}")
PYTHON
cat > "$folder/expected" <<'TEXT'
ValueError: hook called: True
SystemExit: hook called: False
KeyboardInterrupt: hook called: False
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
