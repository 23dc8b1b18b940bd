"""Compile the Triton kernel for an A100 and an H100, which need not be there, and print what became of it as JSON."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from freeloc.attention.backends.triton import kernel, tables, tuning

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {"heads": "*i32", "lists": "*i32", "segments": "*i32", "pair_of": "*i32", "partners": "*i8", "angles": "*fp32"}
TENSORS = ("query", "key", "copy", "value", "out", "mask")
DIVISIBLE = [["tt.divisibility", 16]]
"""What Triton finds out about addresses and strides of aligned tensors when it is called."""


def compiled(card, config, head_dim, **constants):
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": tables.padded(head_dim),
        "PAIRS": head_dim // 6,
        "MASK": 0,
        "ROTATES": True,
        "COPIES": True,
        "DECAYS": False,
        "NEGATIVE": False,
        "BLOCK_M": config.queries,
        "BLOCK_N": config.keys,
    } | constants
    names = kernel.attention_kernel.arg_names
    types = dict.fromkeys(names, "i32") | dict.fromkeys(TENSORS, "*bf16") | TYPES | {"scale": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    known = [name for name in names if types[name].startswith("*") or name.endswith(("_batch", "_head", "_token"))]
    attributes = {(names.index(name),): DIVISIBLE for name in known}
    source = ASTSource(kernel.attention_kernel, {name: types[name] for name in names}, constants, attributes)
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)


def loop_over_keys(cubin):
    """The machine instructions of the innermost loop with products in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-sass", file.name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    code = [match.groups() for line in lines if (match := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", line))]
    loops = []
    for at, text in code:
        jump = re.search(r"BRA.* 0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(at, 16):
            body = [line for where, line in code if int(jump[1], 16) <= int(where, 16) <= int(at, 16)]
            if any("MMA" in line for line in body):
                loops.append(body)
    return min(loops, key=len)


def main():
    found = []
    for head_dim in (64, 128):
        for config in tuning.candidates(1560, head_dim)[:2]:
            for card in (80, 90):
                result = compiled(card, config, head_dim)
                words = {word: result.asm["ptx"].count(word) for word in ("cp.async", "mma.sync", "wgmma")}
                spills = sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in loop_over_keys(result.asm["cubin"]))
                facts = {"card": card, "head_dim": head_dim, **config._asdict(), "shared": result.metadata.shared}
                found.append(facts | words | {"spills in the loop": spills})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
