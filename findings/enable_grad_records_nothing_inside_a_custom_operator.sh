#!/usr/bin/env bash
# Inside the implementation of a custom operator, torch.enable_grad() records nothing, and torch.func.vjp does.
#
# An operator of torch.library runs below autograd in the dispatcher. A gradient operator that wants to differentiate the
# forward formula once more finds that its output has no graph, although gradients are enabled and the inputs require them.
# torch.func.vjp opens a level of its own, which includes autograd again, so it gives the gradient, in eager and in compiled
# code.
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


def cubed(x: Tensor) -> Tensor:
    return x**3


@torch.library.custom_op("finding::by_graph", mutates_args=())
def by_graph(x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = cubed(x)
    return torch.tensor([float(torch.is_grad_enabled()), float(x.requires_grad), float(out.requires_grad)])


@torch.library.custom_op("finding::by_vjp", mutates_args=())
def by_vjp(x: Tensor) -> Tensor:
    _, gradient_of = torch.func.vjp(cubed, x)
    return gradient_of(torch.ones_like(x))[0].clone()


by_graph.register_fake(lambda x: torch.empty(3))
by_vjp.register_fake(torch.empty_like)
x = torch.tensor([2.0])
enabled, required, recorded = by_graph(x).tolist()
print(f"enable_grad: the input requires gradients {bool(required)}, the output {bool(recorded)}")
print("vjp:", by_vjp(x).tolist())
print("vjp, compiled:", torch.compile(lambda x: torch.ops.finding.by_vjp(x), backend="aot_eager")(x).tolist())
PYTHON
cat > "$folder/expected" <<'TEXT'
enable_grad: the input requires gradients True, the output False
vjp: [12.0]
vjp, compiled: [12.0]
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
