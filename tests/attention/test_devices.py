"""The calls that are checked on GPUs, here on the CPU. Plans are data on the CPU, whatever the default device is."""

import pytest
import torch
from attention_cases import CASES, compare
from common import backend_names

from freeloc.attention import Backend, sdpa

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_backends_equal_the_reference_on_the_cpu(case):
    found = {name: compare(case, name, torch.float32, "cpu") for name in backend_names()}
    assert "sdpa" in found
    assert all(comparison.fits for comparison in found.values()), found


@each_case
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_the_default_device_while_it_runs_does_not_matter(case, backend):
    tensors = case.tensors(torch.float32)
    expected = case.attend(backend, tensors, "cpu")
    with torch.device("meta"):  # any other device than that of the tensors; this one is always there
        found = case.attend(backend, tensors, "cpu")
    assert torch.equal(found, expected)


def test_a_wrong_output_does_not_fit():
    wrong = Backend("wrong", lambda query, key, value, *rest: sdpa.attend(query, key, value, *rest) + 1e-4)
    found = compare(CASES[0], wrong, torch.float32, "cpu")
    assert not found.fits
    assert found.largest == pytest.approx(1e-4, rel=1e-2)
