#!/usr/bin/env bash
# After a graph break, compiled code applies an active TorchFunctionMode twice, and fails on a property of it.
#
# A mode that was entered in traced code stays active over a graph break. Its __torch_function__ adds 1 to the sine and calls
# the function itself for that: PyTorch turns the mode off meanwhile, and so does Dynamo before the break. In the code that
# resumes after the break it does not: the inner call is intercepted once more, and 1 is added twice, without an error. If the
# mode has a property instead of an attribute, the resumed code is an internal error, and the mode stays on the stack.
#
# Fails if the behaviour changes. Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode


class ByProperty(TorchFunctionMode):
    @property
    def is_on(self):
        return True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {})) + 1 if func is torch.sin and self.is_on else func(*args, **(kwargs or {}))


class ByAttribute(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.is_on = lambda: True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {})) + 1 if func is torch.sin and self.is_on() else func(*args, **(kwargs or {}))


def run(kind, with_break):
    def call(x):
        mode = kind()
        mode.__enter__()
        if with_break:
            torch._dynamo.graph_break()
        out = torch.sin(x)
        mode.__exit__(None, None, None)
        return out

    torch._dynamo.reset()
    try:
        return torch.compile(call, backend="eager")(torch.zeros(1)).tolist()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


for kind in (ByProperty, ByAttribute):
    for with_break in (False, True):
        print(f"{kind.__name__}, {'a' if with_break else 'no'} break: {run(kind, with_break)}")
        left = _get_current_function_mode_stack()
        while _get_current_function_mode_stack():
            _pop_mode()
        if left:
            print("  left on the stack:", [type(mode).__name__ for mode in left])
PYTHON
cat > "$folder/expected" <<'TEXT'
ByProperty, no break: [1.0]
ByProperty, a break: AssertionError: cls_source must not be None for MRO walk
  left on the stack: ['ByProperty']
ByAttribute, no break: [1.0]
ByAttribute, a break: [2.0]
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" 2>/dev/null | tee "$folder/found"
diff "$folder/expected" "$folder/found"
