"""Every attention backend on CUDA against the reference implementation in float64 on the CPU. Without diffusers."""

import pytest
import torch
from common import backend_names

from freeloc.registry import registry
from freeloc.testing import run_backend_checks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false"),
    pytest.mark.filterwarnings("default"),  # reason: the machine with the GPU may have any version of torch
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["reference", *backend_names()])
def test_backends_equal_the_reference(name, dtype):
    results = run_backend_checks(registry().backends.get(name), device="cuda", dtypes=[dtype])
    assert [f"{result.check}: {result.problem}" for result in results if not result.passed] == []
    refused = [f"{result.check}: {result.expected}" for result in results if result.expected]
    assert not refused or name not in ("reference", "sdpa")
    if len(refused) == len(results):
        pytest.skip(f"{name} supports no call, such as {refused[0]}")
