"""Finds the function that calls the parts of a model, where the model itself is not called."""

import inspect
from types import FrameType
from typing import Any

import torch

from freeloc.adapter.run_by import RunBy
from freeloc.inspection.subject import Subject

TORCH = str(torch.__path__[0])


def find_run_by(subject: Subject) -> RunBy | None:
    """The function of a file that calls the parts of the model, and the last of these; None if the model is called."""
    calls: list[tuple[str, FrameType]] = []
    removers = []
    try:
        for name, module in subject.model.named_children():
            removers.append(module.register_forward_pre_hook(lambda *_, name=name: calls.append((name, _caller()))))
        with torch.no_grad():
            subject.output()
    finally:
        for remover in removers:
            remover.remove()
    for name, frame in reversed(calls):
        code, file = frame.f_code, frame.f_globals.get("__name__", "")
        held: Any = frame.f_globals.get(code.co_name)
        if getattr(held, "__code__", None) is code and file:
            return RunBy(f"{file}:{code.co_name}", last=name)
    return None


def _caller() -> FrameType:
    """The frame of the code that called the module whose hook is running."""
    frame = inspect.currentframe()
    assert frame is not None  # CPython has frames
    here = frame.f_back
    while here is not None and (here.f_code.co_filename.startswith(TORCH) or here.f_code.co_filename == __file__):
        here = here.f_back
    assert here is not None  # some code ran the model
    return here
