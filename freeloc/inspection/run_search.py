"""Finds the function that calls the parts of a model, where the model itself is not called."""

import inspect
from types import FrameType
from typing import Any

import torch

from freeloc.adapter.run_by import RunBy
from freeloc.inspection.subject import Subject
from freeloc.interception import watch
from freeloc.interception.watch import Running, RunningModules

TORCH = str(torch.__path__[0])
OURS = __file__, watch.__file__


def find_run_by(subject: Subject) -> RunBy | None:
    """The function of a file that calls the parts of the model, and the last of these; None if the model is called."""
    calls: list[tuple[str, FrameType]] = []

    def entered(running: Running) -> None:
        if running.path and "." not in running.path:
            calls.append((running.path, _caller()))

    with torch.no_grad(), RunningModules(subject.model, {}, entered):
        subject.output()
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
    while here is not None and (here.f_code.co_filename.startswith(TORCH) or here.f_code.co_filename in OURS):
        here = here.f_back
    assert here is not None  # some code ran the model
    return here
