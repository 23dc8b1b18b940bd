"""The backend triton without a GPU: in Triton's interpreter, compiled for absent GPUs, and what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from freeloc.attention import LayerPlan, TokenLayout, sdpa, triton
from freeloc.attention.backends.base import choose
from freeloc.testing.backend_cases import ROPE, VRPR

HERE = Path(__file__).parent
HALF = (torch.float16, torch.bfloat16)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed: pip install triton"
)


def run_python(*arguments, **environment):
    """A process of its own: Triton decides at its import whether it interprets or compiles."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)


@needs_triton
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_it_equals_the_reference_in_the_interpreter(which):
    """The tests of triton_interpreted.py."""
    file = HERE / "triton_interpreted.py"
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, file, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the compiler says about each config on each card, from compile_triton.py."""
    cache = tmp_path_factory.mktemp("triton")
    done = run_python(HERE / "compile_triton.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}
"""Bytes that a program may have on an A100 and on an H100, by compute capability."""


@pytest.mark.slow
@needs_triton
def test_it_compiles_for_gpus_within_their_shared_memory(compiled):
    assert len(compiled["of Wan"]) == 8
    for found in compiled["of Wan"]:
        assert found["kernel"] == "attention_kernel"
        assert found["shared"] <= SHARED_MEMORY[found["card"]], found


@pytest.mark.slow
@needs_triton
def test_loads_of_16_bytes_are_pipelined_and_products_are_of_tensor_cores(compiled):
    for found in compiled["of Wan"]:
        assert found["cp.async.cg"] > 0, found
        assert found["wgmma" if found["card"] == 90 else "mma.sync"] > 0, found


@pytest.mark.slow
@needs_triton
def test_the_loop_over_keys_keeps_its_sums_in_registers(compiled):
    """A few scalars may be elsewhere. Between segments more are: there the queries rotate while all sums are kept."""
    for found in compiled["of Wan"]:
        assert found["spills in the loop"] <= 8, found


@pytest.mark.slow
@needs_triton
def test_every_kind_of_kernel_compiles(compiled):
    """Also with numbers that are 1, which Triton makes constants, and with a negative scale."""
    assert len(compiled["kinds"]) == 7
    assert set(compiled["kernels"]) == {"attention_kernel", "copy_kernel"}


class TestCan:
    def call(self, dtype=torch.bfloat16, head_dim=24, **changes):
        layout = TokenLayout(VRPR.frames, 1, 2)
        query, key, value = torch.zeros(3, 1, 2, layout.tokens, head_dim, dtype=dtype)
        call = {"query": query, "key": key, "value": value, "mask": None} | changes
        return triton.obstacle(call["query"], call["key"], call["value"], call["mask"], HALF)

    def test_it_requires_a_gpu_and_auto_goes_on_to_sdpa(self):
        layout, plan = TokenLayout(VRPR.frames, 1, 2), LayerPlan.of(VRPR, ROPE, 24)
        call = *torch.zeros(3, 1, 2, layout.tokens, 24), plan, layout, None
        assert triton.BACKEND.can(*call) == "requires a CUDA device, found cpu"
        assert triton.BACKEND.priority > sdpa.BACKEND.priority
        assert choose([triton.BACKEND, sdpa.BACKEND], *call) is sdpa.BACKEND

    def test_asking_imports_no_triton(self):
        code = (
            "import sys, torch, freeloc\n"
            "q = torch.zeros(1, 12, 41 * 6, 128)\n"
            "rope = freeloc.adapter.TemporalRope(channels=44)\n"
            "freeloc.attend_layer(freeloc.load_profile('wan2.1'), 0, q, q, q, grid=(41, 2, 3), rope=rope)\n"
            "print([name for name in sys.modules if name.split('.')[0] == 'triton'])"
        )
        done = run_python("-c", code)
        assert done.stdout == "[]\n", done.stderr

    def test_a_call_that_it_supports(self):
        assert self.call() == ""
        assert self.call(mask=torch.ones(1, 1, 1, 18, dtype=torch.bool)) == ""
        assert self.call(mask=torch.zeros(18)) == ""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"dtype": torch.float32}, "requires float16 or bfloat16, found float32"),
            ({"value": torch.zeros(1, 2, 18, 24)}, "requires float16 or bfloat16, found bfloat16, float32"),
            ({"head_dim": 8}, "supports heads of 16 to 128 channels, found 8"),
            ({"head_dim": 256}, "supports heads of 16 to 128 channels, found 256"),
            (
                {"key": torch.zeros(1, 1, 18, 24, dtype=torch.bfloat16)},
                "requires queries, keys and values of the same shape, "
                "found (1, 2, 18, 24), (1, 1, 18, 24), (1, 2, 18, 24)",
            ),
            (
                {"key": torch.zeros(1, 2, 18, 24, dtype=torch.bfloat16, device="meta")},
                "requires plain tensors on one device, found Tensor on cpu, Tensor on meta, Tensor on cpu",
            ),
            (
                {"mask": torch.ones(1, 1, 18, 18) == 1},
                "supports masks of keys, found one of pairs of shape (1, 1, 18, 18)",
            ),
            ({"mask": torch.ones(18, dtype=torch.int64)}, "requires a bool or floating-point mask, found torch.int64"),
            (
                {"query": torch.zeros(1, 2, 18, 24, dtype=torch.bfloat16, requires_grad=True)},
                "has no backward, found tensors that require gradients",
            ),
        ],
    )
    def test_calls_that_it_refuses(self, changes, words):
        assert self.call(**changes) == words

    def test_weights_that_require_gradients_are_fine_without_autograd(self):
        query = torch.zeros(1, 2, 18, 24, dtype=torch.bfloat16, requires_grad=True)
        with torch.no_grad():
            assert self.call(query=query) == ""
