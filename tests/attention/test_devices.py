"""The CPU, and the default device: plans are data on the CPU, whatever that device is."""

import pytest
import torch

from freeloc import attend_layer
from freeloc.attention import sdpa
from freeloc.testing import check_backend
from freeloc.testing.backend_cases import CASES, FRAMES


def test_sdpa_equals_the_reference_on_the_cpu():
    """What other backends are tested with: test_triton.py, and tests/gpu."""
    check_backend(sdpa.BACKEND, dtypes=[torch.float32])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_the_default_device_of_the_call_does_not_matter(case, backend):
    query, key, value, mask = case.tensors(torch.float32)
    factors = torch.linspace(0.5, 1, case.heads, dtype=torch.float64)[:, None]
    options = {
        "grid": (FRAMES, case.height, case.width),
        "rope": case.rope,
        "text_first": case.text_first,
        "text_last": case.text_last,
        "frequencies": factors * case.rope.frequencies(case.head_dim) if case.per_head else None,
        "mask": mask,
        "scale": case.scale,
        "backend": backend,
    }
    expected = attend_layer(case.plan, 0, query, key, value, **options)
    with torch.device("meta"):  # a default device other than that of the tensors, present on every machine
        found = attend_layer(case.plan, 0, query, key, value, **options)
    assert torch.equal(found, expected)
