"""Attention backends: PyTorch's and diffusers'.

Each backend of diffusers, set on the model, by the context manager, and by the environment variable.
"""

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cell import Apply, Case, Cell, Exact, Fails, applied, difference, worst
from .jobs import ROOT

THREE = ("wan", "hunyuan-video", "ltx-2")
"""Models whose processors take a backend."""


def set_on_model(name: str) -> Apply:
    return lambda model: model.set_attention_backend(name)


def in_context(name: str) -> Any:
    def body(case: Case) -> Exact:
        from diffusers.models.attention_dispatch import attention_backend

        with contextlib.ExitStack() as stack:
            if case.order == "before":
                stack.enter_context(attention_backend(name))
            stack.enter_context(case.patch())
            if case.order == "after":
                stack.enter_context(attention_backend(name))
            return case.exact(case.run())

    return body


PROGRAM = """
import json, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from tests.matrix.cell import FAMILIES, Case
from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry
found = {{}}
for family in FAMILIES:
    case = Case(family)
    with case.patch() as patch:
        output = case.run()
        assert patch.report().corrected_calls
    found[family] = output.flatten().tolist()
print(json.dumps([str(registry._active_backend.value), found]))
"""


def in_environment(name: str) -> Any:
    """DIFFUSERS_ATTN_BACKEND in a process of its own; the oracle in this one."""

    def body(case: Case) -> Exact:
        result = _run_with(name)[case.family]
        return case.exact(torch.tensor(result).view_as(case.expected()))

    return body


_ran: dict[str, dict[str, list[float]]] = {}


def _run_with(name: str) -> dict[str, list[float]]:
    """What the patched models give in a process with a backend of the environment: one process for all families."""
    if name not in _ran:
        paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]
        environment = os.environ | {"DIFFUSERS_ATTN_BACKEND": name, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(paths=paths)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        used, _ran[name] = json.loads(done.stdout.splitlines()[-1])
        assert used == name
    return _ran[name]


def in_sdpa_kernel(kind: SDPBackend) -> Any:
    def body(case: Case) -> Exact:
        with sdpa_kernel(kind), case.patch():
            return case.exact(case.run())

    return body


def several(case: Case) -> Exact:
    """Set to another backend between runs of one patch, and back."""
    found = []
    with case.patch():
        for name in ("_native_math", "flex", "native"):
            case.model.set_attention_backend(name)
            found.append(case.exact(case.run()))
    assert difference(case.run(), case.plain()) <= 2e-5
    return worst(found)


RUN_ON_A_CPU = ("native", "_native_math", "flex")
ELSEWHERE = {
    "_native_efficient": "No viable backend",
    "_native_cudnn": "No viable backend",
    "_native_npu": "not usable because of missing package",
    "_native_xla": "not usable because of missing package",
    "xformers": "not usable because of missing package",
    **dict.fromkeys(("flash", "flash_varlen", "_flash_3", "_flash_varlen_3"), "not usable because of missing package"),
    **dict.fromkeys(("flash_hub", "flash_varlen_hub", "flash_4_hub", "_flash_3_hub", "_flash_3_varlen_hub"), "kernels"),
    "aiter_fa2_hub": "kernels",
    **dict.fromkeys(("sage", "sage_varlen"), "not usable because of missing package"),
    **dict.fromkeys(("sage_hub", "sage_blackwell_hub"), "kernels"),
    **dict.fromkeys(
        (
            "_sage_qk_int8_pv_fp8_cuda",
            "_sage_qk_int8_pv_fp8_cuda_sm90",
            "_sage_qk_int8_pv_fp16_cuda",
            "_sage_qk_int8_pv_fp16_triton",
        ),
        "not usable because of missing package",
    ),
}
"""Backends that need another device or package, and what diffusers says."""

CELLS = [
    *[
        applied(
            f"set_attention_backend('{name}')",
            set_on_model(name),
            families=THREE,
            quick=("wan",) if name == "_native_math" else (),
        )
        for name in RUN_ON_A_CPU
    ],
    applied(
        "set_attention_backend('_native_flash')",
        set_on_model("_native_flash"),
        families=THREE,
        but=dict.fromkeys(THREE[1:], Fails("`attn_mask` is not supported")),
    ),
    *[
        applied(f"set_attention_backend('{name}')", set_on_model(name), families=THREE, orders=(), expects=Fails(said))
        for name, said in ELSEWHERE.items()
    ],
    Cell("set_attention_backend three times under one patch", several, families=THREE),
    *[
        Cell(f"with attention_backend('{name}')", in_context(name), orders=("before", "after"))
        for name in RUN_ON_A_CPU[1:]
    ],
    *[Cell(f"DIFFUSERS_ATTN_BACKEND={name}", in_environment(name)) for name in RUN_ON_A_CPU[1:]],
    *[
        Cell(f"sdpa_kernel(SDPBackend.{kind.name})", in_sdpa_kernel(kind))
        for kind in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
    ],
]
