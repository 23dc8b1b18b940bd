"""Perturbations of a layer, as plans: shift its keys in time, or limit its attention to a window.

Source: the two probes of FreeLOC, arXiv 2603.25209.
"""

from collections.abc import Sequence

import torch

from freeloc.errors import FreelocError
from freeloc.plans.baselines import sliding_window
from freeloc.plans.frame_plan import DENSE, FramePlan, relative_positions

WINDOW = "window"
"""Name of the one perturbation that is not a shift."""


def default_shifts(trained_frames: int) -> tuple[int, ...]:
    """Shifts in proportion to the trained range: 20 and 40 latent frames, as published, for a model trained on 21.

    >>> default_shifts(trained_frames=21)
    (-40, -20, 20, 40)
    """
    one = max(1, trained_frames - 1)
    return (-2 * one, -one, one, 2 * one)


def shifted(frames: int, shift: int) -> FramePlan:
    """The plan that moves every key frame `shift` latent frames later.

    >>> shifted(3, shift=20).positions[0].tolist()
    [-20.0, -21.0, -22.0]
    """
    dense = torch.full((frames, frames), DENSE, dtype=torch.uint8)
    return FramePlan(relative_positions(frames) - shift, dense)


def perturbed(name: str, frames: int, trained_frames: int) -> FramePlan:
    """The plan of a perturbation by its name: a number of latent frames with its sign (``"+20"``), or ``"window"``.

    The window is as long as the trained clips: see `freeloc.plans.baselines.sliding_window`.
    """
    return sliding_window(frames, trained_frames) if name == WINDOW else shifted(frames, int(name))


def names(shifts: Sequence[int]) -> list[str]:
    """The names of the perturbations with these shifts, and of the window.

    >>> names((-20, 20))
    ['-20', '+20', 'window']
    """
    if not shifts or 0 in shifts or len(set(shifts)) < len(shifts):
        raise FreelocError(f"expected shifts other than 0, each once, in latent frames, found {list(shifts)}")
    return [*(f"{shift:+}" for shift in shifts), WINDOW]
