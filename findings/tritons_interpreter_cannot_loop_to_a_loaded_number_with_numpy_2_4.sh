#!/usr/bin/env bash
# Triton 3.6's interpreter cannot loop up to a number that the kernel has loaded, with numpy 2.4.
#
# In the interpreter (TRITON_INTERPRET=1) a scalar of a kernel is an array of one element and one axis, and a bound of a loop
# is made an int by int(array). numpy 2.4 ended what it had deprecated since 1.25: int() of an array with an axis. So kernels
# whose loops end at a loaded number, as in attention over sequences of many lengths, can no longer be tested without a GPU:
# a TypeError, far from any line of the kernel. Triton 3.6.0 accepts any numpy. Triton 3.7.1 is right with both.
#
# Fails if the behaviour changes. Seen with triton==3.6.0 and 3.7.1, numpy==2.3.5 and 2.4.6, torch==2.13.0, Python 3.11, on
# a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet torch==2.13.0
cat > "$folder/script.py" <<'PYTHON'
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def count(limits, out):
    steps = 0
    for _ in range(tl.load(limits), tl.load(limits + 1)):
        steps += 1
    tl.store(out, steps)


out = torch.zeros(1, dtype=torch.int32)
try:
    count[(1,)](torch.tensor([2, 7], dtype=torch.int32), out)
    found = f"{int(out)} steps"
except Exception as error:
    cause = error.__cause__ or error
    found = f"{type(cause).__name__}: {cause}"
print(f"triton {triton.__version__}, numpy {numpy.__version__}: {found}")
PYTHON
cat > "$folder/expected" <<'TEXT'
triton 3.6.0, numpy 2.3.5: 5 steps
triton 3.6.0, numpy 2.4.6: TypeError: only 0-dimensional arrays can be converted to Python scalars
triton 3.7.1, numpy 2.3.5: 5 steps
triton 3.7.1, numpy 2.4.6: 5 steps
TEXT
for triton in 3.6.0 3.7.1; do
  for numpy in 2.3.5 2.4.6; do
    "$pip" install --quiet --no-deps "triton==$triton" "numpy==$numpy"
    TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore "$folder/script.py"
  done
done | tee "$folder/found"
diff "$folder/expected" "$folder/found"
