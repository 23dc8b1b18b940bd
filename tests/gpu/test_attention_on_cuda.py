"""Every attention backend on CUDA against the reference implementation in float64 on the CPU. Without diffusers."""

import pytest
import torch
from attention_cases import CASES, TOLERANCE, compare
from common import backend_names

from freeloc.errors import LayoutError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false"),
    pytest.mark.filterwarnings("default"),  # reason: the machine with the GPU may have any version of torch
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backends_equal_the_reference(case, dtype):
    done = []
    for name in ["reference", *backend_names()]:
        try:
            found = compare(case, name, dtype, "cuda")
        except LayoutError:  # a backend may say that it cannot compute a call
            continue
        assert found.fits, f"{name}: largest error {found.largest:.2e}, expected within {TOLERANCE[dtype]}"
        done.append(name)
    assert {"reference", "sdpa"} <= set(done)
