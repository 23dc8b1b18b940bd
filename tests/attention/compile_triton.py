"""Compile the Triton kernels for an A100 and an H100 that are not there, and print what became of them as JSON.

Everything up to the launch is what a call on a GPU does.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import freeloc
from freeloc.adapter import TemporalRope
from freeloc.attention import LayerPlan, TokenLayout
from freeloc.attention.backends.triton import launch, tuning
from freeloc.profile.planning import policy_plan
from freeloc.testing.backend_cases import CASES

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CARDS = (80, 90)
LAYOUT = TokenLayout(frames=41, height=30, width=52)
PLAN = policy_plan(freeloc.load_profile("wan2.1"), "vrpr", LAYOUT.frames)
KINDS = (
    *("no correction", "decayed logits", "biased logits", "bias and mask of float keys"),
    *("plans and frequencies of each head", "mask of float keys", "text first"),
)


class AbsentCard:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # each with kernels of its own

    def get_current_stream(self, device):
        return 0


def compile_only(run):
    """In the place of `JITFunction.run`: notes what was compiled, and launches nothing."""

    @functools.wraps(run)
    def noting(self, *arguments, grid, warmup, **options):
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        noting.found.append((self.__name__, compiled))
        return compiled

    noting.found = []
    return noting


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


def facts(card, name, compiled):
    words = {word: compiled.asm["ptx"].count(word) for word in ("cp.async.cg", "mma.sync", "wgmma")}
    spills = sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in loop_over_keys(compiled.asm["cubin"]))
    return {"card": card, "kernel": name, "shared": compiled.metadata.shared, "spills in the loop": spills} | words


def main():
    JITFunction.run = compile_only(JITFunction.run)
    found, kinds = [], []
    for card in CARDS:
        driver.set_active(AbsentCard(card))
        for head_dim in (64, 128):
            plan = LayerPlan.of(PLAN, TemporalRope(channels=head_dim // 3 // 2 * 2), head_dim)
            tensors = torch.empty(3, 1, LAYOUT.tokens, 2, head_dim, dtype=torch.bfloat16).transpose(2, 3)
            for config in tuning.candidates(LAYOUT.tokens_per_frame, head_dim)[:2]:
                launch.run(*tensors, plan, LAYOUT, None, None, config)
                found.append(facts(card, *JITFunction.run.found[-1]) | {"head_dim": head_dim} | config._asdict())
    for case in CASES:
        if case.name in KINDS:
            *tensors, mask = case.tensors(torch.float16)
            launch.run(*tensors, case.prepared(), case.layout, mask, -0.3, tuning.candidates(15, 32)[0])
            kinds.append(case.name)
    json.dump({"of Wan": found, "kinds": kinds, "kernels": [name for name, _ in JITFunction.run.found]}, sys.stdout)


if __name__ == "__main__":
    main()
