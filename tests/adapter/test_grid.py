"""What an adapter receives from a call: its arguments by name, however they were passed."""

from dataclasses import replace

import pytest
from freeloc_toy.adapter import TOY
from freeloc_toy.examples import inputs
from freeloc_toy.model import ToyDiT

import freeloc
from freeloc.adapter import TokenGrid


class Rated(ToyDiT):
    """Has defaults, and a first parameter that is not called self."""

    def forward(this, video, text, text_lengths, fps=8, *, packed=False):  # noqa: N805
        return super().forward(video, text, text_lengths)


def patched(model, grid=TOY.grid, step=None):
    classes, rope = (f"{__name__}.Rated",), replace(TOY.rope, step=step)
    adapter = replace(TOY, classes=classes, grid=grid, rope=rope)
    return freeloc.patch(model, freeloc.default_profile(model, "vrpr", 4, adapter=adapter), adapter=adapter)


def test_a_step_gets_the_arguments_by_name_and_the_defaults_of_those_left_out():
    model, given, rates = Rated(), inputs(8, 2, 3, 1), []
    with patched(model, step=lambda model, given: rates.append(given["fps"]) or 8 / given["fps"]):
        model(**given)
        model(*given.values())
        model(*given.values(), 4)
        model(**given, fps=4)
    assert rates == [8, 8, 4, 4]


def test_an_argument_that_is_refused_may_stay_at_its_default():
    model, given = Rated(), inputs(8, 2, 3, 1)
    grid = TokenGrid("video", axes="b f c h w", patch=(1, 2, 2), refused={"packed": "no frames"})
    with patched(model, grid) as patch:
        model(**given)
        model(**given, packed=False)
        with pytest.raises(freeloc.errors.LayoutError, match="cannot be corrected when called with packed: no frames"):
            model(**given, packed=True)
    assert patch.report().corrected_calls == 4
