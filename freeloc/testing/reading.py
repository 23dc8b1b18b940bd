"""Checks of what is read from a call. Each docstring is a requirement; a check raises an error if it is not met."""

from typing import Any

from torch import Tensor

from freeloc.adapter.paths import argument_at, with_argument
from freeloc.errors import LayoutError
from freeloc.testing import cases
from freeloc.testing.cases import FRAMES, HEIGHT, TRAINED, WIDTH, Case
from freeloc.testing.description import (
    check_our_rotation_is_the_models_own,
    check_text_is_counted,
    check_the_layout_adds_up,
)
from freeloc.testing.requirements import needs, require


@needs(check_text_is_counted, check_our_rotation_is_the_models_own)
def check_every_call_is_as_described(case: Case) -> None:
    """In a corrected call, the number of tokens, the rotary tables and the order of tokens are as the adapter says."""
    for size in ((FRAMES, HEIGHT, WIDTH), (TRAINED + 2, 3, 4)):
        error = _refusal(case, case.inputs(*size))
        require(not error, f"hidden_states, joint, tables, text_mask: {error}")


@needs(check_every_call_is_as_described)
def check_sizes_that_are_no_multiple_of_the_patch(case: Case) -> None:
    """If the model accepts a video whose rows or columns are no multiple of the patch, the grid is still right."""
    for height, width, axes in ((HEIGHT, WIDTH, "h"), (HEIGHT, WIDTH, "w"), (HEIGHT + 1, WIDTH + 1, "hw")):
        inputs = _cropped(case, height, width, axes)
        error = "" if inputs is None or not _runs(case, inputs) else _refusal(case, inputs)
        require(
            not error,
            f"grid: with an odd size along {' and '.join(axes)} the model runs, but {error}: does it pad the video? "
            "Then read the grid from a submodule that sees padding, as in TokenGrid('output', of='patch_embedding')",
        )


@needs(check_the_layout_adds_up)
def check_the_frame_rate_is_near_the_trained_one(case: Case) -> None:
    """The example's positions per latent frame are 1/8 to 8 times those in training, if the adapter gives these."""
    rope = case.adapter.rope_of(case.model)
    if rope is None or rope.trained_step is None:
        return
    trained = rope.trained_step(case.model) if callable(rope.trained_step) else rope.trained_step
    found = case.positions_per_frame()
    require(
        isinstance(trained, int | float) and trained > 0 and 1 / 8 <= found / trained <= 8,
        f"trained_step: expected positions per latent frame in training, near the example's {found:.4g}, found "
        f"{trained!r}: are both in the same unit?",
    )


def _refusal(case: Case, inputs: dict[str, Any]) -> str:
    """Why a corrected call is refused; empty if it is not."""
    try:
        case.run_patched(inputs, cases.almost_everything)
    except LayoutError as error:
        return str(error)
    return ""


def _runs(case: Case, inputs: dict[str, Any]) -> bool:
    try:
        case.run(inputs)
    except Exception:  # the model may refuse such a size in any way
        return False
    return True


def _cropped(case: Case, height: int, width: int, axes: str) -> dict[str, Any] | None:
    """Inputs whose video is one shorter along these axes than so many patches; None if they cannot be made."""
    inputs = case.inputs(height=height, width=width)
    video = argument_at(inputs, case.example.video)
    names, counts = (case.example.axes or case.adapter.grid.axes).split(), {"h": height, "w": width}
    samples = [video] if isinstance(video, Tensor) else list(video)
    for axis in axes:
        place = names.index(axis) if axis in names else -1
        if place < 0 or any(sample.shape[place] < 2 * counts[axis] for sample in samples):
            return None
        samples = [sample.narrow(place, 0, sample.shape[place] - 1) for sample in samples]
    return with_argument(inputs, case.example.video, samples[0] if isinstance(video, Tensor) else samples)
