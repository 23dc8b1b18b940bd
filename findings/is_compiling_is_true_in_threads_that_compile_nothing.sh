#!/usr/bin/env bash
# torch.compiler.is_compiling() is true in all threads while one thread compiles anything.
#
# The flag belongs to the process. Code that branches on it takes the branch for tracing in another thread that runs eagerly
# at that moment, and no error tells so. torch.compiler.is_dynamo_compiling() does not have this problem: it is a function
# that returns False, and that Dynamo replaces by True in what it traces.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import threading

import torch

compiling, go_on = threading.Event(), threading.Event()


def slow_backend(graph, inputs):
    compiling.set()
    assert go_on.wait(60)
    return graph


function = torch.compile(lambda x: x + 1, backend=slow_backend)
thread = threading.Thread(target=function, args=(torch.ones(1),))
thread.start()
assert compiling.wait(60)
print("another thread compiles:", torch.compiler.is_compiling(), torch.compiler.is_dynamo_compiling())
go_on.set()
thread.join()
print("afterwards:", torch.compiler.is_compiling(), torch.compiler.is_dynamo_compiling())
PYTHON
cat > "$folder/expected" <<'TEXT'
another thread compiles: True False
afterwards: False False
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
