"""What losses are measured on: two halves of the clips, several lengths, and noise levels, in a fixed order."""

import itertools
import random
from collections.abc import Sequence

from freeloc.errors import ProbeError
from freeloc.tuning.racing import Unit

FEWEST = 4
"""Fewest clips: half of them must still give a standard error."""


def require_clips(clips: int, prompts: Sequence[object], own: bool) -> None:
    """Require enough clips, and a prompt for each or one for all.

    Raises:
        ProbeError: if there are too few, or another number of prompts.
    """
    if own and clips < FEWEST:
        raise ProbeError(
            f"expected at least {FEWEST} prompts without clips, which are then samples of the model, one for "
            f"each prompt, found {clips}"
        )
    if clips < FEWEST:
        raise ProbeError(
            f"expected at least {FEWEST} clips, one half to choose on and the other to check on, each with a standard "
            f"error, found {clips}: 16 or more are better"
        )
    if len(prompts) not in (1, clips):
        raise ProbeError(f"expected one prompt, or one for each of {clips} clips, found {len(prompts)}")


def halves(clips: int, seed: int) -> tuple[list[int], list[int]]:
    """Clips to choose on, and clips to check on, in random order; the first half has one more if there is an odd one.

    >>> [sorted(half) for half in halves(5, seed=0)]
    [[0, 1, 2], [3, 4]]
    """
    order = list(range(clips))
    random.Random(seed).shuffle(order)
    return order[: (clips + 1) // 2], order[(clips + 1) // 2 :]


def require_times(times: Sequence[int]) -> None:
    """Refuse lengths that are not whole numbers of trained lengths, at least 2."""
    if not times or not all(isinstance(time, int) and time > 1 for time in times):
        raise ProbeError(f"expected times as whole numbers of 2 or more trained lengths, found {list(times)}")


def lengths(times: Sequence[int], trained_frames: int, clip_frames: int) -> list[int]:
    """Latent frames of so many trained lengths, as far as the clips reach; at least their whole length.

    >>> lengths((2, 4), trained_frames=21, clip_frames=81), lengths((2, 4), trained_frames=21, clip_frames=61)
    ([41, 81], [41, 61])

    Raises:
        ProbeError: if no length is beyond the trained one.
    """
    require_times(times)
    if clip_frames <= trained_frames:
        raise ProbeError(
            f"expected clips longer than the trained {trained_frames} latent frames, found {clip_frames}: at that "
            "length no correction changes anything. Give clips of 4 times the trained length, or at least 2"
        )
    wanted = {min(time * (trained_frames - 1) + 1, clip_frames) for time in times}
    return sorted(frames for frames in wanted if frames > trained_frames)


def order(clips: Sequence[int], frames: Sequence[int], levels: Sequence[float], seed: int) -> list[Unit]:
    """All units, each once: every pass goes through all clips, with another length and noise level for each.

    >>> found = order([0, 1], [41, 81], [0.5], seed=0)
    >>> [unit.clip for unit in found], sorted(found) == sorted(set(found)), len(found)
    ([0, 1, 0, 1], True, 4)
    """
    kinds = list(itertools.product(frames, levels))
    random.Random(seed).shuffle(kinds)
    return [
        Unit(clip, *kinds[(place + turn) % len(kinds)])
        for turn in range(len(kinds))
        for place, clip in enumerate(clips)
    ]
