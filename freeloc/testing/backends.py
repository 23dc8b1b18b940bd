"""Checks of an attention backend: it must compute what ``reference`` computes, or refuse the call.

A complete test of a backend::

    from freeloc.testing import check_backend

    def test_my_backend():
        check_backend(MY_BACKEND)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from freeloc.attention.backends import Backend, reference
from freeloc.testing.backend_cases import CASES, BackendCase
from freeloc.testing.requirements import ConformanceError
from freeloc.testing.suite import Result

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""The allowed error of an element of the output, absolute plus relative: tolerance * (1 + abs(expected))."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that are checked by default."""


def run_backend_checks(
    backend: Backend, device: str | torch.device = "cpu", dtypes: Sequence[torch.dtype] = DTYPES
) -> list[Result]:
    """Compare a backend with ``reference`` in float64, on every case in every dtype.

    >>> from freeloc.attention import sdpa
    >>> all(result.met for result in run_backend_checks(sdpa.BACKEND, dtypes=[torch.float32]))
    True

    The cases have positions of VRPR, hidden and striped frames, other frequencies, scaled, decayed and biased logits,
    odd grids, text on either side, masks, plans and frequencies for each head, and tensors that are not contiguous.

    Args:
        backend: the backend to check.
        device: the device of the tensors.
        dtypes: the dtypes of the tensors: float64, float32, float16 or bfloat16.

    Returns:
        A result per case and dtype. If `Backend.can` refuses a call, the result is passed but not met, and
        `Result.expected` is the reason.
    """
    return [_result(backend, case, torch.device(device), dtype) for dtype in dtypes for case in CASES]


def check_backend(
    backend: Backend, device: str | torch.device = "cpu", dtypes: Sequence[torch.dtype] = DTYPES
) -> list[str]:
    """Check that a backend computes every call correctly that it does not refuse.

    >>> from freeloc.attention import sdpa
    >>> check_backend(sdpa.BACKEND, dtypes=[torch.float32])
    []

    Args:
        backend, device, dtypes: see `run_backend_checks`.

    Returns:
        The refused calls with reasons, such as ``"mask of bool keys, float32: supports no mask"``.

    Raises:
        ConformanceError: if calls are wrong (the message names each), or if all calls are refused.
    """
    results = run_backend_checks(backend, device, dtypes)
    wrong = [f"  {result.check}: {result.problem}" for result in results if not result.passed]
    if wrong:
        raise ConformanceError(
            f"the backend '{backend.name}' is wrong in {len(wrong)} of {len(results)} calls:\n" + "\n".join(wrong)
        )
    refused = [f"{result.check}: {result.expected}" for result in results if result.expected]
    if len(refused) == len(results):
        raise ConformanceError(
            f"the backend '{backend.name}' refuses all {len(results)} calls, so nothing was checked: give the device "
            f"and dtypes that it supports. The first: {refused[0]}"
        )
    return refused


def _result(backend: Backend, case: BackendCase, device: torch.device, dtype: torch.dtype) -> Result:
    name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
    plan, layout = case.prepared(), case.layout
    tensors = [None if tensor is None else tensor.to(device) for tensor in case.tensors(dtype)]
    query, key, value, mask = tensors
    assert query is not None
    assert key is not None
    assert value is not None
    try:
        reason: object = "" if backend.can is None else backend.can(query, key, value, plan, layout, mask)
        if not isinstance(reason, str):
            return Result(backend.name, name, problem=f"expected can to return a text, found {reason!r}")
        if reason:
            return Result(backend.name, name, blocked="can", expected=reason)
        before = [None if tensor is None else tensor.clone() for tensor in tensors]
        found = backend.compute(query, key, value, plan, layout, mask, case.scale)
    except Exception as error:  # a backend may fail in any way; the failure is the result
        return Result(backend.name, name, problem=f"{type(error).__name__}: {error}")
    for label, tensor, old in zip(("queries", "keys", "values", "mask"), tensors, before, strict=True):
        if tensor is not None and old is not None and not torch.equal(tensor, old):
            return Result(backend.name, name, problem=f"expected the {label} to be unchanged, found them changed")
    return Result(backend.name, name, problem=_difference(found, case, dtype))


def _difference(found: Tensor, case: BackendCase, dtype: torch.dtype) -> str:
    """How an output differs from the reference's for the same inputs; empty if it does not."""
    tensors = [
        tensor if tensor is None or tensor.dtype == torch.bool else tensor.double() for tensor in case.tensors(dtype)
    ]
    query, key, value, mask = tensors
    assert query is not None
    assert key is not None
    assert value is not None
    expected = reference.attend(query, key, value, case.prepared(), case.layout, mask, case.scale)
    error = (found.double().cpu() - expected).abs()
    allowed = TOLERANCE[dtype] * (1 + expected.abs())
    if bool((error <= allowed).all()):
        return ""
    if not found.isfinite().all():
        return "expected finite numbers, as the reference gives, found nan or inf"
    wrong = (error > allowed).any(dim=-1).nonzero()
    _, head, token = wrong[0].tolist()
    return (
        f"expected to equal the reference within {TOLERANCE[dtype]:g}, found a difference of {error.max():.1e}; "
        f"{len(wrong)} of {error[..., 0].numel()} tokens differ, the first is token {token} of head {head}"
    )
